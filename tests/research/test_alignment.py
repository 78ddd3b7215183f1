"""Images and sentences in one space, and the head on top of it."""

import pytest
import torch
import torch.nn.functional as F

from open_geoclip.errors import SettingsError
from open_geoclip.model.image_encoder import image_head
from research.alignment import AlignedEncoder, AlignSettings, Projections, align, caption_loss

D, S, W = 24, 12, 8


@pytest.fixture
def projections() -> Projections:
    torch.manual_seed(0)
    features = 3 * torch.randn(500, D) + torch.linspace(-5, 5, D)
    return Projections(features, S, W)


def test_a_caption_is_found_by_its_image() -> None:
    """Twenty kinds of place, each with its sentence: after training, images find the sentence of their kind."""
    torch.manual_seed(0)
    kinds, sentences = 2 * torch.randn(20, D), F.normalize(torch.randn(20, S), dim=1)
    captions = torch.arange(2000)[:, None] % 20
    features = (kinds[captions[:, 0]] + torch.randn(2000, D)).half()
    projections = Projections(features, S, W)
    heard: list[dict[str, float]] = []
    align(projections, features, sentences.half(), captions, AlignSettings(W, 12, 200, 1e-2), heard.append)
    asked = (kinds + torch.randn(20, D)).half()
    found = projections.of_images(projections.standardised(asked)) @ projections.of_texts(sentences).T
    assert (found.argmax(dim=1) == torch.arange(20)).float().mean() > 0.9
    assert not any(parameter.requires_grad for parameter in projections.parameters())
    assert heard[-1]["caption_loss"] < heard[0]["caption_loss"]


def test_equal_captions_are_not_held_against_each_other() -> None:
    images, texts = (F.normalize(torch.randn(6, W), dim=1) for _ in range(2))
    texts[3] = texts[0]
    scale = torch.tensor(10.0)
    same = torch.tensor([0, 1, 2, 0, 4, 5])
    loss = caption_loss(images, texts, scale, same)
    assert loss < caption_loss(images, texts, scale, torch.arange(6))
    # By hand: of the first image, its caption against the four that differ from it.
    logits = scale * images @ texts.T
    keep = [0, 1, 2, 4, 5]
    rows = [F.cross_entropy(logits[0, keep][None], torch.tensor([0]))]
    rows += [F.cross_entropy(logits[i][None], torch.tensor([i])) for i in (1, 2, 4, 5)]
    rows += [F.cross_entropy(logits[3, [3, 1, 2, 4, 5]][None], torch.tensor([0]))]
    across = caption_loss(texts, images, scale, same)  # the same number with the sides exchanged
    torch.testing.assert_close(loss, across)
    columns = [F.cross_entropy(logits[:, 0][[0, 1, 2, 4, 5]][None], torch.tensor([0]))]
    columns += [F.cross_entropy(logits[:, i][None], torch.tensor([i])) for i in (1, 2, 4, 5)]
    columns += [F.cross_entropy(logits[:, 3][[3, 1, 2, 4, 5]][None], torch.tensor([0]))]
    torch.testing.assert_close(loss, (torch.stack(rows).mean() + torch.stack(columns).mean()) / 2)


def test_folded_weights_give_the_same_embeddings(projections: Projections) -> None:
    head = AlignedEncoder((W + D, 16, 6), projections).eval()
    features, sentences = 3 * torch.randn(5, D), torch.randn(5, S)
    tensors = head.folded()
    shared = F.normalize(
        F.linear(features, tensors["image_encoder.projection.weight"], tensors["image_encoder.projection.bias"]), dim=1
    )
    plain = image_head((W + D, 16, 6))
    plain.load_state_dict({k.removeprefix("image_encoder.mlp."): v for k, v in tensors.items() if ".mlp." in k})
    expected = head.forward_head(torch.cat([features, sentences], dim=1))
    torch.testing.assert_close(plain(torch.cat([shared, features], dim=1)), expected, rtol=1e-4, atol=1e-4)
    text = F.normalize(
        F.linear(sentences, tensors["text_encoder.projection.weight"], tensors["text_encoder.projection.bias"]), dim=1
    )
    own = tensors["text_encoder.picture"].expand(5, -1)
    torch.testing.assert_close(plain(torch.cat([text, own], dim=1)), head.of_texts(sentences), rtol=1e-4, atol=1e-4)


def test_a_release_is_unfolded_to_go_on_with(projections: Projections) -> None:
    head = AlignedEncoder((W + D, 16, 6), projections).eval()
    features, sentences = 3 * torch.randn(300, D) + torch.linspace(-5, 5, D), torch.randn(300, S)
    again = AlignedEncoder.unfolded(head.folded(), features[:200]).eval()
    torch.testing.assert_close(again.forward_head(features), head.forward_head(features), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.of_texts(sentences), head.of_texts(sentences), rtol=1e-4, atol=1e-4)
    for name, tensor in head.folded().items():
        torch.testing.assert_close(again.folded()[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
    assert all(parameter.requires_grad for parameter in again.mlp.parameters())
    assert not any(parameter.requires_grad for parameter in again.projections.parameters())


def test_the_caption_is_read_in_training_alone(projections: Projections) -> None:
    torch.manual_seed(0)
    head = AlignedEncoder((W + D, 6), projections, without=1.0)
    features = torch.randn(40, D)
    one, other = (torch.cat([features, torch.randn(40, S)], dim=1) for _ in range(2))
    torch.testing.assert_close(head.eval().forward_head(one), head.forward_head(other))
    torch.manual_seed(1)
    first = head.train().forward_head(one)
    torch.manual_seed(1)
    second = head.forward_head(other)
    changed = (first != second).any(dim=1).float().mean()
    assert 0.2 < changed < 0.8  # half of the rows without features take the caption


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingsError, match="width"):
        AlignSettings(width=0)
