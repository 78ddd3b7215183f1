"""A goal is the old file or the new one, whatever goes wrong while it is written; nothing is left behind."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from open_geoclip.files import atomic_file, atomic_folder, atomic_write, cache_dir, cached_array, sha256


def test_what_was_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    goal = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        atomic_write(goal, b"first")
    finally:
        os.umask(before)
    assert stat.S_IMODE(goal.stat().st_mode) == 0o640, "permissions are those of any new file"
    atomic_write(goal, b"second")
    assert goal.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [goal]


def test_a_fault_leaves_the_old_file(tmp_path: Path) -> None:
    goal = tmp_path / "a.txt"
    goal.write_text("old")

    def broken_off(fault: type[BaseException]) -> None:
        with atomic_file(goal) as temporary:
            temporary.write_text("half")
            raise fault

    for fault in (ValueError, KeyboardInterrupt):
        with pytest.raises(fault):
            broken_off(fault)
    with pytest.raises(IsADirectoryError):
        atomic_write(tmp_path, b"a folder is in its place")
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "none" / "a.txt", b"")
    assert goal.read_text() == "old"
    assert list(tmp_path.iterdir()) == [goal]


def test_what_few_may_read_is_never_open_to_more(tmp_path: Path) -> None:
    private = tmp_path / "private.jpg"
    private.write_bytes(b"old")
    private.chmod(0o600)
    with atomic_file(private, like=private) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_bytes(b"new")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_new_files_write_over_nothing_and_others_keep_their_permissions(tmp_path: Path) -> None:
    old, goal = tmp_path / "old.txt", tmp_path / "a.txt"
    old.write_text("old")
    old.chmod(0o604)
    atomic_write(goal, b"new", like=old, new=True)
    assert stat.S_IMODE(goal.stat().st_mode) == 0o604
    with pytest.raises(FileExistsError):
        atomic_write(goal, b"newer", new=True)
    assert goal.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_on_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    atomic_write(tmp_path / "a.txt", b"new", new=True)
    with pytest.raises(FileExistsError):
        atomic_write(tmp_path / "a.txt", b"newer", new=True)
    assert (tmp_path / "a.txt").read_bytes() == b"new"


def test_the_longest_names_fit(tmp_path: Path) -> None:
    for name in ("n" * 255, "ü" * 127):
        atomic_write(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("moment", ["replace", "fsync"])
def test_a_process_that_is_killed_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    """At the moment before the new file gets its name, and before it is on the disk."""
    goal = tmp_path / "a.txt"
    goal.write_text("old")
    code = (
        "import os, signal, sys, pathlib\n"
        "from open_geoclip.files import atomic_write\n"
        f"{'pathlib.Path.replace' if moment == 'replace' else 'os.fsync'} = "
        "lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic_write(pathlib.Path(sys.argv[1]), b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(goal)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert goal.read_text() == "old"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """The most that a file may hold stands in for the disk: the system refuses what is beyond, as it does there."""
    goal = tmp_path / "a.txt"
    goal.write_text("old")
    code = (
        "import pathlib, resource, signal, sys\n"
        "from open_geoclip.files import atomic_write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    atomic_write(pathlib.Path(sys.argv[1]), bytes(5000))\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(goal)], check=True, capture_output=True, text=True)
    assert done.stdout == "File too large\n"
    assert goal.read_text() == "old"
    assert list(tmp_path.iterdir()) == [goal]


def test_folders_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    goal = tmp_path / "deep" / "folder"
    with atomic_folder(goal) as temporary:
        (temporary / "a.txt").write_text("old")

    def interrupt() -> None:
        with atomic_folder(goal) as temporary:
            (temporary / "a.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert (goal / "a.txt").read_text() == "old"
    with atomic_folder(goal) as temporary:
        (temporary / "b.txt").write_text("new")
    assert [path.name for path in goal.iterdir()] == ["b.txt"]
    assert list(goal.parent.iterdir()) == [goal]


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    link = tmp_path / "link"
    link.symlink_to("files/a.txt")
    for content in ("first", "second"):  # the target of a link may be missing
        atomic_write(link, content)
        assert link.is_symlink()
        assert (tmp_path / "files" / "a.txt").read_text() == content
    with pytest.raises(FileExistsError):
        atomic_write(link, "third", new=True)
    (tmp_path / "folder").symlink_to("files")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "b.txt").write_text("new")
    assert (tmp_path / "folder").is_symlink()
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["b.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"files", "folder", "link"}


def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_write(pipe, "content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]
    assert pipe.is_fifo()
    atomic_write(Path(os.devnull), b"gone")
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "import pathlib; from open_geoclip.files import *; atomic_write(pathlib.Path('/dev/stdout'), 'after\\n')"
    with log.open("a") as file:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=file)
    assert log.read_text() == "before\nafter\n"
    piped = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert piped.stdout == "after\n"


def test_a_folder_is_kept_when_the_process_is_interrupted_between_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = tmp_path / "folder"
    with atomic_folder(goal) as temporary:
        (temporary / "a.txt").write_text("old")
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> None:
        if path.name.endswith("-new"):
            raise KeyboardInterrupt
        rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(goal) as temporary:
        (temporary / "a.txt").write_text("new")
    assert (goal / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [goal]
    with pytest.raises(NotADirectoryError), atomic_folder(goal / "a.txt"):
        pass


def test_text_is_written_as_utf8_and_hashed_like_its_bytes(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.txt", "Zürich\n")
    assert (tmp_path / "a.txt").read_bytes() == "Zürich\n".encode()
    assert sha256(tmp_path / "a.txt") == sha256("Zürich\n".encode())
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_one_cache_folder_with_the_home_folder_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Location embeddings were written to a folder named ``~`` while weights were read from the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", "~/cache")
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", "relative")
    assert cache_dir() == tmp_path / "relative"
    monkeypatch.delenv("OPEN_GEOCLIP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir().name == "open-geoclip"


def test_an_array_is_computed_once_and_again_when_its_file_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.array(["é", "b"])

    path = tmp_path / "new" / "a.npy"
    for _ in range(2):
        assert cached_array(path, compute, 2).tolist() == ["é", "b"]
    assert len(calls) == 1
    path.write_bytes(path.read_bytes()[:-3])
    assert cached_array(path, compute, 2).tolist() == ["é", "b"]
    np.save(path, np.zeros(3))
    assert cached_array(path, compute, 2).tolist() == ["é", "b"]
    assert len(calls) == 3
    assert caplog.text.count("is damaged") == 2
    (tmp_path / "file").touch()
    assert cached_array(tmp_path / "file" / "a.npy", compute).tolist() == ["é", "b"]
    assert "cannot be used" in caplog.text
    assert cached_array(None, compute).tolist() == ["é", "b"]
