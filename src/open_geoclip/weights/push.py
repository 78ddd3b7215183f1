"""Uploading a trained model to the Hugging Face Hub. :func:`push` is the only function of the package that uploads."""

import json
from typing import Any

from open_geoclip._version import __version__
from open_geoclip.errors import MissingWeightsError, ModelNameError, SettingsError, WeightsError
from open_geoclip.weights.files import read_json
from open_geoclip.weights.folders import FORMAT, folder
from open_geoclip.weights.hub import DownloadProgress, hub_errors
from open_geoclip.weights.load import load_release
from open_geoclip.weights.names import parse_name
from open_geoclip.weights.save import CURVES, format_readme

__all__ = ["push"]


def push(
    model: str,
    repository: str,
    *,
    backbone: str | None = None,
    public: bool = False,
    progress: DownloadProgress | None = None,
) -> str:
    """Upload a trained model, and return its name with the commit: ``hub:org/repo@commit``.

    Uploaded are weights, configuration, gallery, README and training curves, in one commit; nothing else of the run.

    Args:
        model: ``dir:/folder`` of a model in our own layout.
        repository: ``hub:org/repo``; it is made if it does not exist.
        backbone: name of the image backbone for others, where the model names a folder of this machine.
        public: make a new repository public; the visibility of one that exists does not change.
        progress: receives messages.

    Raises:
        ModelNameError: a name does not follow the grammar, or the repository may not be written.
        SettingsError: nobody else has the image backbone.
        WeightsError: the model is damaged or of another layout.
        MissingWeightsError: the Hub cannot be reached.
    """
    target, progress = parse_name(repository), progress or DownloadProgress()
    if target.kind != "hub" or target.revision:
        raise ModelNameError(f"{repository!r}: models are pushed to hub:org/repo")
    path = folder(model)
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("format") != FORMAT:
        raise WeightsError(f"{model}: only a model that `geoclip train` or save_model wrote can be pushed")
    load_release(model)  # checks hashes and settings
    config = _with_backbone(model, config, backbone)
    names = [*config["sha256"], *([CURVES] if (path / CURVES).exists() else [])]
    if config["gallery"]:
        progress.message(f"{config['gallery']} lists the places of the gallery to everyone who can read {repository}")

    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    texts = {"config.json": json.dumps(config, indent=2) + "\n", "README.md": format_readme(path, config, repository)}
    operations = [CommitOperationAdd(name, text.encode()) for name, text in texts.items()]
    operations += [CommitOperationAdd(name, str(path / name)) for name in names]
    hub = HfApi(library_name="open-geoclip", library_version=__version__)
    with hub_errors(target):
        try:
            hub.create_repo(target.value, private=not public, exist_ok=True)
            commit = hub.create_commit(target.value, operations, commit_message=f"Model of open-geoclip {__version__}")
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403, 404):
                raise ModelNameError(
                    f"{repository}: may not be written (status {status}): log in with a token that may (hf auth login)"
                ) from error
            raise MissingWeightsError(f"{repository}: {hub.endpoint} answers with status {status}") from error
        except RuntimeError as error:  # a large file was not taken
            raise MissingWeightsError(f"{repository}: {error} Run the same command again") from error
    return f"hub:{target.value}@{commit.oid}"


def _with_backbone(model: str, config: dict[str, Any], backbone: str | None) -> dict[str, Any]:
    """Return a configuration whose image backbone others can find."""
    image = config["image_encoder"]
    if image is None or (backbone is None and not image["backbone"].startswith("dir:")):
        return config
    if backbone is None or parse_name(backbone).kind == "dir":
        raise SettingsError(
            f"{model}: its image backbone is {image['backbone']}, a folder that nobody else has: name the same weights "
            "where others find them, such as --backbone hub:org/repo@revision"
        )
    return {**config, "image_encoder": {**image, "backbone": backbone}}
