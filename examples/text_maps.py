"""Four texts as heat maps in one image: ``python examples/text_maps.py docs/text-maps.png``, part of `make texts`."""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

TEXTS = ("a hot desert", "tropical jungle", "fjords", "vineyards and olives")
WIDTH = 900  # pixels of one map


def main(output: Path) -> None:
    """Draw each map with ``geoclip text``, then put two in a row."""
    with tempfile.TemporaryDirectory() as name:
        tiles = []
        for number, text in enumerate(TEXTS):
            path = Path(name, f"{number}.png")
            command = [sys.executable, "-m", "open_geoclip.cli", "text", text, "--map", str(path)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            with Image.open(path) as map_:
                tiles.append(map_.convert("RGB").resize((WIDTH, round(WIDTH * map_.height / map_.width))))
    height = tiles[0].height
    whole = Image.new("RGB", (2 * WIDTH, 2 * height), "white")
    for number, tile in enumerate(tiles):
        whole.paste(tile, (number % 2 * WIDTH, number // 2 * height))
    whole.quantize(128).save(output, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
