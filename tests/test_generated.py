"""Generated files are what their generators write."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_types_of_the_page_are_those_of_answers() -> None:
    """``make types`` writes them anew."""
    done = subprocess.run(
        [sys.executable, ROOT / "web" / "answer_types.py"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert (ROOT / "web" / "src" / "answer.ts").read_text(encoding="utf-8") == done.stdout
