"""How well texts are located: queries in words that the captions did not use.

Each query names a region: some countries, or some Köppen classes. Of the 100 places of the gallery that the model
finds best for the query, the share that lies in the region is held against chance, which is the share of the whole
gallery that lies there. Queries were written before the model was trained, and nothing was tuned on them. Their
words occur in no caption (:data:`research.captions.HELD_OUT`; a test proves it): "Mongolian", not
"Mongolia"; "tundra", not "a polar climate".

``python -m research.text_queries --model earth`` prints the table in docs/text-queries.md.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from open_geoclip.errors import SettingsError
from open_geoclip.search.locator import Locator
from research.geo_targets import country_codes, koppen

__all__ = [
    "BEST",
    "DESERTS",
    "QUERIES",
    "QueryResult",
    "TextQuery",
    "deserts_lit",
    "evaluate_text",
    "in_region",
    "report",
]

BEST = 100
"""So many places of the gallery are looked at for each query."""

_COLD_FOREST = "Dfc Dfd Dwc Dwd Dsc Dsd"
_SAHARA = "DZ EG EH LY MA ML MR NE SD TD TN"


@dataclass(frozen=True)
class TextQuery:
    """A text and the region it names.

    Attributes:
        text: the query.
        countries: ISO 3166-1 codes, parted by spaces; empty when the region is one of climates.
        climates: Köppen classes, parted by spaces; empty when the region is one of countries.
    """

    text: str
    countries: str = ""
    climates: str = ""

    def __post_init__(self) -> None:
        if bool(self.countries) == bool(self.climates):
            raise SettingsError(f"the query {self.text!r} needs countries or climates, and not both")


QUERIES: tuple[TextQuery, ...] = (
    TextQuery("sand dunes", climates="BWh BWk"),
    TextQuery("camels at an oasis", climates="BWh BWk"),
    TextQuery("a jungle", climates="Af Am"),
    TextQuery("a rainforest with parrots and orangutans", climates="Af Am"),
    TextQuery("an acacia savanna", climates="As Aw BSh"),
    TextQuery("tundra", climates="ET"),
    TextQuery("reindeer on the permafrost", climates=f"ET {_COLD_FOREST}"),
    TextQuery("taiga", climates=_COLD_FOREST),
    TextQuery("boreal larch and spruce", climates=_COLD_FOREST),
    TextQuery("glaciers and icebergs", climates="EF ET"),
    TextQuery("olive groves and vineyards", climates="Csa Csb"),
    TextQuery("monsoon", climates="Af Am Aw Cwa"),
    TextQuery("cactus and badlands", climates="BSh BSk BWh BWk"),
    TextQuery("a steppe", climates="BSh BSk BWk"),
    TextQuery("the Sahara", _SAHARA),
    TextQuery("Saharan sands", _SAHARA),
    TextQuery("Tuareg nomads", "DZ LY ML NE"),
    TextQuery("the Sahel", "BF ER ML MR NE NG SD SN TD"),
    TextQuery("Egyptian pharaohs", "EG"),
    TextQuery("Libyan sands", "LY"),
    TextQuery("a Moroccan oasis", "EH MA"),
    TextQuery("Sudanese savanna", "SD SS"),
    TextQuery("a Nigerian village", "NG"),
    TextQuery("a Kenyan savanna", "KE TZ"),
    TextQuery("Ethiopian coffee", "ET"),
    TextQuery("Congolese rainforest", "CD CG"),
    TextQuery("Namibian dunes", "NA"),
    TextQuery("the Kalahari", "BW NA ZA"),
    TextQuery("Malagasy baobabs", "MG"),
    TextQuery("the Mongolian steppe", "MN"),
    TextQuery("the Gobi", "CN MN"),
    TextQuery("Kazakh steppe", "KZ"),
    TextQuery("Siberian taiga", "RU"),
    TextQuery("the Russian tsar", "RU"),
    TextQuery("Tibetan monasteries", "CN"),
    TextQuery("Himalayan glaciers", "BT CN IN NP PK"),
    TextQuery("Chinese emperors", "CN"),
    TextQuery("Japanese samurai", "JP"),
    TextQuery("the Indian monsoon", "IN"),
    TextQuery("a Pakistani bazaar", "PK"),
    TextQuery("Persian carpets", "IR"),
    TextQuery("Arabian dunes", "AE BH IQ JO KW OM QA SA YE"),
    TextQuery("Turkish Anatolia", "TR"),
    TextQuery("a Thai jungle", "TH"),
    TextQuery("Indonesian rainforest", "ID"),
    TextQuery("orangutans of Borneo", "BN ID MY"),
    TextQuery("kangaroos in the outback", "AU"),
    TextQuery("the Australian bush", "AU"),
    TextQuery("Norwegian fjords", "NO"),
    TextQuery("Swedish spruce", "SE"),
    TextQuery("Lapland, where the Sami herd reindeer", "FI NO RU SE"),
    TextQuery("Scandinavian", "DK FI NO SE"),
    TextQuery("Icelandic glaciers", "IS"),
    TextQuery("the Greenlandic icecap", "GL"),
    TextQuery("Canadian tundra", "CA"),
    TextQuery("Inuit hunters", "CA GL US"),
    TextQuery("a Spanish olive grove", "ES"),
    TextQuery("French vineyards", "FR"),
    TextQuery("an Italian villa", "IT"),
    TextQuery("Polish villages", "PL"),
    TextQuery("Ukrainian wheat", "UA"),
    TextQuery("a prairie with bison", "CA US"),
    TextQuery("Mexican cactus", "MX"),
    TextQuery("Amazonian jungle", "BO BR CO EC GF GY PE SR VE"),
    TextQuery("Brazilian savanna", "BR"),
    TextQuery("Andean llamas", "AR BO CL CO EC PE"),
    TextQuery("Peruvian alpacas", "PE"),
    TextQuery("the Atacama", "CL PE"),
    TextQuery("Argentine pampas", "AR UY"),
    TextQuery("gauchos of Patagonia", "AR CL"),
)
"""Written before the model was trained."""


@dataclass(frozen=True)
class QueryResult:
    """What was found for a query.

    Attributes:
        query: the query.
        share: of the best places that lie in the region, 0 to 1.
        chance: of the whole gallery.
        ceiling: the most that share can be, below 1 where the gallery has fewer places in the region than are asked
            for.
    """

    query: TextQuery
    share: float
    chance: float
    ceiling: float


DESERTS = {
    "Sahara": (18, -10, 30, 30),
    "Arabia": (17, 42, 28, 54),
    "Australia": (-30, 120, -20, 140),
    "Gobi": (40, 95, 45, 110),
    "Atacama": (-27, -70.5, -19, -68),
}
"""The inner part of each desert, as south, west, north and east in degrees."""


def deserts_lit(locator: Locator, text: str = "a desert") -> dict[str, tuple[int, int]]:
    """How much of each desert a text lights up.

    As many places of the gallery are lit as lie in desert climates (BWh, BWk): those that the model finds best.

    Args:
        locator: any whose model has a text side.
        text: what to ask for.

    Returns:
        For each of :data:`DESERTS`, how many of its places are lit, and how many it has; under ``everywhere`` the same
        of the whole gallery, which is what chance gives.
    """
    places = locator.gallery.coordinates.astype(np.float64)
    count = int(np.isin(koppen(places), ["BWh", "BWk"]).sum())
    rows = (
        locator.search_space.index.search(locator.encode_text([text]), locator.model.scale, max(1, count))
        .rows[0]
        .numpy()
    )
    lit = np.zeros(len(places), bool)
    lit[rows] = True
    found = {"everywhere": (int(lit.sum()), len(lit))}
    for name, (south, west, north, east) in DESERTS.items():
        inside = (places >= (south, west)).all(axis=1) & (places <= (north, east)).all(axis=1)
        found[name] = (int(lit[inside].sum()), int(inside.sum()))
    return found


def in_region(query: TextQuery, countries: np.ndarray, climates: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Which places lie in the region of a query.

    Args:
        query: the query.
        countries: of n places, ISO 3166-1 codes.
        climates: of the same, Köppen classes.
    """
    if query.countries:
        return np.isin(countries, query.countries.split())
    return np.isin(climates, query.climates.split())


def evaluate_text(locator: Locator, queries: Sequence[TextQuery] = QUERIES, best: int = BEST) -> list[QueryResult]:
    """Share of the best places in the region that each query names, and chance.

    Args:
        locator: any whose model has a text side.
        queries: texts and their regions.
        best: places looked at for each; at most the gallery's.

    Raises:
        SettingsError: ``best`` is out of range.
        WeightsError: the model has no text side.
    """
    if not 1 <= best <= len(locator.gallery):
        raise SettingsError(f"best: from 1 to the gallery's {len(locator.gallery):,} places, not {best}")
    # Rows of the gallery, not candidates: these may be merged and decoded, and a region may hold many near each other.
    embeddings = locator.encode_text([query.text for query in queries])
    rows = locator.search_space.index.search(embeddings, locator.model.scale, best).rows.numpy()
    gallery = locator.gallery.coordinates.astype(np.float64)
    countries, climates = np.array(country_codes(gallery)), np.array(koppen(gallery))
    results = []
    for query, found in zip(queries, rows, strict=True):
        inside = in_region(query, countries, climates)
        hits = float(inside[found].mean())
        results.append(QueryResult(query, hits, float(inside.mean()), min(1.0, float(inside.sum()) / best)))
    return results


def report(results: Sequence[QueryResult], deserts: Mapping[str, tuple[int, int]], title: str) -> str:
    """A page in Markdown: the figures over all queries, deserts, and a table of each query."""
    share, chance = (np.array([getattr(result, name) for result in results]) for name in ("share", "chance"))
    low, high = _interval(share)
    lines = [
        "# Text queries in words that occur in no caption",
        "",
        f"{title}. `share` is the share of the {BEST} best places of the gallery that are in the region of the query; "
        "`chance` is the share of the whole gallery.",
        "",
        f"- {len(results)} queries: {100 * share.mean():.1f} % of the best places are in the region (95 % interval "
        f"over queries {100 * low:.1f} to {100 * high:.1f} %), against {100 * chance.mean():.1f} % by chance.",
        f"- {int((share > chance).sum())} of {len(results)} queries are better than chance, "
        f"{int((share > 5 * chance).sum())} at least five times; "
        f"{int((share == 0).sum())} find no place in the region.",
        "",
        'For "a desert", the best places are selected, as many as there are in desert climates. Selected share of each '
        "desert:",
        "",
        "| " + " | ".join(deserts) + " |",
        "|" + " ---: |" * len(deserts),
        "| " + " | ".join(f"{100 * lit / max(1, of):.0f} % of {of:,}" for lit, of in deserts.values()) + " |",
        "",
        "| query | region | share | chance |",
        "| --- | --- | ---: | ---: |",
    ]
    for result in results:
        region = result.query.countries or result.query.climates
        lines.append(f"| {result.query.text} | {region} | {100 * result.share:.0f} % | {100 * result.chance:.1f} % |")
    return "\n".join(lines) + "\n"


def _interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """95 % of bootstrap means."""
    draws = np.random.default_rng(0).integers(0, len(values), (4000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="earth", help="as for `geoclip text`")
    parser.add_argument("--backbone", help="as for `geoclip text`")
    parser.add_argument("--gallery", type=Path, help="as for `geoclip text`")
    parser.add_argument("--output", type=Path, help="a file instead of stdout")
    options = parser.parse_args(arguments)
    locator = Locator.from_pretrained(options.model, backbone=options.backbone, gallery=options.gallery, engine="torch")
    page = report(
        evaluate_text(locator),
        deserts_lit(locator),
        f"Model {locator.model_name}, gallery of {len(locator.gallery):,} places",
    )
    if options.output is None:
        sys.stdout.write(page)
    else:
        options.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
