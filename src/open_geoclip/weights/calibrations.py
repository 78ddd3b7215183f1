"""Calibrations that users fitted on photos of their own: one file for each pair of weights and gallery.

They are in the folder ``calibrations`` of our cache, and take the place of the calibration that comes with the weights.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.files import atomic_write, cache_dir

__all__ = ["UserCalibration", "find_calibration", "user_calibrations"]

_FORMAT = "open-geoclip-calibration"
_KEY = 32  # digits of each hash in a file's name


@dataclass(frozen=True)
class UserCalibration:
    """A calibration and what it is for.

    Attributes:
        model: name of the model, for readers.
        gallery: name of the gallery, for readers.
        weights_sha256: of the weights it was fitted with.
        gallery_sha256: fingerprint of the gallery.
        calibration: the parameters, as :meth:`open_geoclip.search.calibration.Calibration.to_dict` gives them.
    """

    model: str
    gallery: str
    weights_sha256: str
    gallery_sha256: str
    calibration: dict[str, Any]

    @classmethod
    def from_file(cls, path: Path) -> "UserCalibration":
        """Read a file that :meth:`to_json` wrote.

        Raises:
            WeightsError: it cannot be read, or is not a calibration.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise WeightsError(f"{path} is not JSON, as geoclip calibrate writes it: {error}") from error
        if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
            raise WeightsError(f"{path} is not a calibration, as geoclip calibrate writes it")
        texts = ("model", "gallery", "weights_sha256", "gallery_sha256")
        if set(values) != {*texts, "calibration"} or not all(isinstance(values[name], str) for name in texts):
            raise WeightsError(f"{path}: a calibration has {', '.join(texts)} and calibration")
        parameters = values["calibration"]
        if not isinstance(parameters, dict) or not {"n_images", "fitted_on"} <= parameters.keys():
            raise WeightsError(f"{path}: its calibration lacks parameters")
        return cls(**values)

    def to_json(self) -> str:
        """Return the content of a file."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n"

    @property
    def path(self) -> Path:
        """Where it is kept, to be used."""
        return _path(self.weights_sha256, self.gallery_sha256)

    def save(self) -> None:
        """Keep it: locators of these weights and this gallery use it from now on.

        Raises:
            WeightsError: the cache cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, self.to_json())
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def check(self, weights_sha256: str, gallery_sha256: str) -> None:
        """Check that it was fitted with some weights and gallery.

        Raises:
            SettingsError: it was fitted with others.
        """
        for what, own, other in (
            ("weights", self.weights_sha256, weights_sha256),
            ("gallery", self.gallery_sha256, gallery_sha256),
        ):
            if own != other:
                raise SettingsError(
                    f"this calibration is for {self.model} over {self.gallery}: its {what} has the hash {own[:12]}, "
                    f"the one named here {other[:12]}"
                )


def find_calibration(weights_sha256: str, gallery_sha256: str) -> UserCalibration | None:
    """Return the user's own calibration of weights over a gallery; None if there is none.

    Raises:
        WeightsError: its file is damaged; the message says what to do.
    """
    path = _path(weights_sha256, gallery_sha256)
    if not path.exists():
        return None
    try:
        found = UserCalibration.from_file(path)
        found.check(weights_sha256, gallery_sha256)
    except (WeightsError, SettingsError) as error:
        raise WeightsError(f"{error}: delete {path}, or fit it again with geoclip calibrate") from error
    return found


def user_calibrations() -> Iterator[UserCalibration]:
    """Yield all calibrations that are kept.

    Raises:
        WeightsError: a file is damaged.
    """
    for path in sorted((cache_dir() / "calibrations").glob("*.json")):
        yield UserCalibration.from_file(path)


def _path(weights_sha256: str, gallery_sha256: str) -> Path:
    return cache_dir() / "calibrations" / f"{weights_sha256[:_KEY]}-{gallery_sha256[:_KEY]}.json"
