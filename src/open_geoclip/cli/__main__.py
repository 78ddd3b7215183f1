"""``python -m open_geoclip.cli`` is ``geoclip``."""

from open_geoclip.cli import main

main()
