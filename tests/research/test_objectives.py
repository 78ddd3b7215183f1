"""The table of training objectives."""

from research.objectives import OBJECTIVES, SEEDS, markdown


def test_the_table_has_means_over_seeds_and_paired_differences() -> None:
    first, second = list(OBJECTIVES)[:2]
    runs = [
        {
            "name": name,
            "seed": seed,
            "views": 4096,
            "within_km": {"25": 2.0, "200": 50.0 + 10 * seed + gain, "750": 80.0},
            "median_km": 100.0,
        }
        for name, gain in ((first, 0.0), (second, 1.5))
        for seed in SEEDS
    ]
    rows = [line for line in markdown(runs).splitlines() if line.startswith(("| contrastive", "| negatives"))]
    assert rows[0].endswith("| 60.0 ± 10.0 | 80.0 ± 0.0 | 100.0 ± 0.0 | +0.0 ± 0.0 |")
    assert rows[1].endswith("| 61.5 ± 10.0 | 80.0 ± 0.0 | 100.0 ± 0.0 | +1.5 ± 0.0 |")
