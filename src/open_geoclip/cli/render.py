"""``geoclip render``: render a view of the Earth, to try the embedded model with."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from open_geoclip.cli._options import parse_coordinate
from open_geoclip.errors import OpenGeoCLIPError
from open_geoclip.files import atomic_file

__all__ = ["render"]


def render(
    coordinate: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    width_km: float = 800,
    turn_deg: float = 0,
    size: int = 224,
    look: Literal["bluemarble", "shadedrelief"] = "bluemarble",
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
) -> None:
    """Render a view of the Earth as from orbit, and print the file's name.

    Args:
        coordinate: Centre of the view, LAT,LON in degrees.
        width_km: Width on the ground; the embedded model was trained on 300 to 1500.
        turn_deg: Bearing of the top of the view, clockwise from north.
        size: Pixels per side.
        look: NASA's Blue Marble, or a shaded relief.
        output: Image file; default: view_LAT_LON.png.
    """
    import numpy as np
    from PIL import Image

    from open_geoclip.data.earth import Earth

    lat, lon = parse_coordinate(coordinate)
    path = Path(f"view_{lat:.4f}_{lon:.4f}.png") if output is None else output
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise OpenGeoCLIPError(f"{path}: the name of an image file ends in .png, .jpg or .webp")
    view = Earth(look).render(
        np.array([[lat, lon]]), np.array([float(width_km)]), np.array([float(turn_deg)]), size=size
    )[0]
    try:
        with atomic_file(path) as temporary:
            Image.fromarray(view).save(temporary, Image.registered_extensions()[path.suffix.lower()])
    except OSError as error:
        raise OpenGeoCLIPError(f"{path} cannot be written: {error.strerror or error}") from error
    print(path)
