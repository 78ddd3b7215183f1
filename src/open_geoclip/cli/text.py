"""``geoclip text``: where on Earth words lead."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from open_geoclip.cli._answers import AnswerFormat, chosen, draw, in_detail, write
from open_geoclip.cli._shared import load_locator, show_log

__all__ = ["text"]


def text(
    texts: list[str],
    /,
    *,
    model: str = "earth",
    backbone: str | None = None,
    gallery: Path | None = None,
    top_k: int = 5,
    format_: Annotated[AnswerFormat | None, Parameter(name="--format")] = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    detail: bool | None = None,
    map_: Annotated[Path | None, Parameter(name="--map")] = None,
) -> None:
    """Say where on Earth words lead, such as "a hot desert".

    Args:
        texts: Texts, each in quotation marks.
        model: earth (embedded), geoclip (released, with a CLIP as backbone), hub:org/repo@revision or dir:/folder.
        backbone: Where the CLIP is whose text half is used, such as dir:/clip; the one that the model names when not
            given.
        gallery: Places to choose from: CSV, GeoJSON or Parquet; the model's own when not given.
        top_k: Candidates a text.
        format_: A table to read, or a file: JSON, CSV, GeoJSON, KML, KMZ, Parquet or HTML, a report that works from
            disk. When not given, what the name of --output ends in, else a table.
        output: A file to write instead of stdout.
        detail: Say the regions that hold 50 and 90 % and where the probability lies; when not given, in the files that
            show them on a map (GeoJSON, KML, KMZ, HTML).
        map_: A PNG to draw into: the probabilities of one text, or the candidates of several.
    """
    show_log()
    format_ = chosen(format_, output)
    locator = load_locator(model, backbone=backbone, gallery=gallery, towers=("text",))
    query = locator.query_texts(texts)
    located = list(locator.answer([query], top_k, detail=in_detail(detail, format_)))
    answers = [answer for answer, _ in located]
    write(answers, format_, output, max_pixels=locator.encoding.max_pixels)
    if map_ is not None:
        draw(map_, answers, located[0][1])
