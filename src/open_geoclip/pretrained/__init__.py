"""Pretrained weights: their names, where they lie on this machine, how they are read and written.

This room hands out plain tensors and dicts; it knows no neural network and no picture. Nothing in it
downloads except :func:`pull`.

The names below are looked up on first use, so that listing or pulling weights does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from open_geoclip.pretrained.config import HeadSettings, LocationSettings
    from open_geoclip.pretrained.fetch import pull
    from open_geoclip.pretrained.hub import Listener
    from open_geoclip.pretrained.layouts import Release, load, save_calibration, save_release
    from open_geoclip.pretrained.names import Name, parse_name
    from open_geoclip.pretrained.places import Status, folder, status
    from open_geoclip.pretrained.records import CLIP_PREPROCESSING, RECORDS, Record

__all__ = [
    "CLIP_PREPROCESSING",
    "RECORDS",
    "HeadSettings",
    "Listener",
    "LocationSettings",
    "Name",
    "Record",
    "Release",
    "Status",
    "folder",
    "load",
    "parse_name",
    "pull",
    "save_calibration",
    "save_release",
    "status",
]

_HOME = {
    "CLIP_PREPROCESSING": "records",
    "RECORDS": "records",
    "HeadSettings": "config",
    "Listener": "hub",
    "LocationSettings": "config",
    "Name": "names",
    "Record": "records",
    "Release": "layouts",
    "Status": "places",
    "folder": "places",
    "load": "layouts",
    "parse_name": "names",
    "pull": "fetch",
    "save_calibration": "layouts",
    "save_release": "layouts",
    "status": "places",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
