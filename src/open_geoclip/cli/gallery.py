"""``geoclip gallery``: the places that answers are chosen from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from open_geoclip.cli._shared import progress_bar, show_log, write_output

if TYPE_CHECKING:
    from open_geoclip.model.location_encoder import LocationEncoder
    from open_geoclip.search.gallery import Gallery

__all__ = ["app", "build", "info"]

app = App(name="gallery", help="The places that answers are chosen from.")


@app.command
def build(
    file: Path | None = None,
    /,
    *,
    model: str = "geoclip",
    format_: Annotated[Literal["table", "json"], Parameter(name="--format")] = "table",
) -> None:
    """Encode a gallery's location vectors and keep them, so that the first photo need not wait.

    Args:
        file: Places as CSV (lat, lon), GeoJSON or Parquet; the model's own gallery when not given.
        model: The weights to encode with: geoclip, earth, hub:org/repo@revision or dir:/folder.
        format_: A table to read, or JSON.
    """
    show_log()
    from open_geoclip.search.index import GalleryIndex

    gallery, encoder = _opened(file, model)
    with progress_bar("encoding the gallery") as progress:
        index = GalleryIndex.build(encoder, gallery, progress=progress)
    _show(_facts(gallery, encoder) | {"vectors": str(index.path) if index.path else None}, format_)


@app.command
def info(
    file: Path | None = None,
    /,
    *,
    model: str = "geoclip",
    format_: Annotated[Literal["table", "json"], Parameter(name="--format")] = "table",
) -> None:
    """Tell what a gallery holds and whether its vectors are kept already.

    Args:
        file: Places as CSV (lat, lon), GeoJSON or Parquet; the model's own gallery when not given.
        model: The weights that the vectors would be for.
        format_: A table to read, or JSON.
    """
    show_log()
    gallery, encoder = _opened(file, model)
    _show(_facts(gallery, encoder), format_)


def _opened(file: Path | None, model: str) -> "tuple[Gallery, LocationEncoder]":
    from open_geoclip import pretrained
    from open_geoclip.errors import GalleryError
    from open_geoclip.model.location_encoder import LocationEncoder
    from open_geoclip.search.gallery import Gallery

    release = pretrained.load(model)
    path = release.gallery if file is None else file
    if path is None:
        raise GalleryError(f"{model} has no gallery of its own: name a file")
    return Gallery.from_file(path), LocationEncoder.from_release(release)


def _facts(gallery: "Gallery", encoder: "LocationEncoder") -> dict[str, Any]:
    from open_geoclip.search.index import GalleryIndex

    path = GalleryIndex.cached_path(encoder, gallery)
    south, west = gallery.coordinates.min(axis=0).tolist()
    north, east = gallery.coordinates.max(axis=0).tolist()
    return {
        "name": gallery.name,
        "places": len(gallery),
        "weight": float(gallery.weights.sum()),
        "south": south,
        "north": north,
        "west": west,
        "east": east,
        "fingerprint": gallery.fingerprint,
        "vectors": str(path) if path.exists() else None,
    }


def _show(facts: dict[str, Any], format_: str) -> None:
    if format_ == "json":
        write_output(json.dumps(facts, indent=2) + "\n", None)
        return
    shown = facts | {"vectors": facts["vectors"] or "not encoded yet: geoclip gallery build"}
    write_output("".join(f"{key:>12}  {value}\n" for key, value in shown.items()), None)
