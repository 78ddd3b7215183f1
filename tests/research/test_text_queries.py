"""The measure of text queries."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from open_geoclip import Locator
from open_geoclip.errors import SettingsError
from research.geo_targets import koppen
from research.text_queries import (
    QUERIES,
    QueryResult,
    TextQuery,
    deserts_lit,
    evaluate_text,
    in_region,
    report,
)


def test_there_are_enough_queries_of_both_kinds() -> None:
    assert len(QUERIES) >= 40
    assert len({query.text for query in QUERIES}) == len(QUERIES)
    assert sum(bool(query.climates) for query in QUERIES) >= 10
    assert sum(bool(query.countries) for query in QUERIES) >= 30


def test_a_region_is_countries_or_climates() -> None:
    countries, climates = np.array(["DZ", "FR", ""]), np.array(["BWh", "Cfb", ""])
    assert in_region(TextQuery("x", countries="FR DZ"), countries, climates).tolist() == [True, True, False]
    assert in_region(TextQuery("x", climates="BWh"), countries, climates).tolist() == [True, False, False]
    for wrong in ({}, {"countries": "FR", "climates": "Cfb"}):
        with pytest.raises(SettingsError, match="countries or climates"):
            TextQuery("x", **wrong)


def test_the_page_gives_shares_and_chance() -> None:
    first, second = QUERIES[0], QUERIES[-1]
    page = report([QueryResult(first, 0.8, 0.1, 1.0), QueryResult(second, 0.0, 0.02, 1.0)], {"Gobi": (3, 4)}, "Model x")
    assert "| Gobi |\n| ---: |\n| 75 % of 4 |" in page
    assert "2 queries: 40.0 % of the best places" in page
    assert "against 6.0 % by chance" in page
    assert "1 of 2 queries are better than chance, 1 at least five times; 1 find no place in the region" in page
    assert f"| {first.text} | {first.climates} | 80 % | 10.0 % |" in page


def test_shares_are_of_the_gallerys_best_places(save_text_release: Callable[..., Path], tmp_path: Path) -> None:
    release = save_text_release(tmp_path / "release")
    locator = Locator.from_pretrained(f"dir:{release}", engine="torch", cache=tmp_path / "cache")
    query = TextQuery("tundra", climates="ET EF Dfc Dwc Dfd")
    [all_places] = evaluate_text(locator, [query], best=len(locator.gallery))
    assert all_places.share == pytest.approx(all_places.chance)  # of all places, as many as by chance
    assert 0 < all_places.chance < 0.5
    [best] = evaluate_text(locator, [query], best=4)
    vectors = locator.encode_text(["tundra"])
    cosines = vectors @ locator.model.location_encoder.encode(torch.from_numpy(locator.gallery.coordinates)).T
    four = locator.gallery.coordinates[cosines[0].topk(4).indices.numpy()].astype(np.float64)
    assert best.share == np.isin(koppen(four), query.climates.split()).mean()
    assert best.ceiling == 1.0
    lit = deserts_lit(locator)
    places = locator.gallery.coordinates.astype(np.float64)
    deserts = np.isin(koppen(places), ["BWh", "BWk"])
    assert lit["everywhere"] == (deserts.sum(), 300)
    inside = (np.abs(places - (-25, 130)) <= (5, 10)).all(axis=1)
    assert lit["Australia"][1] == inside.sum() > 0
    assert all(0 <= some <= of for some, of in lit.values())
    with pytest.raises(SettingsError, match="best: from 1 to"):
        evaluate_text(locator, [query], best=301)
