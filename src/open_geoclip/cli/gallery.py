"""``geoclip gallery``: the places that answers are chosen from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from open_geoclip.cli._output import choose, to_json
from open_geoclip.cli._shared import progress_bar, show_log, write_output
from open_geoclip.weights.load import load_model

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
    format_: Annotated[Literal["table", "json"] | None, Parameter(name="--format")] = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
) -> None:
    """Encode a gallery's location vectors and keep them, so that the first photo need not wait.

    Args:
        file: Places as CSV (lat, lon), GeoJSON or Parquet; the model's own gallery when not given.
        model: The weights to encode with: geoclip, earth, hub:org/repo@revision or dir:/folder.
        format_: A table to read, or JSON. When not given, what the name of --output ends in, else a table.
        output: A file to write instead of stdout.
    """
    show_log()
    chosen = choose(format_, output, ("table", "json"))
    from open_geoclip.search.index import GalleryIndex

    gallery, encoder = _opened(file, model)
    with progress_bar("encoding the gallery") as progress:
        index = GalleryIndex.build(encoder, gallery, progress=progress)
    _show(_facts(gallery, encoder) | {"vectors": str(index.path) if index.path else None}, chosen, output)


@app.command
def info(
    file: Path | None = None,
    /,
    *,
    model: str = "geoclip",
    format_: Annotated[Literal["table", "json"] | None, Parameter(name="--format")] = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
) -> None:
    """Tell what a gallery holds and whether its vectors are kept already.

    Args:
        file: Places as CSV (lat, lon), GeoJSON or Parquet; the model's own gallery when not given.
        model: The weights that the vectors would be for.
        format_: A table to read, or JSON. When not given, what the name of --output ends in, else a table.
        output: A file to write instead of stdout.
    """
    show_log()
    chosen = choose(format_, output, ("table", "json"))
    gallery, encoder = _opened(file, model)
    _show(_facts(gallery, encoder), chosen, output)


def _opened(file: Path | None, model: str) -> "tuple[Gallery, LocationEncoder]":
    from open_geoclip.errors import GalleryError
    from open_geoclip.search.gallery import Gallery
    from open_geoclip.weights.load import load_release

    release = load_release(model)
    path = release.gallery if file is None else file
    if path is None:
        raise GalleryError(f"{model} has no gallery of its own: name a file")
    return Gallery.from_file(path), load_model(release, towers=()).location_encoder


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


def _show(facts: dict[str, Any], chosen: str, output: Path | None) -> None:
    if chosen == "json":
        write_output(to_json(facts), output)
        return
    shown = facts | {"vectors": facts["vectors"] or "not encoded yet: geoclip gallery build"}
    write_output("".join(f"{key:>12}  {value}\n" for key, value in shown.items()), output)
