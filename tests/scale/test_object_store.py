"""Jobs whose photos and results are on an object store: a real server of S3's protocol, on this machine alone.

The server is that of moto. It is in an environment of its own (``make s3-server``), for its dependencies conflict with
those of the other tests.
"""

import io
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_geoclip.data import remote
from open_geoclip.data.remote import RemotePath, as_path, is_uri
from open_geoclip.data.sources import open_source
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.scale.jobs import JobReport, JobSettings, run_job
from open_geoclip.scale.results import Results
from open_geoclip.search.locator import Locator

SERVER = Path(__file__).parents[2] / "build" / "moto" / "bin" / "moto_server"


def put(url: str, content: bytes = b"") -> None:
    headers = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(url, content, headers, method="PUT"), timeout=60).close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with three photos, a file that is none, and a text."""
    if not SERVER.exists():
        pytest.skip("no S3 server: make s3-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as file, subprocess.Popen([SERVER, "-H", "127.0.0.1", "-p", str(port)], stderr=file) as process:
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(url, timeout=60).close()
                except OSError:
                    time.sleep(0.1)
                else:
                    break
            put(f"{url}/bucket")
            for number, name in enumerate(("a.jpg", "more/b%20%C3%A9.jpg", "more/c.jpg")):
                file_ = io.BytesIO()
                pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file_, "JPEG")
                put(f"{url}/bucket/photos/{name}", file_.getvalue())
            put(f"{url}/bucket/photos/bad.jpg", b"no image")
            put(f"{url}/bucket/photos/notes.txt", b"no photo")
            yield url
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of the bucket; children that decode inherit where it is."""
    names = {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "very-secret"}
    for name, value in {**names, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    remote._filesystem.cache_clear()
    return "s3://bucket"


@pytest.fixture
def locator(earth: Locator) -> Locator:
    return earth


@pytest.mark.slow
def test_a_job_reads_and_writes_an_object_store_and_is_resumed_there(store: str, locator: Locator) -> None:
    source = open_source(f"{store}/photos", places=False)
    assert [photo.key for photo in source] == ["a.jpg", "bad.jpg", "more/b é.jpg", "more/c.jpg"]
    folder = f"{store}/results"
    settings = JobSettings(part_size=2, workers=1, resume=True)

    def stop(done: int, _: int | None) -> None:
        if done == 3:
            raise ConnectionError

    with pytest.raises(ConnectionError):  # as a kill, nothing is flushed
        run_job(locator, source, folder, JobSettings(part_size=1, workers=1), progress=stop)
    done = len(Results(folder).parts)
    report = run_job(locator, source, folder, settings)
    assert (report.done_before, report.located + report.failed) == (done, 4 - done)
    assert run_job(locator, source, folder, settings) == JobReport(done_before=4)
    results = Results(folder)
    summary = results.summary()
    assert (summary.photos, summary.located, summary.duplicates) == (4, 3, 0)
    answers = {answer["image"]: answer for answer in results.answers()}
    assert answers["bad.jpg"]["error"].startswith("not an image")
    with pytest.raises(DataError, match="it holds results already"):
        run_job(locator, source, folder, JobSettings(workers=1))
    assert run_job(locator, source, folder, JobSettings(workers=1, retry_errors=True)).failed == 1
    assert Results(folder).summary().photos == 4


@pytest.mark.slow
def test_what_is_wrong_with_a_store_is_said_without_secrets(store: str, locator: Locator) -> None:
    photos = open_source(f"{store}/photos", places=False)
    with pytest.raises(DataError, match="there is no bucket s3://nobody"):
        run_job(locator, photos, "s3://nobody/results", JobSettings(workers=1))
    with pytest.raises(DataError, match="holds other files, and no results"):
        run_job(locator, photos, f"{store}/photos", JobSettings(workers=1))
    for missing in ("s3://nobody/photos", f"{store}/nothing"):
        with pytest.raises(DataError, match=r"there is no image there|cannot be listed"):
            open_source(missing, places=False)
    with pytest.raises(SettingsError, match="copy them to a disk"):
        open_source(f"{store}/photos")
    with pytest.raises(DataError, match="it holds no results"):
        Results(f"{store}/photos")


def test_uris_with_secrets_or_of_no_store_are_refused() -> None:
    with pytest.raises(SettingsError, match="leave credentials and options out") as error:
        as_path("s3://key:very-secret@bucket/x")
    assert "very-secret" not in str(error.value)
    with pytest.raises(SettingsError, match="pyarrow cannot open it"):
        as_path("s3://not a bucket/x")


def test_paths_of_a_disk_are_no_uris(tmp_path: Path) -> None:
    assert as_path(tmp_path) == as_path(str(tmp_path)) == tmp_path
    texts = (tmp_path, "photos", "a:b/c", "hf:name", "hf:/data/set", "earth-views:test:3", "az://bucket/x")
    assert not any(is_uri(text) for text in texts)
    assert is_uri(Path("s3://bucket/x")), "with one slash"


def test_a_disk_serves_as_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow.fs import LocalFileSystem

    monkeypatch.setattr(remote, "_filesystem", lambda _: (LocalFileSystem(), str(tmp_path)))
    folder = as_path("hdfs://host/new/")
    assert isinstance(folder, RemotePath)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a b.txt").write_bytes(b"1")
    assert (tmp_path / "new" / "a b.txt").read_bytes() == b"1"
    assert [(path.uri, path.stem) for path in folder.glob("*.txt")] == [("hdfs://host/new/a%20b.txt", "a b")]
    assert (folder / "a b.txt").exists()
    assert (folder / "a b.txt").read_text("utf-8") == "1"
    assert not (folder / "b").exists()
