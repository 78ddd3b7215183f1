"""The measure of text queries, on a model that knows where it points."""

import pytest

from open_geoclip.errors import SettingsError
from open_geoclip.evaluation.text_queries import QUERIES, QueryResult, TextQuery, in_region, report


def test_there_are_enough_queries_of_both_kinds() -> None:
    assert len(QUERIES) >= 40
    assert len({query.text for query in QUERIES}) == len(QUERIES)
    assert sum(bool(query.climates) for query in QUERIES) >= 10
    assert sum(bool(query.countries) for query in QUERIES) >= 30


def test_a_region_is_countries_or_climates() -> None:
    countries, climates = ["DZ", "FR", ""], ["BWh", "Cfb", ""]
    assert in_region(TextQuery("x", countries="FR DZ"), countries, climates).tolist() == [True, True, False]
    assert in_region(TextQuery("x", climates="BWh"), countries, climates).tolist() == [True, False, False]
    for wrong in ({}, {"countries": "FR", "climates": "Cfb"}):
        with pytest.raises(SettingsError, match="countries or climates"):
            TextQuery("x", **wrong)


def test_the_page_gives_shares_and_chance() -> None:
    first, second = QUERIES[0], QUERIES[-1]
    page = report([QueryResult(first, 0.8, 0.1, 1.0), QueryResult(second, 0.0, 0.02, 1.0)], "Model x")
    assert "2 queries: 40.0 % of the best places" in page
    assert "against 6.0 % by chance" in page
    assert "1 of 2 queries do better than chance, 1 five times better; 1 find nothing" in page
    assert f"| {first.text} | {first.climates} | 80 % | 10.0 % |" in page
