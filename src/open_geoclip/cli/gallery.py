"""``geoclip gallery``: describe and encode a gallery."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from open_geoclip.cli._options import Gallery as GalleryFile
from open_geoclip.cli._options import Model
from open_geoclip.cli._output import TextOutput, progress_bar

if TYPE_CHECKING:
    from open_geoclip.model.location_encoder import LocationEncoder
    from open_geoclip.search.gallery import Gallery

__all__ = ["app", "build", "info"]

app = App(name="gallery", help="Describe or encode a gallery: the places that answers are chosen from.")


@app.command
def build(file: GalleryFile = None, /, *, model: Model = "geoclip", output: TextOutput = TextOutput()) -> None:
    """Encode a gallery and cache its embeddings, so that the first photo does not wait.

    A gallery whose embeddings would take more than 1 GiB is searched in two levels: one place per group of neighbours
    is encoded, the others when a photo needs them.
    """
    from open_geoclip.search.search_space import SearchSpace

    gallery, encoder = _opened(file, model)
    with progress_bar("encoding the gallery") as progress:
        index = SearchSpace.build(encoder, gallery, progress=progress).index
    _show(_facts(gallery, encoder) | {"vectors": str(index.path) if index.path else None}, output)


@app.command
def info(file: GalleryFile = None, /, *, model: Model = "geoclip", output: TextOutput = TextOutput()) -> None:
    """Describe a gallery, and whether its embeddings are cached."""
    gallery, encoder = _opened(file, model)
    _show(_facts(gallery, encoder), output)


def _opened(file: Path | None, model: str) -> "tuple[Gallery, LocationEncoder]":
    from open_geoclip.errors import GalleryError
    from open_geoclip.search.gallery import Gallery
    from open_geoclip.weights.load import load_model, load_release

    release = load_release(model)
    path = release.gallery if file is None else file
    if path is None:
        raise GalleryError(f"{model} has no gallery of its own: name a file")
    return Gallery.from_file(path), load_model(release, towers=()).location_encoder


def _facts(gallery: "Gallery", encoder: "LocationEncoder") -> dict[str, Any]:
    from open_geoclip.search.index import GalleryIndex
    from open_geoclip.search.two_level import PlaceGroups, needs_two_levels

    groups = PlaceGroups.build(gallery) if needs_two_levels(encoder, gallery) else None
    path = GalleryIndex.cached_path(encoder, groups.coarse_gallery if groups else gallery)
    coordinates = gallery.coordinates.astype(float).round(5)  # float32 has no more digits
    (south, west), (north, east) = coordinates.min(axis=0).tolist(), coordinates.max(axis=0).tolist()
    return {
        "name": gallery.name,
        "places": len(gallery),
        "weight": float(gallery.weights.sum()),
        "south": south,
        "north": north,
        "west": west,
        "east": east,
        "groups": len(groups) if groups else None,
        "fingerprint": gallery.fingerprint,
        "vectors": str(path) if path.exists() else None,
    }


def _show(facts: dict[str, Any], output: TextOutput) -> None:
    lines = facts | {"vectors": facts["vectors"] or "not encoded yet: geoclip gallery build"}
    lines["groups"] = (
        f"{facts['groups']:,}, searched in two levels" if facts["groups"] else "none, searched in one level"
    )
    output.write(facts, table="".join(f"{key:>12}  {value}\n" for key, value in lines.items()))
