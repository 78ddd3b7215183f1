"""Pictures: where they come from, how they are decoded, which way is up."""

from open_geoclip.images.decoding import MAX_ASPECT, MAX_PIXELS, load_image, read_exif, sniff, taken_at
from open_geoclip.images.sources import MAX_FILE_BYTES, SUFFIXES, ImageSource, SupportsRead, find_images, image_name
from open_geoclip.images.upright import RESAMPLE, resize_shortest_edge

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
    "read_exif",
    "resize_shortest_edge",
    "sniff",
    "taken_at",
]
