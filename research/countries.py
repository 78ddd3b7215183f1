"""``make places``: the countries' outlines, from the npm package ``world-atlas`` (Natural Earth 1:10m).

TopoJSON keeps each border once, as arcs that polygons share (Bostock and Metcalf, "The TopoJSON Format
Specification", sections 2.1 and 2.2). Here arcs are joined into rings again, cut at 180 degrees, and kept as whole
numbers of the source's own grid, about 400 m wide, from point to point: small when compressed, and nothing is lost.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from open_geoclip.files import atomic_file, sha256
from open_geoclip.geo.countries import CODES, OUTLINES

__all__ = ["main", "ragged"]

_FEWEST = 4  # points of a ring, the first of them twice
_MONACO = (7.4090, 43.7247), (7.4399, 43.7519)  # (lon, lat) of its south-western and north-eastern ends


def _joined(arcs: list[Any], indices: list[int]) -> list[tuple[int, int]]:
    """A ring: arcs one after the other, a negative one backwards, the points where they meet once."""
    ring: list[tuple[int, int]] = []
    for index in indices:
        arc = arcs[index] if index >= 0 else arcs[~index][::-1]
        ring += arc[1:] if ring else arc
    return ring


def _unwrapped(ring: list[tuple[int, int]], turn: int, bottom: int) -> np.ndarray:
    """A ring on the grid without jumps over 180 degrees; one that goes round the south pole is closed below it.

    Args:
        ring: columns and rows of the grid.
        turn: columns in 360 degrees.
        bottom: the row of the south pole.
    """
    points = np.array(ring, np.int64)
    jumps = np.diff(points[:, 0], prepend=points[0, 0])
    points[:, 0] -= turn * np.cumsum(np.round(jumps / turn).astype(np.int64))
    if points[-1, 0] != points[0, 0]:
        ends = np.array([[points[-1, 0], bottom], [points[0, 0], bottom], points[0]])
        points = np.concatenate([points, ends])
    return points


def _cut(outline: list[np.ndarray], turn: int) -> list[Any]:
    """The polygons of an outline that may lie anywhere in longitude, brought between -180 and 180 degrees."""
    low = min(int(ring[:, 0].min()) for ring in outline)
    high = max(int(ring[:, 0].max()) for ring in outline)
    whole = shapely.Polygon(outline[0], outline[1:])
    if low >= 0 and high <= turn:
        return [whole]
    parts: list[Any] = []
    for number in range(low // turn, high // turn + 1):
        box = shapely.box(number * turn, -(10**7), (number + 1) * turn, 10**7)
        piece = shapely.intersection(shapely.make_valid(whole), box)
        moved = shapely.transform(piece, lambda xy, by=number * turn: np.round(xy - [by, 0]))
        parts += [part for part in shapely.get_parts(moved).tolist() if part.geom_type == "Polygon" and part.area > 0]
    return parts


def _give_to_france(outlines: dict[str, list[Any]], bounds: Any) -> None:
    """Cut Monaco to its true bounds: the source draws it over the French towns around it."""
    monaco, france = (next(key for key in outlines if key.endswith(f"|{name}")) for name in ("Monaco", "France"))
    (drawn,) = outlines[monaco]
    on_grid = {"grid_size": 1.0}
    outlines[monaco] = shapely.get_parts(shapely.intersection(drawn, bounds, **on_grid)).tolist()
    outlines[france] += shapely.get_parts(shapely.difference(drawn, bounds, **on_grid)).tolist()


def ragged(topology: dict[str, Any]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names and ids of countries, and their polygons as steps on the source's grid with offsets of rings and parts."""
    (scale_x, scale_y), (west, south) = topology["transform"]["scale"], topology["transform"]["translate"]
    turn, bottom = round(360 / scale_x), round((-90 - south) / scale_y)
    arcs = [[(int(x), int(y)) for x, y in np.cumsum(arc, axis=0)] for arc in topology["arcs"]]
    outlines: dict[str, list[Any]] = {}
    for geometry in topology["objects"]["countries"]["geometries"]:
        parts = geometry["arcs"] if geometry["type"] == "MultiPolygon" else [geometry["arcs"]]
        found = outlines.setdefault(f"{geometry.get('id', '')}|{geometry['properties']['name']}", [])
        for part in parts:
            outline = [_unwrapped(_joined(arcs, indices), turn, bottom) for indices in part]
            if len(outline[0]) >= _FEWEST:  # not an islet smaller than the source's grid
                found += _cut([ring for ring in outline if len(ring) >= _FEWEST], turn)
    west_south, east_north = ((np.array(corner) - (west, south)) / (scale_x, scale_y) for corner in _MONACO)
    _give_to_france(outlines, shapely.box(*np.round(west_south), *np.round(east_north)))
    steps: list[np.ndarray] = []
    rings, polygons, countries = [0], [0], [0]
    for found in outlines.values():
        for polygon in found:
            for ring in (polygon.exterior, *polygon.interiors):
                points = np.asarray(ring.coords).astype(np.int64)
                steps.append(np.diff(points, axis=0, prepend=0))
                rings.append(rings[-1] + len(points))
            polygons.append(polygons[-1] + 1 + len(polygon.interiors))
        countries.append(len(polygons) - 1)
    return list(outlines), {
        "steps": np.concatenate(steps).astype(np.int32),
        "rings": np.array(rings, np.int64),
        "polygons": np.array(polygons, np.int64),
        "countries": np.array(countries, np.int64),
        "grid": np.array([(scale_x, scale_y), (west, south)]),
    }


def main() -> None:
    """Read the package's file and write ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="countries-10m.json of world-atlas 2.0.2")
    source = parser.parse_args().source
    raw = source.read_bytes()
    names, arrays = ragged(json.loads(raw))
    unknown = [name for name in names if name.startswith("|") and name[1:] not in CODES]
    assert not unknown, f"areas without a number that have no code in places/countries.py: {unknown}"
    with atomic_file(OUTLINES) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, names=np.array(names), **arrays)  # type: ignore[arg-type]  # its stub wants a flag
    card = {
        "title": "Outlines of countries, Natural Earth 1:10m",
        "source": "world-atlas 2.0.2 (npm), countries-10m.json",
        "source_sha256": sha256(raw),
        "licence": "Natural Earth is in the public domain; world-atlas is ISC",
        "made_by": "make places",
    }
    OUTLINES.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
