"""Lower rooms never import higher ones, and every room on disk has its place in the order."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import open_geoclip

PACKAGE = "open_geoclip"
SOURCE = Path(open_geoclip.__file__).parent

# A room may import rooms of a lower rank, and itself. Rooms of the same rank do without each other.
RANKS = {
    "_version": 0,
    "errors": 0,
    "schema": 1,
    "files": 0,
    "geo": 1,
    "images": 1,
    "metadata": 2,
    "model": 3,
    "weights": 4,
    "data": 4,
    "search": 5,
    "compat": 6,
    "verification": 6,
    "training": 6,
    "evaluation": 6,
    "features": 6,
    "export": 6,
    "scale": 7,
    "server": 8,
    "cli": 9,
    "demo": 10,
}

# Pairs of the same rank that may meet, as (who imports, what is imported).
ALLOWED = {("training", "evaluation"), ("training", "export"), ("export", "verification")}

# Nothing in the package may import these: torchvision is a heavy dependency for three lines of resizing, and research/
# is not in the wheel.
FORBIDDEN = {"torchvision", "research"}


def rooms_on_disk(source: Path) -> dict[str, list[Path]]:
    """Return each room's Python files; the package's own `__init__` is in none, it may import anything."""
    rooms: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*.py")):
        room = path.relative_to(source).parts[0].removesuffix(".py")
        if room != "__init__":
            rooms.setdefault(room, []).append(path)
    return rooms


def imported_names(path: Path, source: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of everything a file imports, also inside functions and `if` blocks.

    `from a.b import c` gives "a.b.c", whether c is a module or not. Relative imports are made absolute. Methods
    that a module offers for its users and that hand over are left out: `from_pretrained` to weights, and
    `_repr_html_`, which Jupyter calls, to export.
    """
    here = (PACKAGE, *path.relative_to(source).parent.parts)
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))))
    handed_over = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name in ("from_pretrained", "_repr_html_")]
    for node in set(nodes) - {inner for function in handed_over for inner in ast.walk(function)}:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])


def faults(source: Path, ranks: Mapping[str, int], allowed: set[tuple[str, str]]) -> list[str]:
    """Return one line for each import that goes against the order, and for each room without a rank."""
    found = []
    for room, paths in rooms_on_disk(source).items():
        if room not in ranks:
            found.append(f"{room}: has no rank; give it one in {Path(__file__).name}")
            continue
        for path in paths:
            for line, name in imported_names(path, source):
                where = f"{path.relative_to(source)}:{line}"
                top, _, rest = name.partition(".")
                if top in FORBIDDEN:
                    found.append(f"{where}: imports {top}, which nothing may")
                if top != PACKAGE:
                    continue
                other = rest.split(".")[0]
                if other == "__version__":
                    found.append(f"{where}: imports __version__ from the package itself; take it from _version")
                elif other not in ranks:
                    found.append(f"{where}: imports {other or 'all'!r} from the package itself, not from its room")
                elif other != room and ranks[other] >= ranks[room] and (room, other) not in allowed:
                    found.append(f"{where}: {room} (rank {ranks[room]}) imports {other} (rank {ranks[other]})")
    return found


def test_the_order_of_rooms_is_kept() -> None:
    assert "geo" in rooms_on_disk(SOURCE), "the checker must see the package"
    assert faults(SOURCE, RANKS, ALLOWED) == []


def test_allowed_pairs_are_of_the_same_rank() -> None:
    for one, other in ALLOWED:
        assert RANKS[one] == RANKS[other], f"{one} -> {other} needs no exception, or must not have one"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """Return a small package that keeps the order."""
    files = {
        "__init__.py": "from open_geoclip.cli import main\nfrom open_geoclip.model import Model\n",
        "_version.py": "__version__ = '1'\n",
        "errors.py": "import math\n",
        "geo/sphere.py": "from open_geoclip.errors import CoordinateError\n",
        "model/__init__.py": "from open_geoclip.model.towers import Model\n",
        "model/towers.py": "from .. import errors\nfrom ..geo.sphere import offset\nfrom . import heads\n",
        "model/heads.py": "from open_geoclip.geo import sphere\nimport open_geoclip.errors\n",
        "training/loop.py": "def run():\n    from open_geoclip.evaluation import metrics\n",
        "evaluation/metrics.py": "from open_geoclip.model import Model\n",
        "cli/__init__.py": "from open_geoclip._version import __version__\n",
        "server/app.py": "import open_geoclip.training.loop\nimport torch\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_the_checker_lets_a_good_tree_pass(sample: Path) -> None:
    assert faults(sample, RANKS, ALLOWED) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("geo/x.py", "import open_geoclip.model", "geo/x.py:1: geo (rank 1) imports model (rank 3)"),
        ("model/deep/x.py", "from ...search import Gallery", "model (rank 3) imports search (rank 5)"),
        ("model/x.py", "from .. import cli", "model/x.py:1: model (rank 3) imports cli (rank 9)"),
        (
            "errors.py",
            "\ndef f():\n    from open_geoclip.geo.sphere import offset",
            "errors.py:3: errors (rank 0)",
        ),
        ("errors.py", "if TYPE_CHECKING:\n    from open_geoclip import cli", "errors.py:2: errors (rank 0)"),
        (
            "model/y.py",
            "from open_geoclip.weights.load import load_model",
            "model (rank 3) imports weights (rank 4)",
        ),
        ("evaluation/x.py", "import open_geoclip.training", "evaluation (rank 6) imports training (rank 6)"),
        ("export/maps.py", "from open_geoclip.features import name", "export (rank 6) imports features (rank 6)"),
        (
            "cli/x.py",
            "from open_geoclip import __version__",
            "cli/x.py:1: imports __version__ from the package",
        ),
        ("cli/x.py", "from open_geoclip import GeoCLIP", "imports 'GeoCLIP' from the package itself"),
        ("cli/x.py", "import open_geoclip", "imports 'all' from the package itself"),
        (
            "model/x.py",
            "def f():\n    from torchvision.transforms import Resize",
            "x.py:2: imports torchvision",
        ),
        ("model/x.py", "import torchvision", "x.py:1: imports torchvision"),
        ("training/x.py", "def f():\n    from research.captions import captions", "x.py:2: imports research"),
        ("attic/x.py", "", "attic: has no rank"),
        ("attic.py", "", "attic: has no rank"),
    ],
)
def test_the_checker_finds(sample: Path, file: str, text: str, fault: str) -> None:
    path = sample / file
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text, encoding="utf-8")
    found = faults(sample, RANKS, ALLOWED)
    assert len(found) == 1
    assert fault in found[0]
