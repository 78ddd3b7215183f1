"""Each example of the guides is run: the blocks of a page in their order, in an empty folder, by a shell and Python.

A block that cannot be run here says so, and why, in a comment above it: ``<!-- not run: why -->``. ``geoclip`` is a
fork of a process that has imported what it needs.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [DOCS / "getting-started.md", *sorted((DOCS / "guides").glob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


def blocks(page: Path) -> list[tuple[str, str, str | None]]:
    """Kind, code, and why it is not run, of each block of a page."""
    return [(m["kind"], m["code"], m["why"]) for m in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_of_a_kind_that_is_run_or_say_why_not(page: Path) -> None:
    found = blocks(page)
    assert page.read_text(encoding="utf-8").count("\n```") == 2 * len(found), "a block that the runner does not see"
    assert any(why is None for _, _, why in found)
    for kind, code, why in found:
        assert code.strip()
        assert kind in ("sh", "python") or why, f"{page.name}: a block of {kind!r} is not run: say why"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with the command ``geoclip``."""
    folder = tmp_path_factory.mktemp("bin")
    program, address = Path(__file__).with_name("forked_commands.py"), folder / "socket"
    (folder / "geoclip").write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{program}" run "{address}" "$@"\n')
    (folder / "geoclip").chmod(0o755)
    serve = [sys.executable, "-W", "ignore", str(program), "serve", str(address)]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield folder
        server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path, tmp_path: Path, commands: Path, shared_cache: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "OPEN_GEOCLIP_CACHE": str(shared_cache),
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    for kind, code, why in blocks(page):
        if why is not None:
            continue
        command = [sys.executable, "-W", "error", "-c", code] if kind == "python" else ["bash", "-euc", code]
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=300)
            finally:
                with suppress(ProcessLookupError):  # a server that an example left behind
                    os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, f"{page.name}:\n{code}\n{out}\n{err}"
        assert out or "--output" in code or "mkdir" in code, f"{page.name}: nothing is shown by\n{code}"
