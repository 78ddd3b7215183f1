"""Parts of the measurement of explanations; the whole of it takes minutes: ``python -m research.explanations``."""

import numpy as np
import pytest
import torch

from research.explanations import covered_copies, deletion_table, rank_correlation, replace_page


def test_the_most_important_cells_are_covered_first_and_then_last() -> None:
    order = np.arange(196.0).reshape(14, 14)
    pixels = torch.arange(3 * 28 * 28.0).view(3, 28, 28)
    copies = covered_copies(pixels, order)
    covered = (copies != pixels).any(dim=1)
    assert covered.float().mean(dim=(1, 2)).tolist() == pytest.approx(
        [0.1, 0.3, 0.5, 0.7, 0.9, 0.1, 0.3, 0.5, 0.7, 0.9], abs=0.005
    )
    assert covered[0, -1].all()
    assert not covered[0, 0].any()
    assert covered[5, 0].all()
    assert not covered[9, -1].any()
    torch.testing.assert_close(copies[4, :, -1, -1], pixels.mean(dim=(1, 2)))


def test_rank_correlation_of_maps() -> None:
    a = np.random.default_rng(0).random((5, 5))
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, np.ones((5, 5))) == 0


def test_the_table_compares_with_each_baseline() -> None:
    names = ("LayerCAM", "random cells", "random disc", "disc around the centre")
    results = {name: np.full((3, 2, 5, 2), 0.5) for name in names}
    results["LayerCAM"][:, 1, :, 0] = 0.75
    lines = deletion_table(results)
    assert lines[2] == "| LayerCAM | 50.0 | 75.0 | 0 | 0 | +25.0 ± 0.0 | +25.0 ± 0.0 | +25.0 ± 0.0 |"
    assert lines[3].startswith("| random cells | 50.0 | 50.0 | 0 | 0 |  | +0.0 ± 0.0 |")


def test_a_table_replaces_the_one_before() -> None:
    page = "a\n<!-- times -->\nold \\1\n<!-- end of times -->\nb\n"
    assert replace_page(page, "times", ["new \\2"]) == "a\n<!-- times -->\n\nnew \\2\n\n<!-- end of times -->\nb\n"
