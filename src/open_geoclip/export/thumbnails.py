"""Small pictures for reports: upright, without anything that a photo says of itself."""

import base64
import io

from PIL import Image

from open_geoclip.images import ImageSource, load_image

__all__ = ["thumbnail"]

_SIDE = 320


def thumbnail(image: ImageSource, *, max_pixels: int) -> str:
    """A JPEG of at most 320 pixels a side as a data URI; EXIF, and with it any place, is not in it.

    Raises:
        ImageError: the picture cannot be read.
    """
    picture = load_image(image, max_pixels=max_pixels)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    bare = Image.frombytes("RGB", picture.size, picture.tobytes())  # pixels alone
    file = io.BytesIO()
    bare.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
