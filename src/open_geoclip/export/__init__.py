"""Answers as files and maps; here nothing is computed that search has not answered."""

from open_geoclip.export.geopackage import to_geodataframe

__all__ = ["to_geodataframe"]
