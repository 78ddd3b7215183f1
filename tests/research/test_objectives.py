"""The tables of training objectives."""

from research.objectives import SEEDS, TRIALS, markdown


def test_the_tables_have_means_over_seeds_and_paired_differences() -> None:
    first, second = list(TRIALS)[:2]
    runs = [
        {
            "name": name,
            "seed": seed,
            "views": 4096,
            "Test views": {
                "within_km": {"25": 2.0, "200": 50.0 + 10 * seed + gain, "750": 80.0},
                "median_km": 100.0,
            },
        }
        for name, gain in ((first, 0.0), (second, 1.5))
        for seed in SEEDS
    ]
    lines = markdown(runs).splitlines()
    assert "## Test views" in lines
    rows = [line for line in lines if line.startswith(("| contrastive", "| negatives"))]
    same = "| 80.0 ± 0.0 | 100.0 ± 0.0 | +0.0 ± 0.0 |"
    assert rows[0].endswith(f"| 3 | 2.0 ± 0.0 | 60.0 ± 10.0 {same} +0.0 ± 0.0 |")
    assert rows[1].endswith(f"| 3 | 2.0 ± 0.0 | 61.5 ± 10.0 {same} +1.5 ± 0.0 |")
