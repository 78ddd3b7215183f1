"""``make demo``: locate the first six test views of the Earth; write views, answers and a map to ``demo/``."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from open_geoclip.cli._options import ModelOptions
from open_geoclip.data.earth_views import views
from open_geoclip.export.maps import LocatedImage, draw_answers
from open_geoclip.geo.sphere import geodesic_km

FOLDER = Path("demo")


def main() -> None:
    """Render the views, locate them, print a table and draw the map."""
    FOLDER.mkdir(exist_ok=True)
    batch = next(views("test", 6))
    paths = []
    for number, image in enumerate(batch.images, 1):
        paths.append(FOLDER / f"view_{number}.png")
        Image.fromarray(image).save(paths[-1])
    locator = ModelOptions(model="earth").load()
    answers = locator.locate(paths)
    (FOLDER / "answers.json").write_text(json.dumps([answer.to_dict() for answer in answers], indent=2))

    best = np.array([[answer.candidates[0].lat, answer.candidates[0].lon] for answer in answers])
    distances = geodesic_km(batch.coordinates, best)
    print("view                truth (lat, lon)     answer (lat, lon)    distance  sure")
    for answer, truth, place, km in zip(answers, batch.coordinates, best, distances, strict=True):
        places = f"{truth[0]:>9.3f} {truth[1]:>9.3f}   {place[0]:>9.3f} {place[1]:>9.3f}"
        print(f"{answer.image:<16} {places} {km:>9.0f} km  {'yes' if answer.sure else 'no'}")
    draw_answers(
        FOLDER / "demo.png",
        [
            LocatedImage(
                image=Image.fromarray(image),
                name=f"view {number}",
                candidates=np.array([(c.lat, c.lon) for c in answer.candidates]),
                probabilities=np.array([c.probability for c in answer.candidates]),
                truth=(float(truth[0]), float(truth[1])),
                sure=answer.sure,
            )
            for number, image, answer, truth in zip(range(1, 7), batch.images, answers, batch.coordinates, strict=True)
        ],
        note=f"Estimates by {answers[0].model}. Views rendered from NASA's Blue Marble.",
    )
    print(f"drawn into {FOLDER / 'demo.png'}", file=sys.stderr)


if __name__ == "__main__":
    main()
