"""Jobs that are killed, interrupted, sharded and given bad input: each photo has one row, and it is the right one."""

import copy
import io
import json
import multiprocessing
import os
import signal
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import pytest
from PIL import Image

from open_geoclip.data.earth_views import views
from open_geoclip.data.sources import open_source
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.export.tables import escape
from open_geoclip.scale.jobs import JobReport, JobSettings, describe_job, run_job
from open_geoclip.scale.results import Results, part_prefix
from open_geoclip.search.locator import Locator
from tests.scale.killed_job import DATA_ERROR, PRELOADED, Mishap, disturbed_job

N = 14


@pytest.fixture(scope="module")
def locator(earth: Locator) -> Locator:
    return earth


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen views in two folders; two files are none, and a name is not UTF-8."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    images = (view for batch in views("test", N - 2) for view in batch.images)
    for number, view in enumerate(images):
        Image.fromarray(view).save(folder / ("more" if number > 7 else "") / f"v{number:02d}.jpg", quality=95)
    (folder / "v00.jpg").rename(folder / os.fsdecode(b"v\xe9.jpg"))
    (folder / "empty.jpg").touch()
    (folder / "junk.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def expected(locator: Locator, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a job that nothing interrupts answers, by the name in results."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(locator, photos, folder) == JobReport(located=N - 2, failed=2)
    return {answer["image"]: answer for answer in Results(folder).answers()}


def check(folder: Path, expected: dict[str, dict[str, Any]]) -> None:
    """Each photo has exactly one row, with the answer of a job that nothing interrupts, to the last bit."""
    tables = [geopandas.read_parquet(path) for path in Results(folder).parts]
    assert sorted(name for table in tables for name in table["photo"]) == sorted(expected)
    assert {answer["image"]: answer for answer in Results(folder).answers()} == expected


def run(locator: Locator, source: Path | str, folder: Path, **settings: Any) -> JobReport:
    return run_job(locator, open_source(source, places=False), folder, JobSettings(**settings))


def test_a_job_answers_as_locate_does(locator: Locator, photos: Path, expected: dict[str, dict[str, Any]]) -> None:
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    for path, located in zip(paths, locator.locate(paths), strict=True):
        one, other = expected[escape(str(path.relative_to(photos)))], located.to_dict()
        assert one.keys() == other.keys()
        assert one.get("error") == other.get("error")
        assert one.get("sha256") == other.get("sha256")
        for candidate, same in zip(one.get("candidates", ()), other.get("candidates", ()), strict=True):
            assert candidate["place"] == same["place"]
            assert [candidate["lat"], candidate["lon"], candidate["probability"]] == pytest.approx(
                [same["lat"], same["lon"], same["probability"]], abs=1e-4
            )


def test_fast_decoding_is_the_same_in_a_job_and_belongs_to_its_manifest(locator: Locator, tmp_path: Path) -> None:
    fast = Locator(locator.model, locator.search_space, fast_decode=True)
    (tmp_path / "photos").mkdir()
    view = Image.fromarray(next(views("test", 1)).images[0]).resize((1000, 1000))
    view.save(tmp_path / "photos" / "a.jpg")
    run(fast, tmp_path / "photos", tmp_path / "job")
    [answer], [alone], [whole] = (
        [one["candidates"][0]["probability"] for one in found]
        for found in (
            Results(tmp_path / "job").answers(),
            [each.to_dict() for each in fast.locate(tmp_path / "photos" / "a.jpg")],
            [each.to_dict() for each in locator.locate(tmp_path / "photos" / "a.jpg")],
        )
    )
    assert answer == pytest.approx(alone, abs=1e-5)
    assert answer != pytest.approx(whole, abs=1e-5)
    with pytest.raises(DataError, match="fast_decode True, now False"):
        run(locator, tmp_path / "photos", tmp_path / "job", resume=True)


def exit_status(photos: Path, folder: Path, mishap: Mishap | None = None, count: int = 0) -> int | None:
    """Return how a job ends, in a process of its own, to which something happens when so many photos are done."""
    context = multiprocessing.get_context("forkserver")  # what it imports takes longer than the job
    context.set_forkserver_preload([*PRELOADED, "pytest"])
    process = context.Process(target=disturbed_job, args=(photos, folder, mishap, count))
    process.start()
    process.join(timeout=240)
    return process.exitcode


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_is_completed(
    photos: Path, expected: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    folder, sizes = tmp_path / "results", []
    for count in (2, 9, 13):
        assert exit_status(photos, folder, "kill", count) == -signal.SIGKILL
        sizes.append(len(list(folder.glob("part-*.parquet"))))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 0
    assert exit_status(photos, folder, "full disk", 1) == DATA_ERROR
    (folder / f".{part_prefix(1, 1)}-000009.parquet.abcd.part").write_bytes(b"left by a process that was killed")
    assert exit_status(photos, folder) == 0
    check(folder, expected)
    assert not list(folder.glob("*.part"))
    assert not list(folder.glob(".*.part"))


def test_ctrl_c_keeps_what_is_finished(
    locator: Locator, photos: Path, expected: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    def interrupt(done: int, total: int | None) -> None:
        assert total == N
        if done == 11:
            raise KeyboardInterrupt

    source = open_source(photos, places=False)
    with pytest.raises(KeyboardInterrupt):
        run_job(locator, source, tmp_path, progress=interrupt)
    located, failed = Results(tmp_path).keys()
    assert len(located) + len(failed) == 8  # the last whole batch
    with pytest.raises(DataError, match="holds results already: continue with --resume"):
        run_job(locator, source, tmp_path)
    report = run_job(locator, source, tmp_path, JobSettings(resume=True))
    assert report == JobReport(located=len(set(expected)) - 2 - len(located), failed=2 - len(failed), done_before=8)
    check(tmp_path, expected)
    assert run(locator, photos, tmp_path, resume=True) == JobReport(done_before=N)


def test_shards_are_disjoint_and_complete_and_their_number_may_change(
    locator: Locator, photos: Path, expected: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    first = run(locator, photos, tmp_path, shard=(2, 3))
    second = run(locator, photos, tmp_path, shard=(1, 3))
    assert first.located + first.failed == 5
    assert second.located + second.failed == 5
    rest = run(locator, photos, tmp_path, shard=(1, 1), resume=True)
    assert rest.located + rest.failed == 4
    check(tmp_path, expected)


def test_a_decoder_that_is_killed_costs_nothing_and_one_that_hangs_costs_one_photo(
    locator: Locator, photos: Path, tmp_path: Path
) -> None:
    from open_geoclip.scale import decoding

    def signal_children(number: int) -> int:
        ps = ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="]
        listed = subprocess.run(ps, capture_output=True, text=True, check=True).stdout.splitlines()
        found = [int(child.split()[0]) for child in listed if decoding.__name__ in child]
        for pid in found:
            os.kill(pid, number)
        return len(found)

    def disturb(done: int, total: int | None) -> None:
        if done == 1:
            assert signal_children(signal.SIGKILL) == 1
        if done == 6:  # at most four photos were ahead: this one comes from a child that was started again
            assert signal_children(signal.SIGSTOP) == 1

    settings = JobSettings(workers=1, photo_timeout_s=5)  # far more than a photo takes, also on a busy machine
    report = run_job(locator, open_source(photos, places=False), tmp_path, settings, progress=disturb)
    assert (report.located, report.failed) == (N - 3, 3)
    reasons = {row["error"] for row in Results(tmp_path).rows(["error"])}
    assert "takes longer than 5 s to decode" in reasons
    # With time enough, that photo is located; it takes the place of its row.
    rows = [path.name for path in Results(tmp_path).parts]
    assert run(locator, photos, tmp_path, retry_errors=True) == JobReport(located=1, failed=2, done_before=N - 3)
    assert [path.name for path in Results(tmp_path).parts] == rows
    summary = Results(tmp_path).summary()
    assert set(summary.errors.values()) == {1}
    assert set(summary.examples.values()) == {"empty.jpg", "junk.png"}


def test_tables_of_paths_and_uris_need_no_coordinates(locator: Locator, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "photos.csv"
    names = [
        "v01.jpg",
        "v01.jpg",
        "more/v08.jpg",
        (photos / "v02.jpg").as_uri(),
        "gone.jpg",
        "https://example.org/a.jpg",
    ]
    table.write_text("path\n" + "".join(f"{name}\n" for name in names))
    for name in ("v01.jpg", "more/v08.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((photos / name).read_bytes())
    report = run(locator, table, tmp_path / "results")
    assert report == JobReport(located=3, failed=2, duplicates=1)
    errors = {row["photo"]: row["error"] for row in Results(tmp_path / "results").rows(["error"])}
    assert errors["gone.jpg"] == "there is no such file"
    assert "URIs of file, s3, gs, abfs and hdfs are" in errors["https://example.org/a.jpg"]
    assert errors[names[3]] is None


def test_records_of_shards_are_named_by_their_shard(locator: Locator, photos: Path, tmp_path: Path) -> None:
    for number in range(2):  # the same names in both
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for name, path in (("a.jpg", f"v0{1 + number}.jpg"), ("b.jpg", f"v0{3 + number}.jpg")):
                data = (photos / path).read_bytes()
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    report = run(locator, f"{tmp_path}/{{0..1}}.tar", tmp_path / "results")
    assert report == JobReport(located=4)
    assert Results(tmp_path / "results").keys()[0] == {"0.tar/a", "0.tar/b", "1.tar/a", "1.tar/b"}


def test_photos_that_are_added_are_located_and_other_settings_are_refused(
    locator: Locator, photos: Path, tmp_path: Path
) -> None:
    folder, results = tmp_path / "photos", tmp_path / "results"
    folder.mkdir()
    for name in ("v03.jpg", "v01.jpg"):
        (folder / name).write_bytes((photos / name).read_bytes())
    run(locator, folder, results)
    (folder / "v02.jpg").write_bytes((photos / "v02.jpg").read_bytes())
    assert run(locator, folder, results, resume=True) == JobReport(located=1, done_before=2)
    with pytest.raises(DataError, match=r"results of another job \(top_k 5, now 3\)"):
        run_job(locator, open_source(folder, places=False), results, JobSettings(resume=True), top_k=3)
    within = locator.with_decode("distance")
    with pytest.raises(DataError, match="decode 'mass', now 'distance'"):
        run_job(within, open_source(folder, places=False), results, JobSettings(resume=True))
    with pytest.raises(DataError, match=r"source .*photos', now"):
        run(locator, photos, results, resume=True)


def test_files_that_settings_name_belong_to_the_manifest_by_their_content(locator: Locator, tmp_path: Path) -> None:
    prior, area = tmp_path / "prior.csv", tmp_path / "area.geojson"
    other = copy.copy(locator)
    other.answers = replace(locator.answers, prior=str(prior))
    options = {"within": [str(area), "France"], "not_within": []}
    asked: dict[str, Any] = {"top_k": 1, "text": None, "text_weight": 0.5, "detail": False, "options": options}
    described = []
    for contents in ("aa", "ba", "bb", "bb"):
        for path, content in zip((prior, area), contents, strict=True):
            path.write_text(content)
        described.append(describe_job(other, "photos", **asked))
    assert described[0] != described[1] != described[2] == described[3]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": 3}', "\0"])
def test_a_damaged_manifest_is_refused(locator: Locator, photos: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: it is damaged"):
        run(locator, photos, tmp_path, resume=True)


def test_a_manifest_that_is_removed_is_written_again(locator: Locator, photos: Path, tmp_path: Path) -> None:
    run(locator, photos, tmp_path)
    before = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").unlink()
    assert run(locator, photos, tmp_path, resume=True) == JobReport(done_before=N)
    assert {**json.loads((tmp_path / "manifest.json").read_text()), "created": before["created"]} == before


def test_a_slow_job_writes_smaller_parts(
    locator: Locator, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_geoclip.scale.jobs._MAX_PART_S", 0.0)
    assert run(locator, photos, tmp_path).located == N - 2
    assert len(Results(tmp_path).parts) == N


def test_a_damaged_part_is_named(locator: Locator, photos: Path, tmp_path: Path) -> None:
    run(locator, photos, tmp_path, part_size=7)
    part = Results(tmp_path).parts[0]
    assert isinstance(part, Path)
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{part.name}: it cannot be read .*: remove it"):
        run(locator, photos, tmp_path, resume=True)
    part.unlink()
    assert run(locator, photos, tmp_path, resume=True).done_before == 7


def test_two_processes_cannot_work_on_one_shard(locator: Locator, photos: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / f".{part_prefix(1, 1)}.lock"), pytest.raises(DataError, match="another process works on"):
        run(locator, photos, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="the results cannot be written"):
        run(locator, photos, tmp_path / "file")
    with pytest.raises(DataError, match="holds other files, and no results"):
        run(locator, photos, photos)
    assert not list(photos.glob("*.json"))


@pytest.mark.parametrize(
    "wrong", [{"shard": (0, 2)}, {"shard": (3, 2)}, {"part_size": 0}, {"workers": 0}, {"photo_timeout_s": 0}]
)
def test_settings_out_of_range(locator: Locator, photos: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        run(locator, photos, tmp_path, **wrong)
