"""GeoCLIP as the released package offers it: a model that carries its gallery."""

from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from open_geoclip.errors import GalleryError, SettingsError
from open_geoclip.images import ImageSource
from open_geoclip.model.geoclip import DType, Engine, TwoTowers, prepared
from open_geoclip.model.image_encoder import ImageEncoder
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.locator import Locator
from open_geoclip.weights.load import load_release

__all__ = ["GeoCLIP"]


class GeoCLIP(TwoTowers):
    """Two towers, a temperature and a gallery; ``predict`` is that of the released package.

    Args:
        image_encoder: the tower for pictures.
        location_encoder: the tower for coordinates.
        gallery: the places that ``predict`` chooses from; not needed for training.
    """

    def __init__(
        self, image_encoder: ImageEncoder, location_encoder: LocationEncoder, gallery: Gallery | None = None
    ) -> None:
        super().__init__(image_encoder, location_encoder)
        self.gallery = gallery
        self._locator: Locator | None = None
        self._state: tuple[object, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        backbone: str | None = None,
        gallery: str | Path | None = None,
        dtype: DType = "float32",
        engine: Engine = "auto",
    ) -> "GeoCLIP":
        """Trained weights, in evaluation mode. Nothing is downloaded: ``geoclip pull NAME`` does that.

        Args:
            name: ``geoclip`` (released), ``earth`` (embedded), ``hub:org/repo@revision`` or ``dir:/folder``.
            backbone: where the image backbone is, by the same grammar; the one that the weights name when not given.
            gallery: a file of places; the gallery of the weights when not given.
            dtype: what the image backbone computes in.
            engine: what runs the image backbone: ``torch``, or ``openvino`` on a CPU, which ``auto`` takes
                when the extra ``fast`` is installed. For a GPU or to copy the module, say ``torch``.

        Raises:
            ModelNameError: a name does not follow the grammar.
            WeightsError: weights are missing or damaged; the message says what to do.
            GalleryError: the gallery file cannot be used.
        """
        release = load_release(name)
        model = cls.from_release(release, backbone=backbone)
        model.image_encoder.backbone = prepared(model.image_encoder.backbone, engine, dtype)
        path = release.gallery if gallery is None else gallery
        model.gallery = None if path is None else Gallery.from_file(path)
        return model

    @torch.inference_mode()
    def predict(self, image_path: ImageSource, top_k: int) -> tuple[Float32[Tensor, "k 2"], Float32[Tensor, " k"]]:
        """The most likely coordinates of one picture, as the released package gives them.

        The softmax runs over every row of the gallery's file, and a place that stands there twice is given twice.
        Location vectors are encoded at the first call and kept on disk; :class:`Locator` is for many pictures.

        Args:
            image_path: a path, or anything else :func:`open_geoclip.images.load_image` reads.
            top_k: how many, best first.

        Returns:
            Coordinates (lat, lon) in degrees, and the softmax probability of each.

        Raises:
            ImageError: the picture cannot be read.
            SettingsError: top_k is below 1 or above the number of rows in the gallery.
            GalleryError: the model has no gallery.
        """
        locator = self._ready()
        copies = torch.from_numpy(locator.gallery.weights).round().clamp_min(1).long()
        if not 1 <= top_k <= int(copies.sum()):
            raise SettingsError(f"top_k must be between 1 and {int(copies.sum())}, got {top_k}.")
        found = locator.index.search(locator.encode([image_path]), self.scale, min(top_k, len(copies)))
        repeats = copies[found.rows[0]]
        rows = found.rows[0].repeat_interleave(repeats)[:top_k]
        probabilities = (found.logits[0] - found.log_total).exp().repeat_interleave(repeats)[:top_k]
        return torch.from_numpy(locator.gallery.coordinates)[rows], probabilities

    def _ready(self) -> Locator:
        """The locator of these weights and this gallery, made anew when either has changed."""
        if self.gallery is None:
            raise GalleryError("this model has no gallery: model.gallery = Gallery.from_file(...)")
        state = (self.gallery.fingerprint, *((id(p), p._version) for p in self.location_encoder.parameters()))
        if self._locator is None or state != self._state:
            self._locator, self._state = Locator(self, self.gallery), state
        return self._locator
