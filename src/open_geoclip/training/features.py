"""Features of photos with their coordinates, in memory."""

from dataclasses import dataclass

from jaxtyping import Float16, Float64
from torch import Tensor

__all__ = ["FeatureSet"]


@dataclass(frozen=True)
class FeatureSet:
    """Features of pictures and where these were taken.

    Attributes:
        features: of the frozen backbone, float16.
        coordinates: (lat, lon) in degrees.
    """

    features: Float16[Tensor, "n d"]
    coordinates: Float64[Tensor, "n 2"]

    def __len__(self) -> int:
        return len(self.coordinates)

    def first(self, n: int) -> "FeatureSet":
        """The first n pictures."""
        return FeatureSet(self.features[:n], self.coordinates[:n])
