"""Location embeddings as a scikit-learn transformer.

::

    from open_geoclip.features import LocationFeatures
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(LocationFeatures("geoclip"), LogisticRegression(max_iter=1000))
    model.fit([[48.86, 2.35], [-33.86, 151.21]], ["Europe", "Oceania"])
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64

from open_geoclip.data.columns import LATITUDE, LONGITUDE, Column, find_columns
from open_geoclip.errors import CoordinateError, MissingExtraError, SettingsError, WeightsError

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data
except ImportError as error:
    raise MissingExtraError("LocationFeatures", "features") from error

if TYPE_CHECKING:
    from sklearn.utils import Tags

__all__ = ["LocationFeatures"]


class LocationFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Embeddings of places as float32 features, a row per place in the same order.

    Takes rows of (lat, lon) in degrees: an array, a list, a pandas or polars DataFrame, or a GeoSeries or GeoDataFrame
    of points (converted to EPSG:4326). Fitting learns nothing without ``n_components``. A fitted transformer is pickled
    without the encoder's weights, which it loads again by name and checks.

    Args:
        model: ``geoclip`` (released), ``earth`` (embedded), ``hub:org/repo@revision`` or ``dir:/folder``.
        levels: one or several of the encoder's resolutions, 0 is the coarsest; default: all.
        combine: ``sum`` of the levels, as in the model, or ``concat``.
        normalize: to length 1 (with ``concat``, each level's part).
        n_components: number of principal components to keep; below 1, the share of the variance to explain.
        missing: a row without a coordinate is an ``error``, or its features are ``nan`` or ``zero``.
        columns: names of the columns of latitude and longitude in a DataFrame; default: found by common names.
        dtype: of the networks: ``float32``, ``bfloat16`` or ``auto``. Fourier phases are float64.

    Attributes:
        n_features_in_: 2.
        fingerprint_: of the weights that it was fitted with.
        mean_, components_, explained_variance_ratio_: of the principal components, with ``n_components``.
    """

    fingerprint_: str
    mean_: Float64[np.ndarray, " d"]
    components_: Float32[np.ndarray, "k d"]
    explained_variance_ratio_: Float64[np.ndarray, " k"]

    def __init__(
        self,
        model: str = "geoclip",
        *,
        levels: int | Sequence[int] | None = None,
        combine: Literal["sum", "concat"] = "sum",
        normalize: bool = True,
        n_components: int | float | None = None,
        missing: Literal["error", "nan", "zero"] = "error",
        columns: tuple[str, str] | None = None,
        dtype: Literal["auto", "float32", "bfloat16"] = "float32",
    ) -> None:
        self.model = model
        self.levels = levels
        self.combine = combine
        self.normalize = normalize
        self.n_components = n_components
        self.missing = missing
        self.columns = columns
        self.dtype = dtype

    def fit(self, X: Any, y: object = None) -> "LocationFeatures":  # noqa: N803  # scikit-learn's name
        """Load the encoder, and fit the principal components if there are any.

        Raises:
            CoordinateError: a row is not a place; the message names the first one.
            SettingsError: a setting is out of range.
            ModelNameError: the model's name does not follow the grammar.
            WeightsError: the weights are missing or damaged; the message says what to do.
        """
        from open_geoclip.features.encoding import checked_rows, open_encoder, select_levels

        coordinates = self._coordinates(X, reset=True)
        if len(coordinates) == 0:
            raise CoordinateError("0 sample(s) to fit on, while a minimum of 1 is required.")
        if self.combine not in ("sum", "concat"):
            raise SettingsError(f"combine: sum or concat, not {self.combine!r}")
        if self.missing not in ("error", "nan", "zero"):
            raise SettingsError(f"missing: error, nan or zero, not {self.missing!r}")
        coordinates, absent = checked_rows(coordinates, self.missing)
        self._encoder, self.fingerprint_ = open_encoder(self.model, self.dtype)
        self._levels = select_levels(self.levels, len(self._encoder.levels))
        self._width = self._encoder.settings.output * (len(self._levels) if self.combine == "concat" else 1)
        if self.n_components is not None:
            self._fit_components(coordinates[~absent])
        return self

    def transform(self, X: Any) -> Float32[np.ndarray, "n k"]:  # noqa: N803
        """Return the embeddings of places; with ``set_output`` as a DataFrame.

        Raises:
            CoordinateError: a row is not a place; the message names the first one.
            WeightsError: the weights have changed since the transformer was fitted and pickled.
        """
        check_is_fitted(self)
        from open_geoclip.features.encoding import checked_rows

        coordinates, absent = checked_rows(self._coordinates(X, reset=False), self.missing)
        reduced = self.n_components is not None
        out = np.empty((len(coordinates), len(self.components_) if reduced else self._width), np.float32)
        start = 0
        for part in self._parts(coordinates, absent):
            stop = start + len(part)
            out[start:stop] = (part - self.mean_.astype(np.float32)) @ self.components_.T if reduced else part
            start = stop
        if reduced and self.missing == "zero":
            out[absent] = 0.0  # a vector of zeros has components of its own
        return out

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return names such as ``location_0`` of a sum, ``location_level2_0`` of a level, ``location_pc0``."""
        check_is_fitted(self)
        _check_feature_names_in(self, input_features, generate_names=False)
        if self.n_components is not None:
            names = [f"location_pc{i}" for i in range(len(self.components_))]
        elif self.combine == "concat" or len(self._levels) == 1:
            size = self._width // len(self._levels)
            names = [f"location_level{level}_{i}" for level in self._levels for i in range(size)]
        else:
            names = [f"location_{i}" for i in range(self._width)]
        return np.array(names, dtype=object)

    def _fit_components(self, coordinates: Float64[np.ndarray, "n 2"]) -> None:
        """Fit principal components by the covariance, chunk by chunk: memory does not grow with the rows."""
        wanted, most = self.n_components, min(len(coordinates), self._width)
        assert wanted is not None
        share = isinstance(wanted, float)
        if isinstance(wanted, bool) or not (0 < wanted < 1 if share else 1 <= wanted <= most):
            raise SettingsError(
                f"n_components: a whole number from 1 to {most} (there are {len(coordinates):,} places, and vectors of "
                f"{self._width}) or a share of the variance between 0 and 1, not {wanted!r}"
            )
        total, products = np.zeros(self._width), np.zeros((self._width, self._width))
        for part in self._parts(coordinates, np.zeros(len(coordinates), bool)):
            double = part.astype(np.float64)
            total += double.sum(axis=0)
            products += double.T @ double
        self.mean_ = total / len(coordinates)
        covariance = products / len(coordinates) - np.outer(self.mean_, self.mean_)
        values, directions = np.linalg.eigh(covariance)
        values, directions = values[::-1].clip(min=0), directions[:, ::-1].T
        ratio = values / max(values.sum(), np.finfo(np.float64).tiny)
        keep = int(np.searchsorted(ratio.cumsum(), wanted) + 1) if share else int(wanted)
        largest = np.abs(directions).argmax(axis=1)
        signs = np.sign(directions[np.arange(len(directions)), largest])  # the same in every run, as in scikit-learn
        self.components_ = (directions * signs[:, None])[:keep].astype(np.float32)
        self.explained_variance_ratio_ = ratio[:keep]

    def _parts(
        self, coordinates: Float64[np.ndarray, "n 2"], absent: Bool[np.ndarray, " n"]
    ) -> Iterator[Float32[np.ndarray, "m d"]]:
        from open_geoclip.features.encoding import open_encoder, vectors_by_chunk

        if "_encoder" not in vars(self):
            self._encoder, fingerprint = open_encoder(self.model, self.dtype)
            if fingerprint != self.fingerprint_:
                raise WeightsError(
                    f"{self.model}: these are not the weights that the transformer was fitted with "
                    f"({fingerprint[:12]}, then {self.fingerprint_[:12]}); fit it again"
                )
        return vectors_by_chunk(
            self._encoder,
            coordinates,
            absent,
            missing=self.missing,
            levels=self._levels,
            combine=self.combine,
            normalize=self.normalize,
        )

    def _coordinates(self, X: Any, *, reset: bool) -> Float64[np.ndarray, "n 2"]:  # noqa: N803
        """Rows of (lat, lon), NaN where there is none; remembers or compares the names of the columns."""
        how: dict[str, Any] = {"dtype": np.float64, "ensure_all_finite": False, "ensure_min_samples": 0}
        if hasattr(X, "crs") and hasattr(X, "geometry") and self.columns is None:
            rows = _points(X.geometry)
            return validate_data(self, X=rows, reset=True, **how) if reset else rows
        given = X[_coordinate_columns(list(X.columns), self.columns)] if hasattr(X, "columns") else X
        if getattr(given, "dtype", None) == np.float16:
            raise CoordinateError("coordinates must be float32 or float64: float16 moves a place by kilometres")
        rows = validate_data(self, X=given, reset=reset, **how)
        if rows.shape[1] != 2:
            raise CoordinateError(f"places have two features, lat and lon; these have {rows.shape[1]} feature(s)")
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_encoder"}

    def __sklearn_tags__(self) -> "Tags":
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing != "error"
        tags.transformer_tags.preserves_dtype = []  # float32 comes out, whatever goes in
        return tags


def _coordinate_columns(names: Sequence[Any], given: tuple[Any, Any] | None) -> list[Any]:
    """The names of the columns of latitude and longitude, which need not be text."""
    present = ", ".join(str(name) for name in names[:20]) or "none"
    if given is not None:
        absent = [name for name in given if name not in names]
        if absent:
            raise CoordinateError(f"the DataFrame has no column {absent[0]!r}; its columns are {present}")
        return list(given)
    # x and y of a DataFrame may be anything; in a file of places they are what map software writes.
    found = find_columns([str(name) for name in names], {"lat": Column(LATITUDE[:-1]), "lon": Column(LONGITUDE[:-1])})
    if len(found) < 2:
        raise CoordinateError(f"the DataFrame has no columns lat and lon, only {present}; name them with columns=")
    return [names[found["lat"]], names[found["lon"]]]


def _points(geometry: Any) -> Float64[np.ndarray, "n 2"]:
    """Rows of (lat, lon) of a GeoSeries; NaN where it has no point."""
    if geometry.crs is None:
        raise CoordinateError(
            "the geometry does not say its reference system: set_crs(4326) if x is longitude and y latitude"
        )
    others = sorted(set(geometry.geom_type.dropna()) - {"Point"})
    if others:
        raise CoordinateError(
            f"places are points, the geometry holds {', '.join(others)} too: take its representative_point()"
        )
    there = geometry.to_crs(4326)
    return np.stack([there.y, there.x], axis=1).astype(np.float64)
