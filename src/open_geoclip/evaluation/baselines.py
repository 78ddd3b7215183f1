"""The image-to-image baseline: a photo was taken where the photos that look most like it were taken.

Im2GPS (Hays and Efros, CVPR 2008) on the features of a frozen backbone. It shares data and features with the
model it is held against, and its one setting is chosen on validation images.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from open_geoclip.geo.sphere import EARTH_RADIUS_KM, haversine_km, unit_vectors

__all__ = ["nearest_images", "neighbour_places", "tuned_k"]

_RADIUS_KM = 200.0


@torch.inference_mode()
def nearest_images(
    known: Float[Tensor, "m d"], queries: Float[Tensor, "n d"], k: int, *, chunk: int = 8192
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Cosines and rows of the k most alike images, best first.

    Features are standardised by the known images, without which a few loud channels decide.

    Args:
        known: features of images whose places are known.
        queries: features of images to locate.
        k: neighbours an image.
        chunk: known images at a time.
    """
    sample = known[:4096].float()
    mean = sample.mean(dim=0)
    # A single image has no spread: its channels stay as they are.
    std = sample.std(dim=0) + 1e-3 if len(sample) > 1 else torch.ones_like(mean)

    def unit(features: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        return F.normalize((features.float() - mean) / std, dim=1)

    asked = unit(queries)
    best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(known), chunk):
        cosine = asked @ unit(known[start : start + chunk]).T
        here, at = cosine.topk(min(k, cosine.shape[1]), dim=1)
        best, order = torch.cat([best, here], dim=1).topk(min(k, best.shape[1] + here.shape[1]), dim=1)
        rows = torch.cat([rows, at + start], dim=1).gather(1, order)
    return best, rows


def neighbour_places(
    cosines: Float[Tensor, "n k"], rows: Int64[Tensor, "n k"], coordinates: Float64[Tensor, "m 2"]
) -> Float64[Tensor, "n 2"]:
    """Return, for each image, the place of the neighbour with the largest sum of cosines within 200 km."""
    vectors = unit_vectors(coordinates)[rows]
    near = vectors @ vectors.transpose(1, 2) > torch.cos(torch.tensor(_RADIUS_KM / EARTH_RADIUS_KM))
    support = (near * cosines.clamp_min(0)[:, None, :]).sum(dim=2)
    # Among equals the most alike image, which stands first.
    return coordinates[rows.gather(1, support.argmax(dim=1, keepdim=True))[:, 0]]


def tuned_k(
    cosines: Float[Tensor, "n k"],
    rows: Int64[Tensor, "n k"],
    coordinates: Float64[Tensor, "m 2"],
    truth: Float64[Tensor, "n 2"],
) -> int:
    """Return the number of neighbours that locates most validation images within 200 km."""

    def share(k: int) -> float:
        places = neighbour_places(cosines[:, :k], rows[:, :k], coordinates)
        return float((haversine_km(places, truth) <= _RADIUS_KM).double().mean())

    return max((k for k in (1, 3, 5, 10, 20, 40) if k <= rows.shape[1]), key=share)
