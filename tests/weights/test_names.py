"""The grammar of names."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_geoclip.cli._options import ModelOptions
from open_geoclip.errors import ModelNameError
from open_geoclip.weights import folders
from open_geoclip.weights.folders import default_model
from open_geoclip.weights.names import REGISTERED, Name, parse_name
from open_geoclip.weights.registry import CLIP_BACKBONE, RECORDS

part = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_]{0,20}", fullmatch=True)
names = st.one_of(
    st.sampled_from(REGISTERED).map(lambda name: Name("registered", name)),
    st.builds(
        lambda org, repo, revision: Name("hub", f"{org}/{repo}", revision),
        part,
        part,
        st.none() | st.from_regex(r"[a-z0-9]{1,40}(/[a-z0-9]{1,5})?", fullmatch=True),
    ),
    st.lists(st.text("abcXYZ @:#.é", min_size=1).filter(lambda t: t.strip(".") != ""), min_size=1).map(
        lambda parts: Name("dir", str(Path("/", *parts)))
    ),
)


@given(names)
def test_a_name_survives_being_written_and_read(name: Name) -> None:
    assert parse_name(str(name)) == name


def test_the_three_forms() -> None:
    assert parse_name("earth") == Name("registered", "earth")
    assert parse_name("hub:openai/clip-vit-large-patch14") == Name("hub", "openai/clip-vit-large-patch14", None)
    assert parse_name("hub:org/re.po_2@refs/pr/1") == Name("hub", "org/re.po_2", "refs/pr/1")
    assert parse_name("dir:/a b/c@d") == Name("dir", "/a b/c@d")


def test_folders_are_made_absolute_and_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert parse_name("dir:models/x").value == str(tmp_path / "models" / "x")
    assert parse_name("dir:~/x").value == str(tmp_path / "home" / "x")


def test_each_record_and_each_backbone_on_record_has_a_name_of_the_grammar() -> None:
    assert REGISTERED == ("earth", "geoclip")
    for name, record in RECORDS.items():
        assert record.name == name
        assert str(parse_name(name)) == name
        assert record.backbone is None or record.backbone in RECORDS
    assert re.fullmatch(r"[0-9a-f]{40}", parse_name(CLIP_BACKBONE).revision or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("geoclp", "Did you mean 'geoclip'?"),
        ("GeoCLIP", "Did you mean 'geoclip'?"),
        ("Earth", "Did you mean 'earth'?"),
        ("zzz", "registered name (earth, geoclip)"),
        ("", "registered name (earth, geoclip)"),
        ("hf:org/repo", "hub:org/repo@revision"),
        ("org/repo", "written hub:org/repo"),
        ("org/repo@main", "written hub:org/repo@main"),
        ("https://huggingface.co/org/repo", "written hub:org/repo."),
        ("/models/GeoCLIP", "written dir:/models/GeoCLIP"),
        ("./Models", "written dir:./Models"),
        ("~/models", "written dir:~/models"),
        ("x" * 5000, "registered name"),
        ("a\0b", "registered name"),
        ("hub:repo", "'repo' is not a repository as org/repo"),
        ("hub:org/a/b", "is not a repository"),
        ("hub:../etc", "is not a repository"),
        ("hub:org/..", "is not a repository"),
        ("hub:org/a--b", "is not a repository"),
        ("hub:org/repo@", "'' is not a revision"),
        ("hub:org/repo@../../x", "is not a revision"),
        ("hub:org/repo@-x", "is not a revision"),
        ("hub:org/repo@a b", "is not a revision"),
        ("dir:", "names no folder"),
        ("dir:a\0b", "names no folder"),
        ("dir:~nobody-of-this-name/x", "names no folder|home directory"),
    ],
)
def test_what_is_no_name_is_refused_and_the_mend_is_told(text: str, said: str) -> None:
    with pytest.raises(ModelNameError) as caught:
        parse_name(text)
    message = str(caught.value)
    assert any(choice in message for choice in said.split("|")), message
    assert "dir:/some/folder" in message, "each message shows the grammar"


def test_a_folder_that_exists_is_told_to_be_written_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "org" / "repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNameError, match="written dir:weights"):
        parse_name("weights")
    with pytest.raises(ModelNameError, match=r"written dir:org/repo or .*written hub:org/repo"):
        parse_name("org/repo")


def test_the_model_where_none_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPEN_GEOCLIP_MODEL", "dir:/mine")
    assert default_model() == "dir:/mine"
    monkeypatch.delenv("OPEN_GEOCLIP_MODEL")
    here = folders.status("earth")
    monkeypatch.setattr(folders, "status", lambda name: replace(here, command=f"geoclip pull {name}"))
    assert default_model() == ModelOptions().name == "earth"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(folders, "status", lambda name: replace(here, command=None))
    options = ModelOptions()
    assert options.name == options.name == "geoclip"
    assert capsys.readouterr().err == "geoclip: the model is geoclip; --model earth is for views from orbit\n"
    assert ModelOptions(model="earth").name == "earth"
