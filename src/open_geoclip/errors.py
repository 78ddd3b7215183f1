"""Every error this package raises on purpose.

::

    OpenGeoCLIPError
    ├── CoordinateError      (ValueError)   a coordinate that is not on Earth
    ├── ImageError           (ValueError)   a picture that cannot be read; names it
    ├── TextError            (ValueError)   a text that a model cannot read: empty or too long
    ├── DataError            (ValueError)   photos and coordinates that cannot be used as data
    │   └── MetadataError                   metadata that cannot be understood, written or removed
    ├── SettingsError        (ValueError)   a setting that is unknown or out of range
    │   └── AreaError                       limits that cannot be understood, or hold no place
    ├── GalleryError         (ValueError)   a gallery file that cannot be used
    ├── PredictionsError     (ValueError)   predictions that cannot be scored
    ├── BenchmarkError       (ValueError)   labels or photos of a benchmark that cannot be used
    ├── ModelNameError       (ValueError)   a model name that does not follow the grammar
    ├── WeightsError         (ValueError)   weights that are damaged or of another layout
    │   └── MissingWeightsError             weights that are not on this machine yet
    ├── TrainingError        (RuntimeError) a training run that cannot go on
    ├── MissingProgramError  (RuntimeError) a program that is not installed
    └── MissingExtraError    (ImportError)  an optional dependency that is not installed

Each message names the thing that is wrong and what to do about it.
"""

__all__ = [
    "AreaError",
    "BenchmarkError",
    "CoordinateError",
    "DataError",
    "GalleryError",
    "ImageError",
    "MetadataError",
    "MissingExtraError",
    "MissingProgramError",
    "MissingWeightsError",
    "ModelNameError",
    "OpenGeoCLIPError",
    "PredictionsError",
    "SettingsError",
    "TextError",
    "TrainingError",
    "WeightsError",
]


class OpenGeoCLIPError(Exception):
    """The root: catch this to catch everything the package raises on purpose."""


class CoordinateError(OpenGeoCLIPError, ValueError):
    """A coordinate that is not on Earth, or an array that does not hold coordinates."""


class ImageError(OpenGeoCLIPError, ValueError):
    """A picture that cannot be read. ``name`` is the picture, ``reason`` what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{name}: {reason}")


class TextError(OpenGeoCLIPError, ValueError):
    """A text that a model cannot read: empty, or longer than it was made for."""


class DataError(OpenGeoCLIPError, ValueError):
    """A table, folder or shard of photos that cannot be used; says which, where in it, and why."""


class SettingsError(OpenGeoCLIPError, ValueError):
    """A setting that is unknown or out of range."""


class AreaError(SettingsError):
    """Limits (a country, a box, a circle, a polygon) that cannot be understood, or that hold no place."""


class GalleryError(OpenGeoCLIPError, ValueError):
    """A gallery file that cannot be used."""


class PredictionsError(OpenGeoCLIPError, ValueError):
    """Predictions that cannot be scored; says which file, which row and why."""


class BenchmarkError(OpenGeoCLIPError, ValueError):
    """Labels or photos of a benchmark that cannot be used, or a gallery that knows the answers."""


class ModelNameError(OpenGeoCLIPError, ValueError):
    """A model name that does not follow the grammar ``name | hub:org/repo[@revision] | dir:/folder``."""


class WeightsError(OpenGeoCLIPError, ValueError):
    """Weights that are damaged, of an unknown layout, or do not fit the model."""


class MissingWeightsError(WeightsError):
    """Weights that are not on this machine yet; the message says which command brings them."""


class TrainingError(OpenGeoCLIPError, RuntimeError):
    """A training run that cannot go on: names the step and the pictures, or the file that cannot be written."""


class MetadataError(DataError):
    """Metadata of a file that cannot be understood, written or removed."""


class MissingProgramError(OpenGeoCLIPError, RuntimeError):
    """A program that is not installed or too old; the message says how to install it."""


class MissingExtraError(OpenGeoCLIPError, ImportError):
    """An optional dependency that is not installed; the message says which extra to install."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'open-geoclip[{extra}]'")
