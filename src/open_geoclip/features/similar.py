"""Similarity of location embeddings: similar places, places between two others, and seams at 180 degrees.

Cosines say which places a model treats alike, which is what its training images had in common.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64

from open_geoclip.errors import CoordinateError, SettingsError
from open_geoclip.geo.projections import equal_earth_inverse
from open_geoclip.geo.sphere import check_coordinates, haversine_km
from open_geoclip.model.location_encoder import LocationEncoder

__all__ = ["AlikePlace", "Seams", "between", "seams", "similar_places", "similarity_map"]

_MAP_RATIO = 0.4867  # height by width of an Equal Earth map


@dataclass(frozen=True)
class AlikePlace:
    """A similar place: degrees, cosine of the embeddings, distance from the query."""

    lat: float
    lon: float
    cosine: float
    distance_km: float


@dataclass(frozen=True)
class Seams:
    """Cosines of one place written in two ways; 1 without a seam.

    Attributes:
        antimeridian: longitude 180 and -180 at the given latitude.
        north_pole: longitude 0 and 180.
        south_pole: longitude 0 and 180.
    """

    antimeridian: float
    north_pole: float
    south_pole: float


def similar_places(
    encoder: LocationEncoder,
    place: tuple[float, float],
    candidates: Float64[np.ndarray, "n 2"],
    *,
    top_k: int = 10,
    apart_km: float = 300.0,
) -> list[AlikePlace]:
    """Return the candidates most similar to a place, none near it and no two near each other.

    Args:
        encoder: in evaluation mode.
        place: (lat, lon) in degrees.
        candidates: (lat, lon) to choose from.
        top_k: number of places; fewer if there are no more.
        apart_km: least distance from the place and between results; 0 for plain nearest neighbours.

    Raises:
        CoordinateError: a coordinate is not on Earth, or there is no candidate.
        SettingsError: a setting is out of range.
    """
    return _most_similar(encoder, _encode(encoder, [place])[0], [place], candidates, top_k, apart_km)


def between(
    encoder: LocationEncoder,
    start: tuple[float, float],
    end: tuple[float, float],
    candidates: Float64[np.ndarray, "n 2"],
    *,
    top_k: int = 10,
    share: float = 0.5,
    apart_km: float = 300.0,
) -> list[AlikePlace]:
    """Return the candidates most similar to a point on the arc between two embeddings; see :func:`similar_places`.

    Args:
        encoder: in evaluation mode.
        start: (lat, lon) in degrees; distances are from here.
        end: the other place.
        candidates: (lat, lon) to choose from.
        top_k: number of places.
        share: position on the arc, from 0 (start) to 1 (end).
        apart_km: least distance from both places and between results.

    Raises:
        CoordinateError: a coordinate is not on Earth, or there is no candidate.
        SettingsError: a setting is out of range, or the embeddings are opposite, so that there is no one arc.
    """
    if not 0 <= share <= 1:
        raise SettingsError(f"share: from 0 to 1, not {share}")
    first, last = _encode(encoder, [start, end]).astype(np.float64)
    angle = np.arccos(np.clip(first @ last, -1, 1))
    if angle > np.pi - 1e-3:
        raise SettingsError("the embeddings of the two places are opposite: there is no one way between them")
    if angle < 1e-6:
        middle = first
    else:
        middle = (np.sin((1 - share) * angle) * first + np.sin(share * angle) * last) / np.sin(angle)
    return _most_similar(encoder, middle.astype(np.float32), [start, end], candidates, top_k, apart_km)


def similarity_map(
    encoder: LocationEncoder, place: tuple[float, float], width: int = 240
) -> Float32[np.ndarray, "h {width}"]:
    """Return the cosines of a place with the whole Earth as an Equal Earth map, NaN outside it, north up.

    Args:
        encoder: in evaluation mode.
        place: (lat, lon) in degrees.
        width: pixels, from 16 to 4096; the height is 0.4867 of it.

    Raises:
        CoordinateError: the place is not on Earth.
        SettingsError: the width is out of range.
    """
    if not 16 <= width <= 4096:
        raise SettingsError(f"the width of a map is 16 to 4096 pixels, not {width}")
    height = round(width * _MAP_RATIO)
    x = (np.arange(width) + 0.5) / width * 2 - 1
    y = _MAP_RATIO * (1 - (np.arange(height) + 0.5) / height * 2)
    places = equal_earth_inverse(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    on = (np.abs(places[:, 1]) <= 180) & (np.abs(places[:, 0]) < 90)
    out = np.full(len(places), np.nan, np.float32)
    out[on] = _encode(encoder, places[on]) @ _encode(encoder, [place])[0]
    return out.reshape(height, width)


def seams(encoder: LocationEncoder, lat: float = 0.0) -> Seams:
    """Return whether an encoder treats one place as two, at 180 degrees and at the poles."""
    pairs = [(lat, 180.0), (lat, -180.0), (90.0, 0.0), (90.0, 180.0), (-90.0, 0.0), (-90.0, 180.0)]
    embeddings = _encode(encoder, pairs)
    return Seams(*(float(a @ b) for a, b in zip(embeddings[::2], embeddings[1::2], strict=True)))


def _encode(
    encoder: LocationEncoder, places: "list[tuple[float, float]] | Float64[np.ndarray, 'n 2']"
) -> Float32[np.ndarray, "n k"]:
    coordinates = check_coordinates(np.asarray(places, np.float64))
    embeddings: Float32[np.ndarray, "n k"] = encoder.encode(torch.from_numpy(np.ascontiguousarray(coordinates))).numpy()
    return embeddings


def _most_similar(
    encoder: LocationEncoder,
    embedding: Float32[np.ndarray, " k"],
    away_from: list[tuple[float, float]],
    candidates: Float64[np.ndarray, "n 2"],
    top_k: int,
    apart_km: float,
) -> list[AlikePlace]:
    if top_k < 1 or apart_km < 0:
        raise SettingsError(f"top_k is 1 or more and apart_km 0 or more, not {top_k} and {apart_km}")
    if len(candidates) == 0:
        raise CoordinateError("there is no candidate to choose from")
    cosines = _encode(encoder, candidates) @ embedding
    taken = np.array(away_from, np.float64)
    found: list[AlikePlace] = []
    for row in np.argsort(-cosines, kind="stable"):
        if len(found) == top_k:
            break
        here = candidates[row]
        distances = haversine_km(here[None].astype(np.float64), taken)
        if apart_km and distances.min() < apart_km:
            continue
        found.append(AlikePlace(float(here[0]), float(here[1]), float(cosines[row]), float(distances[0])))
        taken = np.concatenate([taken, here[None]])
    return found
