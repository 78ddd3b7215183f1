"""The sentence encoder and CLIP's text transformer, held against transformers; texts that cannot be read."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from open_geoclip.errors import SettingsError, TextError, WeightsError
from open_geoclip.model.backbones.minilm import MiniLM
from open_geoclip.weights.backbones import _MINILM, _distribution_file, load_text_backbone

TEXTS = ["a hot desert", "dunes", "The coast of Norway, far north of the Arctic Circle!", "l'été à São Paulo  東京"]


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    found = load_text_backbone("minilm")
    assert isinstance(found, MiniLM)
    return found


def test_minilm_equals_transformers(minilm: MiniLM) -> None:
    with warnings.catch_warnings(action="ignore"):
        from transformers import BertModel
        from transformers.utils import logging
    logging.disable_progress_bar()
    folder = _distribution_file(_MINILM, "model.safetensors", "", "").parent
    reference = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    found = minilm.encode(TEXTS)
    for row, text in enumerate(TEXTS):  # one at a time: without padding
        ids = torch.tensor([minilm.tokenizer.tokenizer.encode(text).ids])
        with torch.no_grad():
            mean = reference(ids).last_hidden_state.mean(dim=1)
        expected = torch.nn.functional.normalize(mean, dim=1)[0]
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)


def test_minilm_knows_what_words_mean(minilm: MiniLM) -> None:
    sand, ice, dunes, glacier = minilm.encode(["a hot desert", "land under snow and ice", "sand dunes", "a glacier"])
    assert float(dunes @ sand) > float(dunes @ ice) + 0.1
    assert float(glacier @ ice) > float(glacier @ sand) + 0.1


def test_order_and_company_do_not_matter(minilm: MiniLM) -> None:
    texts = [f"{'very ' * (n % 7)}cold place {n}" for n in range(70)]  # more than a batch
    together = minilm.encode(texts)
    torch.testing.assert_close(together[[3, 69]], minilm.encode([texts[3], texts[69]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(70))


@pytest.mark.parametrize("texts", ["a desert", [], ["a desert", ""], [" \n "], ["word " * 300]])
def test_texts_that_cannot_be_read(minilm: MiniLM, texts: Any) -> None:
    with pytest.raises(TextError, match=r"list of one or more|is empty|tokens"):
        minilm.encode(texts)


@pytest.fixture(scope="module")
def clip(
    tmp_path_factory: pytest.TempPathFactory,
    save_clip: Callable[..., Path],
    clip_tokenizer: Callable[[Path], dict[str, Any]],
) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    return save_clip(folder, projection=40, text={**clip_tokenizer(folder), "projection_dim": 40})


def test_clip_text_equals_transformers(clip: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer
    reference = CLIPTextModelWithProjection.from_pretrained(clip).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    model = load_text_backbone(f"dir:{clip}")
    texts = [*TEXTS, "HOT deserts' sand isn't 42 hot"]
    for text in texts:
        assert model.tokenizer.encode([text])[0] == tokenizer(text)["input_ids"]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**given).text_embeds
    found = model.encode(texts)
    assert found.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_tokenizer_file_is_the_same(clip: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((clip / file).read_bytes())
    first = load_text_backbone(f"dir:{clip}")
    first.tokenizer.tokenizer.enable_truncation(5)  # as some published files do: we do not cut
    first.tokenizer.tokenizer.enable_padding(length=77)
    first.tokenizer.tokenizer.save(str(tmp_path / "tokenizer.json"))
    first = load_text_backbone(f"dir:{clip}")
    assert torch.equal(load_text_backbone(f"dir:{tmp_path}").encode(TEXTS), first.encode(TEXTS))


def test_seventy_seven_tokens_and_no_more(clip: Path) -> None:
    model = load_text_backbone(f"dir:{clip}")
    assert model.encode(["desert " * 75]).shape == (1, 40)
    with pytest.raises(TextError, match="78 tokens, the model reads 77 at most"):
        model.encode(["desert " * 76])
    with pytest.raises(TextError, match="empty"):
        model.encode([""])


def test_folders_without_a_text_half(clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = json.loads((clip / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"no tokenizer: tokenizer\.json, or vocab\.json and merges\.txt"):
        load_text_backbone(f"dir:{tmp_path}")
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((clip / file).read_bytes())
    weights = load_file(clip / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k.startswith("v")}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="vision half"):
        load_text_backbone(f"dir:{tmp_path}")
    (tmp_path / "merges.txt").write_text("des des x\n\n")
    with pytest.raises(WeightsError, match="tokenizer cannot be read"):
        load_text_backbone(f"dir:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(SettingsError, match="not a CLIP with a text half"):
        load_text_backbone(f"dir:{tmp_path}")
