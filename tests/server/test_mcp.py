"""``geoclip mcp`` as programs use it: the SDK's own client over real pipes, the embedded model, rendered views."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, StdioServerParameters, stdio_client
from mcp.types import CallToolResult
from PIL import Image

from open_geoclip.cli import main
from open_geoclip.data.earth import Earth

PLACES = {"rome": (41.9, 12.5), "recife": (-8.05, -34.9), "reykjavik": (64.1, -21.9)}


class Caller:
    """A client of one server, for tests that are not asynchronous."""

    def __init__(self, client: Client, portal: BlockingPortal) -> None:
        self.client = client
        self.portal = portal

    def raw(self, tool: str, **arguments: Any) -> CallToolResult:
        found = self.portal.call(self.client.call_tool, tool, arguments)
        assert isinstance(found, CallToolResult)
        return found

    def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """What a tool answers; the client itself holds it against the tool's schema."""
        found = self.raw(tool, **arguments)
        assert not found.is_error, found.content
        assert isinstance(found.structured_content, dict)
        return found.structured_content

    def error(self, tool: str, **arguments: Any) -> str:
        found = self.raw(tool, **arguments)
        assert found.is_error
        assert found.structured_content is None
        return text_of(found)


def text_of(found: CallToolResult) -> str:
    [content] = found.content
    assert content.type == "text"
    return content.text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three views in an allowed folder, and an image beside it that may not be read."""
    folder = tmp_path_factory.mktemp("mcp") / "photos"
    folder.mkdir()
    places = np.array(list(PLACES.values()))
    views = Earth("bluemarble").render(places, np.full(3, 900.0), np.zeros(3), size=224)
    for name, view in zip(PLACES, views, strict=True):
        Image.fromarray(view).save(folder / f"{name}.png")
    (folder.parent / "secret.png").write_bytes((folder / "rome.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def environment(shared_cache: Path) -> dict[str, str]:
    return {**os.environ, "OPEN_GEOCLIP_CACHE": str(shared_cache), "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def call(folder: Path, environment: dict[str, str]) -> Iterator[Caller]:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-W", "error", "-m", "open_geoclip.cli", "mcp", "--folder", str(folder), "--max-mb", "1"],
        env=environment,
        cwd=folder.parent,
    )
    log = folder.parent / "stderr.txt"
    with log.open("w") as errors, start_blocking_portal() as portal:
        client = Client(stdio_client(server, errlog=errors))
        with portal.wrap_async_context_manager(client):
            yield Caller(client, portal)
    assert "Traceback" not in log.read_text()


def test_tools_say_what_they_take_and_give(call: Caller) -> None:
    tools = {tool.name: tool for tool in call.portal.call(call.client.list_tools).tools}
    assert {"locate", "verify", "text", "where", "embed", "models"} <= set(tools)
    for tool in tools.values():
        assert tool.description
        assert tool.output_schema is not None
        assert tool.output_schema["type"] == tool.input_schema["type"] == "object"
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
    locate = tools["locate"]
    assert locate.input_schema["required"] == ["images"]
    assert "estimates, not evidence" in str(locate.description).lower()
    assert "estimate, not evidence" in str(call.client.instructions)


def test_locate_a_path_a_data_uri_and_a_folder(call: Caller, folder: Path) -> None:
    found = call("locate", images=["rome.png"], top_k=2)
    assert found["note"] == "An estimate, not evidence."
    [rome] = found["answers"]
    assert rome["image"] == "rome.png"
    assert len(rome["candidates"]) == 2
    assert rome["sure"] is True
    assert next(iter(rome["countries"])) == "IT"
    best = rome["candidates"][0]
    assert (abs(best["lat"] - 41.9), abs(best["lon"] - 12.5)) < (2, 2)

    data = "data:image/png;base64," + base64.b64encode((folder / "rome.png").read_bytes()).decode()
    [same] = call("locate", images=[data], top_k=2)["answers"]
    assert same == {**rome, "image": "image 1"}

    everywhere = call("locate", images=[str(folder)])["answers"]
    assert [Path(one["image"]).stem for one in everywhere] == sorted(PLACES)
    for answer in everywhere:
        lat, lon = PLACES[Path(answer["image"]).stem]
        assert abs(answer["candidates"][0]["lat"] - lat) < 3
        assert abs(answer["candidates"][0]["lon"] - lon) < 6


def test_the_text_is_short_and_says_what_it_is(call: Caller) -> None:
    text = text_of(call.raw("locate", images=["rome.png"]))
    assert text.startswith("rome.png: 4")
    assert "km" in text
    assert text.endswith("An estimate, not evidence.")
    assert len(text) < 400


def test_a_bad_image_is_told_and_the_others_are_done(call: Caller, folder: Path) -> None:
    bad = folder / "bad"
    bad.mkdir()
    (bad / "broken.jpg").write_bytes(b"this is no image")
    (bad / "large.png").write_bytes(bytes(1_000_001))
    (bad / "out.png").symlink_to(folder.parent / "secret.png")
    asked = ["bad/broken.jpg", "rome.png", "bad/large.png", "bad/out.png", "none.jpg", "recife.png"]
    answers = call("locate", images=asked)["answers"]
    assert [answer["image"] for answer in answers] == asked
    told = {answer["image"]: answer.get("error") for answer in answers}
    assert told["rome.png"] is told["recife.png"] is None
    assert "JPEG, PNG" in told["bad/broken.jpg"]
    assert "--max-mb" in told["bad/large.png"]
    assert "outside" in told["bad/out.png"]
    assert "no such file" in told["none.jpg"]
    assert len(answers[1]["candidates"]) == 5

    assert "bad/broken.jpg" in call.error("locate", images=["bad/broken.jpg"])
    assert "outside" in call.error("locate", images=[str(folder.parent / "secret.png")])
    together = call.error("locate", images=["rome.png", "bad/broken.jpg"], together=True)
    assert "bad/broken.jpg: " in together
    assert str(folder) not in together


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("locate", {"images": []}, "at least 1 item"),
        ("locate", {"images": ["rome.png"], "top_k": 0}, "greater than or equal to 1"),
        ("locate", {"images": ["rome.png"], "within": ["Itly"]}, "did you mean"),
        ("locate", {"images": ["rome.png"], "within": ["/etc/area.geojson"]}, "outside of the folders"),
        ("locate", {"images": ["rome.png"], "within": ["none.geojson"]}, "there is no such file"),
        ("locate", {"images": ["rome.png"], "together": True, "text": "ice"}, "cannot be combined with together"),
        ("text", {"texts": [""]}, "is empty"),
        ("where", {"coordinates": [[120, 20]]}, "(lat, lon)"),
        ("embed", {}, "give coordinates, images or texts"),
        ("embed", {"coordinates": [[120, 20]]}, "(lat, lon)"),
        ("lokate", {}, "lokate"),
    ],
)
def test_errors_say_what_to_do(call: Caller, tool: str, arguments: dict[str, Any], message: str) -> None:
    told = call.error(tool, **arguments)
    assert message in told
    assert "errors.pydantic.dev" not in told


def test_limits_and_several_images_of_one_place(call: Caller, folder: Path) -> None:
    [answer] = call("locate", images=["rome.png"], within=["Spain"])["answers"]
    assert list(answer["countries"]) == ["ES"]
    assert answer["sure"] is None
    box = [[0, 40], [5, 40], [5, 45], [0, 45], [0, 40]]
    (folder / "area.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [box]}))
    limited = call("locate", images=["rome.png"], within=["area.geojson"], not_within=["Spain"])
    [inside] = limited["answers"]
    assert 0 <= inside["candidates"][0]["lon"] <= 5
    assert "area.geojson" in limited["gallery"]
    assert str(folder) not in limited["gallery"]
    [both] = call("locate", images=["rome.png", "rome.png"], together=True)["answers"]
    assert both["image"] == "rome.png, rome.png"
    assert next(iter(both["countries"])) == "IT"


def test_results_are_compact_unless_all_is_asked_for(call: Caller) -> None:
    compact, full = (call("locate", images=["rome.png"], full=full) for full in (False, True))
    [short], [long] = compact["answers"], full["answers"]
    assert {"model", "sha256", "within_km"} <= set(long)
    assert not {"model", "gallery", "version", "sha256", "within_km"} & set(short)
    assert compact["model"] == full["model"] == long["model"]
    assert short["candidates"][0]["lat"] == pytest.approx(long["candidates"][0]["lat"], abs=1e-5)
    assert len(json.dumps(short)) < 0.6 * len(json.dumps(long))
    many = call.raw("text", texts=["a hot desert"] * 256, top_k=20)
    content = many.structured_content
    assert content is not None
    assert len(json.dumps(content)) < 55_000  # 25,000 tokens of two characters or more
    assert len(text_of(many)) < 10_000
    assert len(content["answers"]) + content["left_out"] == 256
    assert all(len(answer["candidates"]) == 1 for answer in content["answers"])
    assert ("left out" in content["note"]) == (content["left_out"] > 0)
    everything = call("text", texts=["a hot desert"] * 256, top_k=20, full=True)
    assert [len(answer["candidates"]) for answer in everything["answers"]] == [20] * 256
    assert "at most" in call.error("embed", texts=["ice"] * 100)
    assert len(call("embed", texts=["ice"] * 100, full=True)["embeddings"]) == 100


def test_text_where_and_models(call: Caller) -> None:
    [desert, ice] = call("text", texts=["a hot desert", "ice"], top_k=3)["answers"]
    assert (desert["text"], ice["text"]) == ("a hot desert", "ice")
    assert len(desert["candidates"]) == 3
    [geneva, sea] = call("where", coordinates=[[46.2044, 6.1432], [0, -30]])["places"]
    assert (geneva["country"], sea["country"]) == ("CH", "")
    models = call("models")
    assert models["in_use"] == "earth"
    assert {"earth", "geoclip"} <= {one["name"] for one in models["models"]}


def test_verify_holds_photos_against_what_they_say(call: Caller, folder: Path) -> None:
    said = folder / "said"
    said.mkdir()
    for name, (lat, lon) in {"right": (41.9, 12.5), "moved": (8.0, 34.9), "nothing": (None, None)}.items():
        exif = Image.Exif()
        exif[0x010F] = "Maker"
        if lat is not None:
            exif.get_ifd(0x8825).update({1: "N", 2: (lat, 0, 0), 3: "E", 4: (lon, 0, 0)})
        with Image.open(folder / "rome.png") as image:
            image.save(said / f"{name}.png", exif=exif)
    found = call("verify", images=["said/right.png", "said/moved.png", "said/nothing.png", "none.png"])
    assert found["note"].startswith("A verdict is a reason to look closer")
    right, moved, nothing, none = found["photos"]
    assert [one["verdict"] for one in (right, moved, nothing)] == ["consistent", "contradicts", "cannot tell"]
    assert (right["image"], right["exif"]["lat"]) == ("said/right.png", pytest.approx(41.9, abs=1e-5))
    assert moved["comparison"]["p_value"] <= 0.01 < 0.05 < right["comparison"]["p_value"]
    assert right["candidates"] == moved["candidates"] == nothing["candidates"]
    assert "no such file" in none["error"]
    text = text_of(call.raw("verify", images=["said/moved.png"]))
    assert text.startswith("said/moved.png: CONTRADICTS, ")
    assert "it says 8.0000, 34.9000 (exif)" in text

    data = "data:image/png;base64," + base64.b64encode((said / "moved.png").read_bytes()).decode()
    assert call("verify", images=[data])["photos"][0]["verdict"] == "contradicts"


def test_a_sidecar_that_leads_outside_is_not_read(call: Caller, folder: Path) -> None:
    beside = folder / "beside"
    beside.mkdir()
    (beside / "rome.png").write_bytes((folder / "rome.png").read_bytes())
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="8,0.0N" '
        'exif:GPSLongitude="34,54.0E"/></rdf:RDF></x:xmpmeta>'
    )
    (folder.parent / "secret.xmp").write_text(packet)
    (beside / "rome.png.xmp").write_text(packet)
    [photo] = call("verify", images=["beside/rome.png"])["photos"]
    assert (photo["verdict"], photo["exif"]["source"]) == ("contradicts", "sidecar")
    (beside / "rome.png.xmp").unlink()
    (beside / "rome.png.xmp").symlink_to(folder.parent / "secret.xmp")
    told = call.error("verify", images=["beside/rome.png"])
    assert "its sidecar rome.png.xmp is outside of the folders" in told
    (beside / "rome.png.xmp").unlink()
    (beside / "rome.png.xmp").write_bytes(bytes(1_000_001))
    assert "--max-mb" in call.error("verify", images=["beside/rome.png"])


def test_embeddings_of_places_and_images_compare(call: Caller) -> None:
    found = call(
        "embed", coordinates=list(PLACES.values()), images=[f"{name}.png" for name in PLACES], texts=["ice"], full=True
    )
    assert [one["input"] for one in found["embeddings"]] == [
        *("41.9,12.5", "-8.05,-34.9", "64.1,-21.9"),
        *("rome.png", "recife.png", "reykjavik.png"),
        "ice",
    ]
    vectors = np.array([one["embedding"] for one in found["embeddings"]])
    assert vectors.shape == (7, found["dimensions"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    products = vectors[3:6] @ vectors[:3].T
    assert products.argmax(axis=1).tolist() == [0, 1, 2]
    [good, bad] = call("embed", images=["rome.png", "none.png"], coordinates=None)["embeddings"]
    assert good["embedding"] == pytest.approx(found["embeddings"][3]["embedding"], abs=1e-6)
    assert bad["embedding"] is None
    assert "no such file" in bad["error"]


def test_calls_at_the_same_time_keep_their_answers(call: Caller) -> None:
    names = [f"{name}.png" for name in PLACES]
    alone = {name: call("locate", images=[name], top_k=1)["answers"] for name in names}

    async def all_at_once() -> list[Any]:
        found: list[Any] = [None] * 12

        async def one(number: int) -> None:
            name = names[number % 3]
            found[number] = (name, await call.client.call_tool("locate", {"images": [name], "top_k": 1}))

        async with anyio.create_task_group() as group:
            for number in range(len(found)):
                group.start_soon(one, number)
        return found

    for name, result in call.portal.call(all_at_once):
        [answer], [before] = result.structured_content["answers"], alone[name]
        assert answer["image"] == name
        assert answer["candidates"][0]["lat"] == pytest.approx(before["candidates"][0]["lat"], abs=0.01)


def test_progress_is_told_and_a_cancelled_call_ends(call: Caller) -> None:
    async def told() -> list[tuple[float, float | None, str | None]]:
        seen: list[tuple[float, float | None, str | None]] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            seen.append((progress, total, message))

        await call.client.call_tool("locate", {"images": ["."]}, progress_callback=note)
        return seen

    seen = [one for one in call.portal.call(told) if one[2] != "preparing the model, once"]
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total, _ in seen} == {len(seen)}
    assert "rome.png" in {message for _, _, message in seen}

    async def cancelled() -> tuple[int, bool]:
        count = 0
        with anyio.CancelScope() as scope:

            async def note(progress: float, total: float | None, message: str | None) -> None:
                nonlocal count
                count += 1
                scope.cancel()

            await call.client.call_tool("locate", {"images": ["rome.png"] * 400}, progress_callback=note)
        before = count
        await call.client.call_tool("locate", {"images": ["recife.png"]})  # in turn: what was left has ended
        return before, scope.cancelled_caught

    before, caught = call.portal.call(cancelled)
    assert caught
    assert before < 400


def test_nothing_but_the_protocol_is_on_stdout(folder: Path, environment: dict[str, str]) -> None:
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}),
        json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        "this is not JSON",
        json.dumps(
            {
                "jsonrpc": "2.0",
                "id": 2,
                "method": "tools/call",
                "params": {"name": "where", "arguments": {"coordinates": [[48.86, 2.29]]}},
            }
        ),
    ]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "open_geoclip.cli", "mcp", "--folder", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write("".join(f"{line}\n" for line in lines))
        server.stdin.flush()
        answers = {}
        while 2 not in answers:  # every line is a message
            message = json.loads(server.stdout.readline())
            assert message["jsonrpc"] == "2.0"
            answers[message.get("id")] = message
        rest, _ = server.communicate()  # the end of its input ends it
    assert rest == ""
    assert server.returncode == 0
    assert "Paris" in answers[2]["result"]["content"][0]["text"]


@pytest.mark.parametrize(
    ("arguments", "folder_name", "status", "message"),
    [
        (["--folder", "none"], ".", 2, "there is no such folder"),
        ([], "/", 2, "say what may be read, --folder FOLDER"),
        (["--model", "erth"], ".", 2, "earth"),
        (["--max-images", "0"], ".", 2, "max_images: 1 or more"),
    ],
)
def test_wrong_use(
    arguments: list[str],
    folder_name: str,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder_name)
    with pytest.raises(SystemExit) as end:
        main(["mcp", *arguments])
    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (status, "")
    assert message in printed.err


def test_without_the_extra_it_says_which() -> None:
    code = (
        "import sys; sys.modules['mcp'] = None; sys.argv = ['geoclip', 'mcp']; import open_geoclip.cli as c; c.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'open-geoclip[mcp]'" in done.stderr
