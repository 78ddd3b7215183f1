"""Images: where they come from, how they are decoded, which way is up."""

from open_geoclip.images.decoding import (
    MAX_ASPECT,
    MAX_PIXELS,
    load_image,
    open_header,
    open_image,
    quiet_pillow,
    sniff,
)
from open_geoclip.images.sources import (
    MAX_FILE_BYTES,
    SUFFIXES,
    ImageSource,
    SupportsRead,
    find_images,
    image_name,
    read_bytes,
)
from open_geoclip.images.upright import RESAMPLE, orientation, resize_image, small_jpeg

__all__ = [
    "MAX_ASPECT",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "RESAMPLE",
    "SUFFIXES",
    "ImageSource",
    "SupportsRead",
    "find_images",
    "image_name",
    "load_image",
    "open_header",
    "open_image",
    "orientation",
    "quiet_pillow",
    "read_bytes",
    "resize_image",
    "small_jpeg",
    "sniff",
]
