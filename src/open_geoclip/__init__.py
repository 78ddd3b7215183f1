"""Estimate where on Earth a photo was taken.

::

    from open_geoclip import Locator

    answers = Locator.from_pretrained("earth").locate(["a.jpg", "b.jpg"], top_k=5)

Modules are imported at the first use of their names, so importing the package takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from open_geoclip._version import __version__
from open_geoclip.errors import (
    AreaError,
    CoordinateError,
    DataError,
    GalleryError,
    ImageError,
    MissingExtraError,
    MissingWeightsError,
    ModelNameError,
    OpenGeoCLIPError,
    PredictionsError,
    SettingsError,
    TrainingError,
    WeightsError,
)

if TYPE_CHECKING:
    from open_geoclip.geo.areas import Area
    from open_geoclip.images import find_images, load_image
    from open_geoclip.metadata.read import PhotoPlace, read_place
    from open_geoclip.model.geoclip import GeoCLIP
    from open_geoclip.model.image_encoder import ImageEncoder
    from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
    from open_geoclip.model.preprocessing import Preprocessing
    from open_geoclip.search.answer import Answer, Candidate
    from open_geoclip.search.calibration import Calibration
    from open_geoclip.search.describe import AnswerSettings
    from open_geoclip.search.explanation import Explanation
    from open_geoclip.search.gallery import Gallery
    from open_geoclip.search.locator import Locator
    from open_geoclip.search.posterior import Posterior
    from open_geoclip.search.reliability import Reliability
    from open_geoclip.verification import Verification, verify

_HOME = {
    "Answer": "search.answer",
    "AnswerSettings": "search.describe",
    "Area": "geo.areas",
    "Calibration": "search.calibration",
    "Candidate": "search.answer",
    "Explanation": "search.explanation",
    "Gallery": "search.gallery",
    "GeoCLIP": "model.geoclip",
    "ImageEncoder": "model.image_encoder",
    "LocationEncoder": "model.location_encoder",
    "LocationSettings": "model.location_encoder",
    "Locator": "search.locator",
    "PhotoPlace": "metadata.read",
    "Posterior": "search.posterior",
    "Preprocessing": "model.preprocessing",
    "Reliability": "search.reliability",
    "Verification": "verification",
    "find_images": "images",
    "load_image": "images",
    "read_place": "metadata.read",
    "verify": "verification",
}

__all__ = [
    "Answer",
    "AnswerSettings",
    "Area",
    "AreaError",
    "Calibration",
    "Candidate",
    "CoordinateError",
    "DataError",
    "Explanation",
    "Gallery",
    "GalleryError",
    "GeoCLIP",
    "ImageEncoder",
    "ImageError",
    "LocationEncoder",
    "LocationSettings",
    "Locator",
    "MissingExtraError",
    "MissingWeightsError",
    "ModelNameError",
    "OpenGeoCLIPError",
    "PhotoPlace",
    "Posterior",
    "PredictionsError",
    "Preprocessing",
    "Reliability",
    "SettingsError",
    "TrainingError",
    "Verification",
    "WeightsError",
    "__version__",
    "find_images",
    "load_image",
    "read_place",
    "verify",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
