"""The image-to-image baseline, held against the plainest way to compute it."""

import pytest
import torch

from open_geoclip.evaluation.baselines import nearest_images, neighbour_places, tuned_k

PARIS, LYON, TOKYO = [48.85, 2.35], [45.76, 4.84], [35.68, 139.77]
VERSAILLES = [48.80, 2.13]


class TestNearestImages:
    def test_it_is_the_cosine_of_standardised_features(self) -> None:
        known, queries = torch.randn(50, 6) * torch.tensor([1, 1, 1, 1, 1, 100.0]) + 7, torch.randn(4, 6) + 7
        mean, std = known.mean(dim=0), known.std(dim=0) + 1e-3
        cosine = torch.cosine_similarity(((queries - mean) / std)[:, None], ((known - mean) / std)[None], dim=2)
        expected, order = cosine.sort(dim=1, descending=True)
        cosines, rows = nearest_images(known, queries, 5)
        torch.testing.assert_close(cosines, expected[:, :5])
        assert torch.equal(rows, order[:, :5])

    @pytest.mark.parametrize("chunk", [1, 7, 30, 64])
    def test_chunks_change_nothing(self, chunk: int) -> None:
        known, queries = torch.randn(30, 5), torch.randn(3, 5)
        cosines, rows = nearest_images(known, queries, 8)
        again = nearest_images(known, queries, 8, chunk=chunk)
        torch.testing.assert_close(again[0], cosines)
        assert torch.equal(again[1], rows)

    def test_a_loud_channel_does_not_decide(self) -> None:
        known = torch.tensor([[1.0, 1000.0], [-1.0, 1010.0], [1.0, 990.0], [-1.0, 1000.0]])
        _, rows = nearest_images(known, torch.tensor([[-1.0, 1000.0]]), 1)
        assert rows.item() == 3

    def test_a_single_known_image_is_the_answer(self) -> None:
        cosines, rows = nearest_images(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0], [1.0, 2.0]]), 1)
        assert rows.tolist() == [[0], [0]]
        assert torch.isfinite(cosines).all()

    def test_an_image_finds_itself_among_half_precision_features(self) -> None:
        known = torch.randn(20, 8).half()
        cosines, rows = nearest_images(known, known, 1)
        assert torch.equal(rows[:, 0], torch.arange(20))
        torch.testing.assert_close(cosines[:, 0], torch.ones(20))

    def test_no_more_neighbours_than_images(self) -> None:
        cosines, rows = nearest_images(torch.randn(3, 4), torch.randn(2, 4), 10)
        assert cosines.shape == rows.shape == (2, 3)
        assert rows.sort(dim=1).values.tolist() == [[0, 1, 2]] * 2


class TestNeighbourPlaces:
    places = torch.tensor([TOKYO, PARIS, VERSAILLES, LYON], dtype=torch.float64)

    def located(self, cosines: list[float], rows: list[int]) -> list[float]:
        return neighbour_places(torch.tensor([cosines]), torch.tensor([rows]), self.places)[0].tolist()

    def test_one_neighbour_is_the_answer(self) -> None:
        assert self.located([0.4], [3]) == LYON

    def test_two_near_each_other_outweigh_a_better_one(self) -> None:
        assert self.located([0.5, 0.4, 0.3], [0, 1, 2]) == PARIS

    def test_but_not_a_much_better_one(self) -> None:
        assert self.located([0.9, 0.4, 0.3], [0, 1, 2]) == TOKYO

    def test_lyon_is_too_far_to_help_paris(self) -> None:
        assert self.located([0.5, 0.4, 0.3], [0, 1, 3]) == TOKYO

    def test_images_that_are_unlike_do_not_count(self) -> None:
        assert self.located([0.5, 0.3, -0.4], [1, 0, 2]) == PARIS

    def test_the_180th_meridian_does_not_part_neighbours(self) -> None:
        fiji = torch.tensor([[40.0, 0.0], [-17.0, 179.9], [-17.0, -179.9]], dtype=torch.float64)
        found = neighbour_places(torch.tensor([[0.5, 0.4, 0.4]]), torch.tensor([[0, 1, 2]]), fiji)
        assert found.tolist() == [[-17.0, 179.9]]


class TestTunedK:
    def test_it_takes_the_k_that_places_most_images(self) -> None:
        places = torch.tensor([TOKYO, PARIS, VERSAILLES], dtype=torch.float64)
        cosines, rows = torch.tensor([[0.5, 0.4, 0.3]] * 4), torch.tensor([[0, 1, 2]] * 4)
        truth = torch.tensor([PARIS, PARIS, PARIS, TOKYO], dtype=torch.float64)
        assert tuned_k(cosines, rows, places, truth) == 3
        assert tuned_k(cosines, rows, places, torch.tensor([TOKYO] * 4, dtype=torch.float64)) == 1

    def test_it_asks_for_no_more_neighbours_than_there_are(self) -> None:
        places = torch.tensor([TOKYO, LYON, PARIS, VERSAILLES], dtype=torch.float64)
        cosines, rows = torch.tensor([[0.5, 0.3, 0.29, 0.28]]), torch.tensor([[0, 1, 2, 3]])
        # Four neighbours would find Paris, but the choice is 1, 3, 5, ... and there is no fifth.
        assert tuned_k(cosines, rows, places, torch.tensor([PARIS], dtype=torch.float64)) == 1
