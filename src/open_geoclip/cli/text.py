"""``geoclip text``: find where on Earth a text fits."""

from open_geoclip.cli._answers import draw_answers, write_answers
from open_geoclip.cli._options import Map, ModelOptions
from open_geoclip.cli._output import DetailOutput

__all__ = ["text"]


def text(
    texts: list[str],
    /,
    *,
    options: ModelOptions = ModelOptions(),
    top_k: int = 5,
    output: DetailOutput = DetailOutput(),
    map_: Map = None,
) -> None:
    """Find where on Earth a text fits, such as "a hot desert".

    Args:
        texts: Texts, each in quotation marks.
        top_k: Candidates per text.
    """
    locator = options.load(towers=("text",))
    located = list(locator.answer([locator.query_texts(texts)], top_k, detail=output.has_detail))
    answers = [answer for answer, _ in located]
    write_answers(answers, output, max_pixels=locator.encoding.max_pixels)
    if map_ is not None:
        draw_answers(map_, answers, located[0][1])
