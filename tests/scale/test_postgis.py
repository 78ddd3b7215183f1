"""Answers in PostgreSQL with PostGIS: spatial queries, second runs, killed runs, and what users get wrong."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.cli import main
from open_geoclip.data.earth_views import views
from open_geoclip.errors import DataError, OpenGeoCLIPError, SettingsError
from open_geoclip.scale.postgis import PostGIS, fingerprint
from open_geoclip.scale.results import MANIFEST, part_path, result_row, write_part
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.locator import Locator

psycopg = pytest.importorskip("psycopg", reason="the extra postgis is not installed")

PASSWORD = "s3cret/@ %"
QUOTED = "s3cret%2F%40%20%25"
SQUARE = [[[10.0, 40.0], [14.0, 40.0], [14.0, 44.0], [10.0, 44.0], [10.0, 40.0]]]
MANIFEST_OF_A_JOB: dict[str, Any] = {
    "version": "1", "source": "photos", "model": "m", "gallery": "g", "weights_sha256": "w", "calibration_sha256": "c",
    "settings": {"top_k": 2, "detail": False},
}  # fmt: skip
Url = Callable[..., str]


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """Start PostgreSQL on a loopback port in a temporary folder, as a user without rights; return the port."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not programs or not Path(f"/usr/share/postgresql/{programs[-1].parent.name}/extension/postgis.control").exists():
        pytest.skip("PostgreSQL with PostGIS is not installed: make postgis")
    folder = Path(tempfile.mkdtemp(prefix="geoclip-postgis-"))
    user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": ()} if os.geteuid() == 0 else {}
    (folder / "password").write_text(PASSWORD + "\n")
    if user:
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    options = ["--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", "--username=admin"]
    made: list[str | Path] = [
        programs[-1] / "initdb",
        "-D",
        folder / "data",
        f"--pwfile={folder / 'password'}",
        *options,
    ]
    subprocess.run(made, cwd=folder, check=True, capture_output=True, **user)
    settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", f"port={port}"]
    words = [word for setting in settings for word in ("-c", setting)]
    with (folder / "log").open("wb") as log:
        # It ends with this process, also when that is killed.
        dying = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
        started: list[str | Path] = [*dying, programs[-1] / "postgres", "-D", folder / "data", *words]
        process = subprocess.Popen(started, cwd=folder, stdout=log, stderr=log, **user)
    try:
        for _ in range(600):
            if subprocess.run([programs[-1] / "pg_isready", "-qh127.0.0.1", f"-p{port}"], check=False).returncode == 0:
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(folder)


@pytest.fixture
def url(server: int) -> Iterator[Url]:
    """Return a function that gives the URL of a new database; ``extension=False`` has no PostGIS."""
    created = []

    def connect(*, extension: bool = True) -> str:
        name = f"test_{secrets.token_hex(4)}"
        with psycopg.connect(f"postgresql://admin:{QUOTED}@127.0.0.1:{server}/postgres", autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        created.append(name)
        address = f"postgresql://admin:{QUOTED}@127.0.0.1:{server}/{name}"
        if extension:
            fetch(address, "CREATE SCHEMA gis; CREATE EXTENSION postgis SCHEMA gis")
        return address

    yield connect
    with psycopg.connect(f"postgresql://admin:{QUOTED}@127.0.0.1:{server}/postgres", autocommit=True) as admin:
        for name in created:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def fetch(address: str, query: str) -> list[Any]:
    with psycopg.connect(address, options="-csearch_path=public,gis") as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def record(number: int, *, n_candidates: int = 2, **more: Any) -> dict[str, Any]:
    places = ((41.9 + number / 100, 12.5, 0.7), (-33.9, 18.6, 0.2))[:n_candidates]
    candidates = [
        {"lat": lat, "lon": lon, "score": 0.5, "probability": p, "radius_km": 9.0, "country": "IT", "place": None}
        for lat, lon, p in places
    ]
    region = {"type": "MultiPolygon", "coordinates": [SQUARE]}
    return {
        "image": f"{number}.jpg", "model": "m", "gallery": "g", "version": "1", "candidates": candidates, "sure": True,
        "sha256": {"image": f"{number:064x}"}, "regions": {"50": region, "90": region}, **more,
    }  # fmt: skip


def content(address: str) -> dict[str, list[Any]]:
    """Return all rows of all tables, and where each is stored: a row that was written again has moved."""
    tables = ("geoclip_settings", "geoclip_photos", "geoclip_candidates", "geoclip_regions")
    return {table: fetch(address, f"SELECT ctid, * FROM {table} ORDER BY 2, 3, 4") for table in tables}


RECORDS = [
    *map(record, range(7)),
    {"image": "empty.jpg", "error": "is empty\0"},
    {**record(3), "image": "copy \udce9.jpg"},
]


def test_spatial_queries(url: Url) -> None:
    address = url()
    with PostGIS(address) as database:
        assert database.write(RECORDS, MANIFEST_OF_A_JOB, batch_size=4) == (8, 1)
    within = "SELECT image FROM geoclip_candidates WHERE rank = 1 AND ST_DWithin(geometry::geography, {}, 500)"
    point = "ST_SetSRID(ST_MakePoint(12.5, 41.93), 4326)::geography"
    assert fetch(address, within.format(point)) == [("copy \\udce9.jpg",)]
    inside = (
        "geoclip_candidates c JOIN geoclip_regions r USING (image_sha256, fingerprint) WHERE ST_Contains(r.geometry, "
    )
    assert fetch(address, f"SELECT count(*) FROM {inside} c.geometry)") == [(14,)]
    assert fetch(address, "SELECT image, error FROM geoclip_errors") == [("empty.jpg", "is empty\\x00")]
    assert fetch(address, "SELECT count(*), count(DISTINCT image_sha256) FROM geoclip_photos") == [(9, 7)]
    columns = "SELECT f_table_name, type, srid FROM geometry_columns ORDER BY 1"
    points, regions = ("geoclip_candidates", "POINT", 4326), ("geoclip_regions", "MULTIPOLYGON", 4326)
    assert fetch(address, columns) == [points, regions]
    assert fetch(address, "SELECT bool_and(ST_IsValid(geometry)) FROM geoclip_regions") == [(True,)]
    indexes = "SELECT tablename FROM pg_indexes WHERE indexdef LIKE '%USING gist (geometry)' ORDER BY 1"
    assert fetch(address, indexes) == [("geoclip_candidates",), ("geoclip_regions",)]
    assert fetch(address, "SELECT model, settings->'top_k' FROM geoclip_settings") == [("m", 2)]


def test_a_second_run_writes_nothing(url: Url) -> None:
    address = url()
    for batch_size in (4, 4, 9):
        with PostGIS(address) as database:
            database.write(RECORDS, MANIFEST_OF_A_JOB, batch_size=batch_size)
        found = content(address)
        assert len(found["geoclip_photos"]) == 9
        assert batch_size == 9 or found == content(address)
    with PostGIS(address) as database:
        before = content(address)
        database.write(RECORDS, MANIFEST_OF_A_JOB | {"source": "elsewhere"}, batch_size=9)
        assert content(address) == before


def test_an_error_that_is_gone_and_an_answer_that_has_changed(url: Url) -> None:
    address = url()
    with PostGIS(address) as database:
        database.write([{"image": "0.jpg", "error": "is empty"}, record(1)], MANIFEST_OF_A_JOB, batch_size=1)
        database.write([record(0), record(1, n_candidates=1)], MANIFEST_OF_A_JOB)
        assert fetch(address, "SELECT * FROM geoclip_errors") == []
        assert fetch(address, "SELECT image, rank FROM geoclip_candidates ORDER BY 1, 2") == [
            ("0.jpg", 1), ("0.jpg", 2), ("1.jpg", 1),
        ]  # fmt: skip
        other = MANIFEST_OF_A_JOB | {"weights_sha256": "of another model"}
        database.write([record(0)], other)
        assert fetch(address, "SELECT count(*) FROM geoclip_candidates") == [(5,)]
        fetch(address, f"DELETE FROM geoclip_settings WHERE fingerprint = '{fingerprint(other)}'")
        assert fetch(address, "SELECT count(*) FROM geoclip_candidates") == [(3,)]
        with pytest.raises(DataError, match=r"9\.jpg: its answer has no SHA-256"):
            database.write([record(9, sha256={})], other)


def job(folder: Path) -> Path:
    """Write the results of a job."""
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps(MANIFEST_OF_A_JOB))
    write_part(part_path(folder, (1, 1)), [result_row(one["image"], one) for one in RECORDS[:-1]], 1.0)
    return folder


def test_killed_while_copying(url: Url, tmp_path: Path) -> None:
    address = url()
    program = """
import os, signal, sys
import psycopg
from open_geoclip.scale.postgis import PostGIS
from open_geoclip.scale.results import Results

rows, write_row = 0, psycopg.Copy.write_row

def write_or_die(self, row):
    global rows
    rows += 1
    if rows == 25:  # among the candidates of the second batch
        self.connection.pgconn.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write_row(self, row)

psycopg.Copy.write_row = write_or_die
results = Results(sys.argv[2])
PostGIS(sys.argv[1]).write(results.answers(), results.manifest, batch_size=3)
"""
    folder = job(tmp_path / "results")
    killed = subprocess.run([sys.executable, "-c", program, address, folder], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert fetch(address, "SELECT image FROM geoclip_photos ORDER BY 1") == [("0.jpg",), ("1.jpg",), ("2.jpg",)]
    counts = "SELECT (SELECT count(*) FROM geoclip_candidates), (SELECT count(*) FROM geoclip_regions)"
    assert fetch(address, counts) == [(6, 6)]
    with pytest.raises(SystemExit):
        main(["results", str(folder), "-o", address])
    assert fetch(address, counts) == [(14, 14)]
    assert fetch(address, "SELECT count(*) FROM geoclip_photos") == [(8,)]


def test_locate_and_results_store_the_same(
    url: Url, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Gallery.from_coordinates(np.random.default_rng(0).uniform((-60, -180), (75, 180), (200, 2)))
    locator = Locator.from_pretrained("earth", gallery=places, cache=tmp_path)
    monkeypatch.setattr(Locator, "from_pretrained", lambda *_, **__: locator)
    address, photos = url(), tmp_path / "photos"
    photos.mkdir()
    [batch] = views("test", 2)
    for number, view in enumerate(batch.images):
        Image.fromarray(view).save(photos / f"{number}.png")
    (photos / "empty.png").touch()
    for words in (["locate", photos, "-o", address], ["locate", photos, "-o", tmp_path / "job", "--workers", 1]):
        with pytest.raises(SystemExit, match="1"):
            main(list(map(str, words)))
    printed = capsys.readouterr().err
    assert f"{address.rpartition('/')[2]}: 2 located, 1 failed\n" in printed
    assert f"{photos}/empty.png: is empty" in printed
    assert "s3cret" not in printed
    counts = "SELECT count(*), count(DISTINCT image_sha256), count(DISTINCT fingerprint) FROM geoclip_{}"
    before = [fetch(address, counts.format(table)) for table in ("candidates", "regions")]
    assert before[1] == [(4, 2, 1)]
    with pytest.raises(SystemExit):
        main(["results", str(tmp_path / "job"), "-o", address])
    assert [fetch(address, counts.format(table)) for table in ("candidates", "regions")] == before
    assert fetch(address, "SELECT count(*), count(error) FROM geoclip_photos") == [(6, 2)]


def test_what_users_get_wrong(url: Url, server: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address, folder = url(), job(tmp_path / "results")
    fetch(address, "CREATE ROLE reader LOGIN PASSWORD 'hunter2'")
    database = address.rpartition("/")[2]
    wrong = {
        f"postgresql://admin:hunter2@127.0.0.1:{server}/{database}": r"password authentication failed .*~/\.pgpass",
        f"postgresql://admin@127.0.0.1:{server}/{database}": r"no password supplied .*~/\.pgpass",
        "postgresql://admin:hunter2@127.0.0.1:1/x": r"refused.* \(check host and port\)",
        f"postgresql://admin:{QUOTED}@127.0.0.1:{server}/hunter": r'"hunter" does not exist \(create it with createdb',
        url(extension=False): "no PostGIS: a superuser runs CREATE EXTENSION postgis",
        f"postgresql://reader:hunter2@127.0.0.1:{server}/{database}": r"permission denied for schema public \(the user",
        f"postgresql://admin:{PASSWORD}@127.0.0.1:{server}/{database}": "%40 %2F %3F",
        "postgresql://admin:hunter%2@127.0.0.1/x": "%40 %2F %3F",
        "postgresql://admin:hunter2/x": "%40 %2F %3F",
    }
    for target, message in wrong.items():
        with pytest.raises((OpenGeoCLIPError, SettingsError), match=message) as raised:
            PostGIS(target)
        assert raised.value.__cause__ is None
        with pytest.raises(SystemExit) as ended:
            main(["results", str(folder), "-o", target])
        printed = capsys.readouterr().err
        assert ended.value.code == (2 if "%40" in message else 1)
        assert printed.startswith("geoclip: ")
        assert printed.count("\n") == 1
        assert "hunter2" not in printed
        assert "s3cret" not in printed
    # Once the tables are there, a user needs no right to create any.
    with PostGIS(address) as creator:
        creator.write(RECORDS, MANIFEST_OF_A_JOB)
    tables = "geoclip_settings, geoclip_photos, geoclip_candidates, geoclip_regions"
    fetch(address, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO reader; GRANT USAGE ON SCHEMA gis TO reader")
    with PostGIS(f"postgresql://reader:hunter2@127.0.0.1:{server}/{database}") as writer:
        writer.write([record(99)], MANIFEST_OF_A_JOB)
        fetch(address, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'")
        with pytest.raises(OpenGeoCLIPError, match=r"\(run the command again: nothing is stored twice\)"):
            writer.write([record(100)], MANIFEST_OF_A_JOB)
    fetch(address, "DROP OWNED BY reader; DROP ROLE reader")


@pytest.mark.parametrize(
    "words",
    [
        ["text", "desert", "-o", "{}"],
        ["locate", "a.jpg", "-o", "{}", "--format", "gpkg"],
        ["locate", "a.jpg", "-o", "{}", "--together"],
        ["locate", "a.jpg", "-o", "{}", "--resume"],
        ["locate", "a.jpg", "{}", "--model", "dir:nowhere"],
        ["results", "a", "{}"],
        ["locate", "a.jpg", "--top-k", "{}"],
        ["results", "postgresql://h/x?password=hunter2"],
    ],
)
def test_no_message_has_the_password(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word.format("postgresql://user:hunter2@127.0.0.1:1/x") for word in words])
    assert ended.value.code in (1, 2)
    assert "hunter2" not in "".join(capsys.readouterr())
