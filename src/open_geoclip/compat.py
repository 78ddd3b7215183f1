"""Drop-in for the released package ``geoclip`` 1.3.0: the same names, signatures, return types and numbers.

::

    import open_geoclip.compat as geoclip

    model = geoclip.GeoCLIP()
    coordinates, probabilities = model.predict("photo.jpg", top_k=5)

Differences that remain: nothing is downloaded (``geoclip pull geoclip`` does that once); coordinates that are not on
Earth are refused; photos are turned upright as their EXIF orientation says; the gallery's embeddings are cached, so
that the second photo does not wait for them; the image encoder's CLIP is ``backbone``, not ``CLIP``.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor, nn

from open_geoclip.errors import CoordinateError, SettingsError
from open_geoclip.images import ImageSource, load_image
from open_geoclip.model import geoclip, image_encoder, location_encoder
from open_geoclip.model.backbones.clip import ClipVision, ClipVisionSettings
from open_geoclip.model.location_encoder import LocationSettings
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex
from open_geoclip.weights.backbones import load_image_backbone
from open_geoclip.weights.load import load_release
from open_geoclip.weights.registry import CLIP_BACKBONE

__all__ = ["GeoCLIP", "ImageEncoder", "LocationEncoder"]

_VIT_L_14 = ClipVisionSettings(1024, 4096, 24, 16, 768, patch_size=14)


class LocationEncoder(location_encoder.LocationEncoder):
    """Embeddings of (lat, lon) in degrees, (n, 2) to (n, 512).

    Args:
        sigma: one resolution a level; 1, 16 and 256 when not given.
        from_pretrained: the released weights, or random ones.

    Raises:
        MissingWeightsError: the released weights are not on this machine; the message says which command brings them.
    """

    def __init__(self, sigma: Sequence[float] | None = None, from_pretrained: bool = True) -> None:
        self_sigma = [2**0, 2**4, 2**8] if sigma is None else list(sigma)
        super().__init__(LocationSettings(sigmas=tuple(float(one) for one in self_sigma)))
        self.sigma, self.n = self_sigma, len(self_sigma)
        if from_pretrained:
            self.load_state_dict(_released_state("location_encoder."))

    def forward(self, location: Tensor | np.ndarray | Sequence[Sequence[float]]) -> Float[Tensor, "n 512"]:
        """Return embeddings, not normalised.

        Args:
            location: a float32 or float64 tensor, an array or a list of pairs; degrees.

        Raises:
            CoordinateError: a coordinate is not on Earth, or half precision, which moves a place by kilometres.
        """
        return super().forward(_read_coordinates(location).to(next(self.parameters()).device))


class ImageEncoder(image_encoder.ImageEncoder):
    """CLIP ViT-L/14, frozen, and the trainable head: (n, 3, 224, 224) to (n, 512).

    Args:
        from_pretrained: CLIP's published weights, or random ones. The head is random, as in the released package;
            :class:`GeoCLIP` brings the trained one.
        clip_path: a folder in CLIP's published layout; the pulled CLIP when not given.

    Raises:
        MissingWeightsError: CLIP is not on this machine; the message says which command brings it.
        ValueError: ``clip_path`` without ``from_pretrained``.
    """

    def __init__(self, from_pretrained: bool = True, *, clip_path: str | Path | None = None) -> None:
        if from_pretrained:
            name = CLIP_BACKBONE if clip_path is None else f"dir:{clip_path}"
            backbone, preprocessing = load_image_backbone(name)
        elif clip_path is not None:
            raise ValueError("clip_path requires from_pretrained=True.")
        else:
            backbone, preprocessing = ClipVision(_VIT_L_14), Preprocessing.from_config({})
            for parameter in backbone.parameters():
                nn.init.normal_(parameter, std=0.02)
        super().__init__(backbone, preprocessing)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 512"]:
        """Return embeddings of preprocessed images, not normalised."""
        return super().forward(x)

    def preprocess_image(self, image: Image.Image | Sequence[Image.Image]) -> Float32[Tensor, "n 3 h w"]:
        """Return the pixels of one image or of several, resized, cropped and normalised as CLIP expects them."""
        images = [image] if isinstance(image, Image.Image) else image
        return torch.stack([self.preprocessing(one.convert("RGB")) for one in images])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        """Take CLIP's tensors by the names that they have in a state dict of the released package."""
        clip = f"{prefix}CLIP."
        published = {name.removeprefix(clip): state_dict.pop(name) for name in [*state_dict] if name.startswith(clip)}
        if published:
            assert isinstance(self.backbone, ClipVision)
            self.backbone.load_published(published)
            state_dict |= {f"{prefix}backbone.{name}": tensor for name, tensor in self.backbone.state_dict().items()}
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class GeoCLIP(geoclip.GeoCLIP):
    """The released model with its gallery and its queue of GPS coordinates.

    Args:
        from_pretrained: the released heads and temperature, or random ones.
        queue_size: coordinates in ``gps_queue``.
        clip_path: see :class:`ImageEncoder`.
        clip_pretrained: CLIP's published weights, or random ones.

    Attributes:
        gps_gallery: (m, 2) degrees, what ``predict`` chooses from; may be assigned.
        gps_queue: (2, queue_size), random until filled, as in the released package.
        gps_queue_ptr: (1,) where the next coordinates go.

    Raises:
        MissingWeightsError: weights are not on this machine; the message says which command brings them.
    """

    image_encoder: ImageEncoder
    location_encoder: LocationEncoder
    gps_gallery: Tensor
    gps_queue: Tensor
    gps_queue_ptr: Tensor

    def __init__(
        self,
        from_pretrained: bool = True,
        queue_size: int = 4096,
        *,
        clip_path: str | Path | None = None,
        clip_pretrained: bool = True,
    ) -> None:
        super().__init__(
            ImageEncoder(clip_pretrained, clip_path=clip_path), LocationEncoder(from_pretrained=from_pretrained)
        )
        self.register_buffer("gps_gallery", _read_gallery(), persistent=False)
        self.queue_size = queue_size
        self.register_buffer("gps_queue", nn.functional.normalize(torch.randn(2, queue_size), dim=0))
        self.register_buffer("gps_queue_ptr", torch.zeros(1, dtype=torch.long))
        self._index: tuple[Tensor, list[int], GalleryIndex] | None = None
        if from_pretrained:
            self.image_encoder.mlp.load_state_dict(_released_state("image_encoder.mlp."))
            self.logit_scale = nn.Parameter(_released_state("logit_scale")[""])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GeoCLIP":
        # Coordinates keep their precision when the network is cast: .half(), .to(torch.bfloat16).
        gallery, queue = self.gps_gallery, self.gps_queue
        nn.Module._apply(self, fn, recurse)
        self.gps_gallery, self.gps_queue = gallery.to(self.gps_gallery.device), queue.to(self.gps_queue.device)
        return self

    @torch.no_grad()
    def dequeue_and_enqueue(self, gps: Float[Tensor, "n 2"]) -> None:
        """Put coordinates into the queue in the place of the oldest; of more than it holds, the last ones."""
        gps = gps[-self.queue_size :]
        start = 0 if len(gps) == self.queue_size else int(self.gps_queue_ptr)
        at = (start + torch.arange(len(gps), device=self.gps_queue.device)) % self.queue_size
        self.gps_queue[:, at] = gps.t().to(self.gps_queue)
        self.gps_queue_ptr[0] = (start + len(gps)) % self.queue_size

    def get_gps_queue(self) -> Float[Tensor, "q 2"]:
        """Return the coordinates in the queue, (queue_size, 2)."""
        return self.gps_queue.t()

    def forward(
        self, image: Float[Tensor, "n 3 h w"], location: Float[Tensor, "m 2"] | np.ndarray | Sequence[Sequence[float]]
    ) -> Float[Tensor, "n m"]:
        """Return logits of each image for each place."""
        return super().forward(image, _read_coordinates(location))

    @torch.no_grad()
    def predict(self, image_path: ImageSource, top_k: int) -> tuple[Float32[Tensor, "k 2"], Float32[Tensor, " k"]]:
        """Predict the coordinates of one image.

        The softmax runs over every row of the gallery, and a place that stands there twice is given twice. Embeddings
        of the gallery are computed at the first call and kept on disk; :class:`open_geoclip.Locator` is for many.

        Args:
            image_path: a path, or anything else that :func:`open_geoclip.load_image` reads.
            top_k: how many places, best first.

        Returns:
            Coordinates (k, 2) in degrees and the softmax probability (k,) of each, on the CPU.

        Raises:
            ImageError: the image cannot be read.
            SettingsError: top_k is below 1 or above the number of rows in the gallery.
        """
        if not 1 <= top_k <= len(self.gps_gallery):
            raise SettingsError(f"top_k must be between 1 and {len(self.gps_gallery)}, got {top_k}.")
        pixels = self.image_encoder.preprocess_image(load_image(image_path)).to(self.logit_scale.device)
        index = self._gallery_index()
        copies = torch.from_numpy(index.gallery.weights).round().clamp_min(1).long()
        found = index.search(self.encode_image(pixels).cpu(), self.scale, min(top_k, len(copies)))
        repeats = copies[found.rows[0]]
        rows = found.rows[0].repeat_interleave(repeats)[:top_k]
        probabilities = (found.logits[0] - found.log_normalizer).exp().repeat_interleave(repeats)[:top_k]
        return torch.from_numpy(index.gallery.coordinates)[rows], probabilities

    def _gallery_index(self) -> GalleryIndex:
        """Return the gallery's embeddings, computed again when the weights or the gallery have changed."""
        versions = [tensor._version for tensor in (self.gps_gallery, *self.location_encoder.parameters())]
        if self._index is None or self._index[0] is not self.gps_gallery or self._index[1] != versions:
            gallery = Gallery.from_coordinates(self.gps_gallery.cpu().numpy(), name="gps_gallery")
            self._index = self.gps_gallery, versions, GalleryIndex.build(self.location_encoder, gallery)
        return self._index[2]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_index": None}  # read from disk again: not 100 MB in each pickle


def _read_coordinates(location: Tensor | np.ndarray | Sequence[Sequence[float]]) -> Tensor:
    """Return coordinates as a tensor of floating-point numbers."""
    if not isinstance(location, Tensor):
        try:
            location = torch.from_numpy(np.array(location, np.float32))
        except (TypeError, ValueError) as error:
            raise CoordinateError("coordinates must be pairs (lat, lon) in degrees") from error
    return location if location.is_floating_point() else location.float()


def _released_state(prefix: str) -> dict[str, Tensor]:
    """Return the released tensors whose names begin so, without the prefix."""
    tensors = load_release("geoclip").tensors
    return {re.sub(f"^{re.escape(prefix)}", "", name): t for name, t in tensors.items() if name.startswith(prefix)}


def _read_gallery() -> Float32[Tensor, "m 2"]:
    """Return the released gallery, row for row."""
    path = load_release("geoclip").gallery
    assert path is not None
    return torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1).astype(np.float32))
