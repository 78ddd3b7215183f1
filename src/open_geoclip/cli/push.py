"""`geoclip push`: the only command that uploads."""

import sys

__all__ = ["push"]


def push(model: str, repository: str, /, *, backbone: str | None = None, public: bool = False) -> None:
    """Upload a trained model to the Hugging Face Hub.

    Prints its name with the commit. Uploaded are weights, configuration, gallery, README and training curves of the
    model's folder; no photo, checkpoint or cached feature. The token is that of `hf auth login`.

    Args:
        model: dir:FOLDER, such as dir:runs/holiday/model.
        repository: hub:ORG/REPO; a new one is private.
        backbone: Name of the image backbone for others, such as hub:ORG/REPO@REVISION, if the model names a folder.
        public: Make a new repository public.
    """
    from open_geoclip.weights.hub import DownloadProgress
    from open_geoclip.weights.push import push as upload

    class Progress(DownloadProgress):
        def message(self, text: str) -> None:
            print(f"geoclip: {text}", file=sys.stderr)

    print(upload(model, repository, backbone=backbone, public=public, progress=Progress()))
