"""Pulling weights, end to end against a hub on loopback, and finding them afterwards without a network."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

from open_geoclip.errors import MissingWeightsError, ModelNameError, WeightsError
from open_geoclip.weights.folders import folder, status
from open_geoclip.weights.load import load_release
from open_geoclip.weights.pull import pull
from open_geoclip.weights.registry import CLIP_BACKBONE
from tests.weights.hub import NAME, ORDER, SHA, WANTED, Heard, Hub, no_network, small_clip

COMMAND = """
import sys
from pathlib import Path
from open_geoclip.cli.pull import pull
from open_geoclip.errors import OpenGeoCLIPError
try:
    pull(sys.argv[1], from_=Path(sys.argv[2]) if sys.argv[2:] else None)
except OpenGeoCLIPError as error:
    sys.exit(str(error))
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", COMMAND, *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=120)


def partial_file(tmp_path: Path) -> Path | None:
    return next((tmp_path / "hf" / "hub" / "models--org--clip" / "blobs").glob("*.partial"), None)


# --- a download -----------------------------------------------------------------------------------


def test_the_command_brings_what_is_wanted_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    done = run(NAME)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stderr.splitlines()] == ORDER, "a bar a file"
    snapshot = tmp_path / "hf" / "hub" / "models--org--clip" / "snapshots" / SHA
    assert done.stdout == f"{snapshot}\n"
    assert {file.name for file in snapshot.iterdir()} == WANTED
    for file in WANTED:
        assert (snapshot / file).read_bytes() == hub.repositories["org/clip"][file]
    assert [path for path, _, _ in hub.log] == [
        f"/api/models/org/clip/revision/{SHA}",
        *(f"/org/clip/resolve/{SHA}/{file}" for file in ORDER),
    ], "each file once, and no other address"
    with no_network():
        assert folder(NAME) == snapshot


def test_nothing_is_told_about_this_machine(hub: Hub) -> None:
    pull(NAME)
    assert len(hub.headers) == len(WANTED) + 1
    for headers in hub.headers:
        assert headers["user-agent"].startswith("open-geoclip/")
        assert " " not in headers["user-agent"], "no versions of other packages, no system, no agent"
        assert set(headers) <= {"host", "accept", "accept-encoding", "connection", "user-agent", "x-amzn-trace-id"}


def test_the_tools_of_hugging_face_find_it_as_well(hub: Hub, tmp_path: Path) -> None:
    pull(NAME)
    cache = tmp_path / "hf" / "hub"
    found = huggingface_hub.snapshot_download("org/clip", revision=SHA, local_files_only=True, cache_dir=cache)
    assert Path(found) == folder(NAME)
    [repository] = huggingface_hub.scan_cache_dir(cache).repos
    assert {file.file_name for revision in repository.revisions for file in revision.files} == WANTED


def test_pulling_again_asks_for_no_file(hub: Hub) -> None:
    heard = Heard()
    first = pull(NAME, progress=heard)
    size = len(hub.repositories["org/clip"]["model.safetensors"])
    assert heard.last["model.safetensors"] == (size, size)
    hub.log.clear()
    assert pull(NAME) == first
    assert [path for path, _, _ in hub.log] == [f"/api/models/org/clip/revision/{SHA}"]


def test_a_line_that_breaks_now_and_then_is_taken_up_at_once(hub: Hub) -> None:
    hub.cuts = [1_000_000, 500_000, 1]
    [path] = pull(NAME)
    whole = hub.repositories["org/clip"]["model.safetensors"]
    assert (path / "model.safetensors").read_bytes() == whole
    asked = [asked for asked, _ in hub.weights()]
    assert asked == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500001-"]
    assert sum(sent for _, sent in hub.weights()) == len(whole), "no byte was sent twice"


def test_a_pull_that_was_cut_off_goes_on_in_a_second_run(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [1_000_000, 0]
    broken = run(NAME)
    assert broken.returncode == 1
    assert broken.stdout == ""
    assert "broke off" in broken.stderr
    assert "run the same command again" in broken.stderr
    assert "Traceback" not in broken.stderr
    kept = partial_file(tmp_path)
    assert kept is not None
    assert kept.stat().st_size == 1_000_000
    with pytest.raises(MissingWeightsError, match=f"run: geoclip pull {NAME}$"):
        folder(NAME)
    before = len(hub.weights())
    done = run(NAME)
    assert done.returncode == 0
    assert "going on at 1.0 MB of 3.0 MB" in done.stderr
    whole = hub.repositories["org/clip"]["model.safetensors"]
    assert hub.weights()[before:] == [("bytes=1000000-", len(whole) - 1_000_000)]
    assert (folder(NAME) / "model.safetensors").read_bytes() == whole
    assert partial_file(tmp_path) is None


def test_a_pull_that_was_killed_goes_on_in_a_second_run(hub: Hub, tmp_path: Path) -> None:
    hub.cuts, hub.hold = [1_000_000], threading.Event()
    with subprocess.Popen(command(NAME), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not hub.weights() or not (kept := partial_file(tmp_path)) or kept.stat().st_size < 1_000_000:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"ended by itself with status {process.wait(timeout=0.02)}")
        process.kill()
    hub.hold.set()
    [path] = pull(NAME)
    whole = hub.repositories["org/clip"]["model.safetensors"]
    assert hub.weights()[-1] == ("bytes=1000000-", len(whole) - 1_000_000)
    assert (path / "model.safetensors").read_bytes() == whole


def test_a_server_without_ranges_begins_again(hub: Hub) -> None:
    hub.cuts, hub.ranges = [1_000_000], False
    [path] = pull(NAME)
    assert (path / "model.safetensors").read_bytes() == hub.repositories["org/clip"]["model.safetensors"]
    assert [asked for asked, _ in hub.weights()] == [None, "bytes=1000000-"]


def test_two_at_once_download_once(hub: Hub) -> None:
    hub.cuts, hub.hold = [1_000_000], (held := threading.Event())

    class Waits(Heard):
        def message(self, text: str) -> None:
            super().message(text)
            held.set()

    paths: list[Path] = []
    heard = Waits()
    first = threading.Thread(target=lambda: paths.extend(pull(NAME)))
    second = threading.Thread(target=lambda: paths.extend(pull(NAME, progress=heard)))
    first.start()
    while not hub.weights():
        first.join(0.01)
    second.start()
    first.join()
    second.join()
    assert paths == [folder(NAME)] * 2
    assert heard.said == ["model.safetensors: another process is downloading it; waiting for that"]
    assert sum(sent for _, sent in hub.weights()) == len(hub.repositories["org/clip"]["model.safetensors"])


def test_a_file_that_arrives_damaged_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    whole = hub.repositories["org/clip"]["model.safetensors"]
    faults = {
        "vocab.json": b'{"b": 0}',  # a small file, which carries git's hash
        "model.safetensors": whole[:-1] + bytes([whole[-1] ^ 1]),
    }
    for file, content in faults.items():
        hub.broken = {file: content}
        with pytest.raises(WeightsError, match=rf"{file} arrived damaged .* run the same command again"):
            pull(NAME)
        assert partial_file(tmp_path) is None
        with pytest.raises(MissingWeightsError):
            folder(NAME)
    hub.broken = {"model.safetensors": whole + b"more than was stated"}
    with pytest.raises(WeightsError, match=r"model\.safetensors arrived damaged"):
        pull(NAME)
    hub.broken = {}
    [path] = pull(NAME)
    assert (path / "model.safetensors").read_bytes() == whole


def test_a_file_that_is_shorter_than_was_stated(hub: Hub) -> None:
    hub.broken = {"model.safetensors": b"short"}
    with pytest.raises(MissingWeightsError, match=r"sends nothing of model\.safetensors; run the same command"):
        pull(NAME)


def test_what_was_damaged_on_disk_is_mended(hub: Hub) -> None:
    [path] = pull(NAME)
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"\0" * len(whole))
    pull(NAME)
    assert weights.read_bytes() == whole


def test_a_vision_model_comes_without_its_tokenizer(hub: Hub) -> None:
    files = hub.repositories["org/clip"]
    files["config.json"] = b'{"model_type": "siglip"}'
    [path] = pull(NAME)
    expected = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in path.iterdir()} == expected


def test_code_comes_only_if_it_is_trusted(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    files = hub.repositories["org/clip"]
    files |= {"config.json": b'{"model_type": "own"}', "modeling_own.py": b"raise SystemExit('never run')"}
    [path] = pull(NAME)
    assert not list(path.glob("*.py"))
    monkeypatch.setenv("OPEN_GEOCLIP_TRUST_REMOTE_CODE", f"dir:/other {NAME}")
    assert pull(NAME) == [path]
    assert (path / "modeling_own.py").read_bytes() == files["modeling_own.py"]


def test_weights_in_parts(hub: Hub) -> None:
    files = hub.repositories["org/clip"]
    part = files.pop("model.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files["model-00001-of-00002.safetensors"] = part
    files["model-00002-of-00002.safetensors"] = part[:1000]
    files["model-00003-of-00002.safetensors"] = part
    [path] = pull(NAME)
    assert {file.name for file in path.glob("*.safetensors")} == set(index["weight_map"].values())
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match="run: geoclip pull hub:org/clip@"):
        folder(NAME)
    with pytest.raises(MissingWeightsError, match=r"run: geoclip pull geoclip$"):
        folder(CLIP_BACKBONE)


def test_a_branch_is_found_again_and_its_commit_is_told(hub: Hub) -> None:
    heard = Heard()
    [path] = pull("hub:org/clip", progress=heard)
    assert path.name == SHA
    assert heard.said == [f"hub:org/clip is commit {SHA} today; hold to it with {NAME}"]
    with no_network():
        assert folder("hub:org/clip") == folder("hub:org/clip@main") == folder(NAME) == path


def test_a_release_brings_its_backbone(hub: Hub) -> None:
    config = {
        "model_type": "geoclip-geolocation",
        "format_version": 1,
        "gallery_file": "places.csv",
        "backbone": {"repo_id": "org/clip", "revision": SHA},
    }
    hub.repositories["org/release"] = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": hub.repositories["org/clip"]["model.safetensors"],
        "places.csv": b"LAT,LON\n",
        "other.csv": b"",
    }
    release, backbone = pull(f"hub:org/release@{SHA}")
    assert {file.name for file in release.iterdir()} == {"config.json", "model.safetensors", "places.csv"}
    assert backbone == folder(NAME)


# --- what can be wrong with a hub -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hub:org/clip@v9", "org/clip has no revision 'v9' on http://127"),
        (f"hub:org/clip@{'f' * 40}", "has no revision 'ffff"),
        ("hub:org/nothing", "hub:org/nothing: there is no such repository on http://127"),
    ],
)
def test_what_is_not_on_the_hub(hub: Hub, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNameError, match=said):
        pull(name)
    assert not (tmp_path / "hf").exists()


def test_nobody_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        done = run(NAME)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_offline_what_is_held_to_a_commit_stays_usable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first, branch = pull(NAME), pull("hub:org/clip")
    assert first == branch
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    heard = Heard()
    assert pull(NAME, progress=heard) == first
    assert "HF_HUB_OFFLINE is set" in heard.said[0]
    assert "the weights are here" in heard.said[0]
    with pytest.raises(MissingWeightsError, match="HF_HUB_OFFLINE is set"):
        pull("hub:org/clip")


def test_a_page_that_is_no_hub(hub: Hub) -> None:
    hub.garbage = True
    with pytest.raises(MissingWeightsError, match="check HF_ENDPOINT"):
        pull(NAME)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.safetensors": None}, "no weights as safetensors. Other formats can hold programs"),
        ({"config.json": None}, r"has no config\.json"),
        ({"config.json": b"{"}, "is not JSON"),
        ({"config.json": b'{"gallery": "../../x.csv"}'}, r"is not the name of a \.csv"),
        ({"config.json": b'{"gallery": "x.csv"}'}, r"has no x\.csv"),
        ({"model.safetensors": None, INDEX: b'{"weight_map": {"a": "../x.safetensors"}}'}, "is not the name"),
        ({"model.safetensors": None, INDEX: b"{}"}, "is no index of weights"),
    ],
)
def test_a_repository_that_cannot_be_used(hub: Hub, change: dict[str, bytes | None], said: str) -> None:
    files = hub.repositories["org/clip"]
    for name, content in change.items():
        if content is None:
            del files[name]
        else:
            files[name] = content
    with pytest.raises(WeightsError, match=said):
        pull(NAME)


def test_a_mirror_that_offers_another_file_than_the_one_on_record(hub: Hub) -> None:
    repository, _, hub.commit = CLIP_BACKBONE.removeprefix("hub:").partition("@")
    hub.repositories[repository] = small_clip()
    with pytest.raises(WeightsError, match=r"offers another model\.safetensors than the one on record"):
        pull(CLIP_BACKBONE)
    assert hub.weights() == []


# --- finding --------------------------------------------------------------------------------------


def test_finding_makes_no_socket_and_says_what_to_run(hub: Hub, tmp_path: Path) -> None:
    with no_network():
        for name in (NAME, "hub:org/clip", "hub:org/clip@v1"):
            with pytest.raises(MissingWeightsError) as caught:
                folder(name)
            assert str(caught.value).endswith(f"run: geoclip pull {name}")
            with pytest.raises(MissingWeightsError, match="run: geoclip pull"):
                load_release(name)
        assert status(CLIP_BACKBONE).command == f"geoclip pull {CLIP_BACKBONE}"
    assert hub.log == []
    assert not (tmp_path / "hf").exists(), "looking leaves nothing behind"
    assert not (tmp_path / "ours").exists()


def test_what_another_tool_downloaded_is_found(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    code = (
        "import sys, huggingface_hub as hub; "
        "print(hub.snapshot_download(sys.argv[1], revision=sys.argv[2], allow_patterns=sys.argv[3:]))"
    )
    arguments = ["org/clip", SHA, "config.json", "*.safetensors"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    with no_network():
        assert folder(NAME) == path
    hub.log.clear()
    pull(NAME)  # brings the rest
    assert hub.weights() == []
    assert {file.name for file in path.iterdir()} == WANTED


def test_nothing_to_pull(hub: Hub) -> None:
    with pytest.raises(ModelNameError, match="is a folder on this machine already"):
        pull("dir:/x")
    with pytest.raises(ModelNameError, match="Did you mean 'geoclip'"):
        pull("geoclp")
    assert hub.log == []
