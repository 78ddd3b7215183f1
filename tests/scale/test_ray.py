"""The same jobs on Ray: the same answers, whatever is killed; and photos of one's own Ray Data pipelines."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from open_geoclip.cli import main
from open_geoclip.data.earth_views import views
from open_geoclip.data.photos import SkippedRecord
from open_geoclip.errors import MissingExtraError, RayError, SettingsError
from open_geoclip.files import sha256
from open_geoclip.scale import ray as on_ray
from open_geoclip.scale.decoding import DecodedImage, DecodeSettings
from open_geoclip.scale.results import ROW, Results
from open_geoclip.search.locator import Locator

N = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of ten photos, of one of them again, of a file that is none, and of a pipe: reading it never ends."""
    folder = tmp_path_factory.mktemp("photos")
    for number, view in enumerate(view for batch in views("test", N) for view in batch.images):
        Image.fromarray(view).save(folder / f"{number}.jpg")
    (folder / "bad.jpg").write_bytes(b"no image")
    os.mkfifo(folder / "hangs.jpg")
    names = [*(f"{number}.jpg" for number in range(N)), "bad.jpg", "hangs.jpg", "0.jpg"]
    (folder / "photos.csv").write_text("".join(f"{name}\n" for name in ["path", *names]))
    (folder / "train.csv").write_text("path,lat,lon\n" + "".join(f"{name},1,2\n" for name in [*names[:8], "bad.jpg"]))
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(2):
                data = (folder / f"{2 * shard + number}.jpg").read_bytes()
                info = tarfile.TarInfo(f"{number}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What ray_session.py found. A warning about what this package calls is an error there too."""
    program = [sys.executable, "-W", "error:::open_geoclip", str(Path(__file__).with_name("ray_session.py"))]
    done = subprocess.run([*program, str(folder)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return dict(json.loads((folder / "found.json").read_text()))


def answers(folder: Path) -> dict[str, dict[str, Any]]:
    assert Results(folder).summary().duplicates == 0
    return {answer["image"]: answer for answer in Results(folder).answers()}


@pytest.mark.slow
def test_answers_are_those_of_a_plain_job_though_an_actor_is_killed(folder: Path, found: dict[str, Any]) -> None:
    assert found["killed"] == 1
    assert found["job"] == {"located": N, "failed": 2, "done_before": 0, "duplicates": 1}
    assert found["resumed"] == {"located": 0, "failed": 0, "done_before": N + 2, "duplicates": 0}
    plain = answers(folder / "plain")
    assert answers(folder / "ray") == plain
    assert plain["hangs.jpg"]["error"] == "takes longer than 3 s to decode"
    assert json.loads((folder / "ray/manifest.json").read_text()).keys() >= {"weights_sha256", "source"}


@pytest.mark.slow
def test_answers_of_shards_are_those_of_a_plain_job(folder: Path, found: dict[str, Any]) -> None:
    assert found
    assert answers(folder / "ray-shards") == answers(folder / "plain-shards")
    assert len(Results(folder / "ray-shards").parts) == 2


@pytest.mark.slow
def test_features_to_train_on_are_those_of_one_machine(found: dict[str, Any]) -> None:
    shards = [f"{start:010d}.safetensors" for start in (0, 4)]
    expected = {"features": True, "fingerprint": True, "faults": True, "photos": 8, "shards": shards}
    assert found["features"] == expected


@pytest.mark.slow
def test_a_node_with_other_weights_ends_the_job(found: dict[str, Any]) -> None:
    kind, message = found["other"]
    assert kind == "RayError"
    assert message.startswith("Ray: a node of the cluster has another weights ")
    assert f", not {'0' * 64};" in message


@pytest.mark.slow
def test_a_job_that_stands_still_ends_and_says_what_to_do(found: dict[str, Any]) -> None:
    kind, message = found["no room"]
    assert kind == "RayError"
    assert "an actor takes 1 and 1, and a core must be left to decode with" in message
    assert message.endswith("--resume continues from there")


@pytest.mark.slow
def test_a_dataset_keeps_its_columns_and_errors_are_rows(folder: Path, found: dict[str, Any]) -> None:
    plain = answers(folder / "plain")
    good, bad, empty = found["rows"]
    assert good.keys() == bad.keys() == {*ROW, "owner"}
    (first, *_) = plain["0.jpg"]["candidates"]
    assert [good["lat"], good["lon"]] == pytest.approx([first["lat"], first["lon"]], abs=1e-5)  # batches differ
    assert good["place"] == first["place"]
    assert len(json.loads(good["answer"])["candidates"]) == 2
    assert (good["photo"], good["error"]) == (str(folder / "0.jpg"), None)
    assert bad["error"] == plain["bad.jpg"]["error"]
    assert empty["error"] == "it has no image"
    assert found["no column"] == "the dataset has no column 'image', but x"
    assert "rename them: lat" in found["same name"]


@pytest.mark.slow
def test_ray_listens_to_this_machine_alone(found: dict[str, Any]) -> None:
    assert found["listening"]
    assert [address for address in found["listening"] if "127.0.0.1" not in address.split()[0]] == []


def test_images_of_a_dataset_may_be_bytes_and_their_names_in_another_column(folder: Path) -> None:
    import pyarrow as pa

    data = (folder / "0.jpg").read_bytes()
    table = pa.table({"image": [data, b"no image"], "id": [7, None], "owner": ["a", "b"]})
    decoded = on_ray._decode_table(table, image="image", name="id", settings=DecodeSettings(64, "bicubic"))
    on_ray._decoder(DecodeSettings(64, "bicubic")).__exit__()
    assert decoded.column_names == ["owner", "_decoded"]
    (good_name, good), (bad_name, bad) = on_ray._unpack(decoded)
    assert isinstance(good, DecodedImage)
    assert isinstance(bad, SkippedRecord)
    assert (good_name, good.pixels.shape[2], good.sha256) == ("7", 3, sha256(data))
    assert (bad_name, bad.reason[:12]) == ("", "not an image")


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"open-geoclip\[ray\]"), on_ray.connect("auto"):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_without_a_cluster_is_an_error_at_once(address: str) -> None:
    with pytest.raises(RayError, match="there is no cluster"), on_ray.connect(address):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray-gpus", "1"], "--ray-actors and --ray-gpus are for --ray"),
        (["--ray", "auto", "--ray-actors", "3"], "MIN:MAX, such as 1:8"),
        (["--ray", "auto", "--workers", "3"], "--workers is not for --ray"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main(["locate", str(folder), "-o", str(tmp_path / "results"), *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"actors": (0, 1)}, {"actors": (2, 1)}, {"num_gpus": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        on_ray.RaySettings(Locator.from_pretrained, **wrong)
