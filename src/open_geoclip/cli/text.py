"""``geoclip text``: find where on Earth a text fits."""

from open_geoclip.cli._answers import draw_answers, has_detail, write_answers
from open_geoclip.cli._options import Detail, Map, ModelOptions, Output
from open_geoclip.cli._output import ANSWER_FORMATS, AnswerFormat, choose_format

__all__ = ["text"]


def text(
    texts: list[str],
    /,
    *,
    options: ModelOptions = ModelOptions(),
    top_k: int = 5,
    format_: AnswerFormat = None,
    output: Output = None,
    detail: Detail = None,
    map_: Map = None,
) -> None:
    """Find where on Earth a text fits, such as "a hot desert".

    Args:
        texts: Texts, each in quotation marks.
        top_k: Candidates per text.
    """
    chosen = choose_format(format_, output, ANSWER_FORMATS)
    locator = options.load(towers=("text",))
    located = list(locator.answer([locator.query_texts(texts)], top_k, detail=has_detail(detail, chosen)))
    answers = [answer for answer, _ in located]
    write_answers(answers, chosen, output, max_pixels=locator.encoding.max_pixels)
    if map_ is not None:
        draw_answers(map_, answers, located[0][1])
