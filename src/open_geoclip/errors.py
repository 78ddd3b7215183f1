"""The exceptions of this package. Each message names what is wrong and what to do about it."""

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
    "RayError",
    "SettingsError",
    "TextError",
    "TrainingError",
    "WeightsError",
]


class OpenGeoCLIPError(Exception):
    """Base class of all exceptions that this package raises on purpose."""


class CoordinateError(OpenGeoCLIPError, ValueError):
    """A coordinate that is not on Earth, or an array that does not hold coordinates."""


class ImageError(OpenGeoCLIPError, ValueError):
    """An image that cannot be read: ``name`` is the image, ``reason`` what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{name}: {reason}")


class TextError(OpenGeoCLIPError, ValueError):
    """A text that a model cannot encode: empty or too long."""


class DataError(OpenGeoCLIPError, ValueError):
    """A table, folder or shard of photos that cannot be used; the message names the row or file."""


class SettingsError(OpenGeoCLIPError, ValueError):
    """A setting that is unknown or out of range."""


class AreaError(SettingsError):
    """An area (country, box, circle, polygon) that cannot be parsed or contains no place."""


class GalleryError(OpenGeoCLIPError, ValueError):
    """A gallery file that cannot be used."""


class PredictionsError(OpenGeoCLIPError, ValueError):
    """Predictions that cannot be scored; the message names file and row."""


class BenchmarkError(OpenGeoCLIPError, ValueError):
    """Labels or photos of a benchmark that cannot be used, or a gallery that contains test coordinates."""


class ModelNameError(OpenGeoCLIPError, ValueError):
    """A model name that does not follow the grammar ``name | hub:org/repo[@revision] | dir:/folder``."""


class WeightsError(OpenGeoCLIPError, ValueError):
    """Weights that are damaged, of an unknown layout, or do not fit the model."""


class MissingWeightsError(WeightsError):
    """Weights that are not on this machine; the message names the command that downloads them."""


class TrainingError(OpenGeoCLIPError, RuntimeError):
    """A training run that cannot continue; the message names the step and the images, or the file."""


class MetadataError(DataError):
    """Metadata that cannot be parsed, written or removed."""


class RayError(OpenGeoCLIPError, RuntimeError):
    """A Ray cluster that cannot be reached, whose nodes differ, or that has failed."""


class MissingProgramError(OpenGeoCLIPError, RuntimeError):
    """A program that is not installed or too old; the message says how to install it."""


class MissingExtraError(OpenGeoCLIPError, ImportError):
    """An optional dependency that is not installed; the message says which extra to install."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'open-geoclip[{extra}]'")
