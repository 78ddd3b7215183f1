"""Every route answers as its description says."""

import base64
import json
import re
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from open_geoclip.search.locator import Locator
from open_geoclip.server.app import create_app
from open_geoclip.server.settings import ServerSettings

Serve = Callable[..., TestClient]
Png = Callable[..., bytes]


def test_images_are_answered_as_the_locator_answers_them(serving: Serve, locator: Locator, png: Png) -> None:
    images = [png(seed) for seed in range(11)]
    files = [("images", (f"{n}.png", data)) for n, data in enumerate(images)]
    files.insert(1, ("images", ("bad.png", b"no image")))
    answer = serving().post("/v1/locate", files=files, data={"top_k": "2"}).json()
    assert (answer["object"], answer["model"]) == ("list", "small")
    assert [record["image"] for record in answer["data"]] == ["0.png", "bad.png", *(f"{n}.png" for n in range(1, 11))]
    bad = answer["data"].pop(1)
    assert set(bad) == {"image", "error"}
    for record, expected in zip(answer["data"], locator.locate(images, top_k=2), strict=True):
        assert record["model"] == expected.model
        for found, candidate in zip(record["candidates"], expected.candidates, strict=True):
            assert (found["lat"], found["lon"]) == (candidate.lat, candidate.lon)
            assert found["probability"] == pytest.approx(candidate.probability, rel=1e-4)


def test_concurrent_requests_get_the_answers_of_their_own_images(serving: Serve, locator: Locator, png: Png) -> None:
    client = serving()
    limits = [{}, {"top_k": "1"}, {"within": "-40,-170,60,170"}, {"decode": "max"}]

    def ask(n: int) -> list[tuple[float, float]]:
        answer = client.post("/v1/locate", files=[("images", (f"{n}", png(n)))], data=limits[n % 4]).json()
        [record] = answer["data"]
        assert record["image"] == str(n)
        return [(c["lat"], c["lon"]) for c in record["candidates"]]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(48)))
    for n in range(0, 48, 4):
        [answer] = locator.locate([png(n)])
        assert found[n] == [(c.lat, c.lon) for c in answer.candidates]
    assert all(len(found[n]) == 1 for n in range(1, 48, 4))


def test_several_images_as_one_place_give_one_answer(serving: Serve, locator: Locator, png: Png) -> None:
    client = serving()
    files = [("images", (f"{n}.png", png(n))) for n in range(3)]
    [record] = client.post("/v1/locate", files=files, data={"together": "true"}).json()["data"]
    expected = locator.locate_together([png(n) for n in range(3)])
    assert record["image"] == "0.png, 1.png, 2.png"
    assert record["candidates"][0]["lat"] == expected.candidates[0].lat
    files.append(("images", ("bad.png", b"x")))
    [record] = client.post("/v1/locate", files=files, data={"together": "true"}).json()["data"]
    assert "bad.png" in record["error"]


def test_an_image_is_explained_as_the_locator_explains_it(serving: Serve, locator: Locator, png: Png) -> None:
    client = serving()
    files = [("images", ("a.png", png(1, 224)))]
    asked = {"place": "41.9, 12.5", "versus": "-33.9,18.6", "grid": "2"}
    found = client.post("/v1/explain", files=files, data=asked).json()
    expected = locator.explain(png(1, 224), (41.9, 12.5), (-33.9, 18.6), grid=2).to_dict()
    for name in ("image", "sha256", "regions", "map"):
        expected.pop(name)
    assert found.pop("image") == "a.png"
    assert set(found.pop("sha256")) == {"image", "weights", "gallery"}
    assert np.shape(found.pop("map")) == (14, 14)
    assert len(found.pop("regions")) == 4
    assert {**found, "place": tuple(found["place"]), "versus": tuple(found["versus"])} == {
        **expected,
        "crop": list(expected["crop"]),
        **{name: pytest.approx(expected[name], abs=1e-5) for name in ("score", "versus_score", "probability")},
    }
    within = client.post("/v1/explain", files=files, data={"grid": "0", "within": "-60,0,-30,180"}).json()
    assert -60 <= within["place"][0] <= -30


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"place": "somewhere"}, "place: write lat,lon"),
        ({"place": "91,0"}, "no latitude"),
        ({"place": "1,2", "versus": "1,2"}, "the same place"),
        ({"grid": "17"}, "grid"),
        ({"top_k": "2"}, "top_k"),
    ],
)
def test_what_cannot_be_explained_is_a_422(serving: Serve, png: Png, data: dict[str, str], message: str) -> None:
    answer = serving().post("/v1/explain", files=[("images", ("a.png", png(1)))], data=data)
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]


def test_one_readable_image_is_explained(serving: Serve, png: Png) -> None:
    client = serving()
    files = [("images", (f"{n}.png", png(n))) for n in range(2)]
    assert "one image at a time" in client.post("/v1/explain", files=files).json()["error"]["message"]
    bad = client.post("/v1/explain", files=[("images", ("bad.png", b"no image"))])
    assert (bad.status_code, bad.json()["error"]["code"]) == (422, "invalid_image")


def test_embeddings_keep_the_order_of_mixed_inputs(serving: Serve, locator: Locator, png: Png) -> None:
    client = serving()
    inputs = ["10,20", "data:image/png;base64," + base64.b64encode(png(1)).decode(), "-0.5,1e1"]
    asked = {"model": "small", "input": inputs}
    floats = client.post("/v1/embeddings", json=asked).json()["data"]
    packed = client.post("/v1/embeddings", json=asked | {"encoding_format": "base64"}).json()["data"]
    assert [one["index"] for one in floats] == [0, 1, 2]
    assert floats[1]["embedding"] == pytest.approx(locator.encode([png(1)])[0].tolist(), abs=1e-5)
    for one, other in zip(floats, packed, strict=True):
        data = base64.b64decode(other["embedding"])
        assert one["embedding"] == pytest.approx(struct.unpack(f"<{len(data) // 4}f", data))
        assert np.linalg.norm(one["embedding"]) == pytest.approx(1, abs=1e-5)


TRIANGLE = json.dumps({"type": "Polygon", "coordinates": [[[0, 0], [60, 0], [0, 60], [0, 0]]]})


def test_areas_hold_what_is_found(serving: Serve, png: Png) -> None:
    files = [("images", ("a.png", png(1)))]
    [record] = serving().post("/v1/locate", files=files, data={"within": [TRIANGLE]}).json()["data"]
    assert record["candidates"]
    assert all(c["lat"] >= 0 and c["lon"] >= 0 and c["lat"] + c["lon"] <= 60 for c in record["candidates"])


def test_limits_are_countries_by_any_usual_name(serving: Serve, png: Png) -> None:
    client, names = (
        serving(),
        {"UK": "GB", "usa": "US", "Holland": "NL", "Burma": "MM", "CZE": "CZ", "Ivory Coast": "CI"},
    )
    for name, code in (names | {"cote d'ivoire": "CI", "DRC": "CD", "Deutschland": "DE"}).items():
        files = [("images", ("a.png", png(1)))]
        [record] = client.post("/v1/locate", files=files, data={"within": name}).json()["data"]
        assert {candidate["country"] for candidate in record["candidates"]} == {code}, name


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"top_k": "0"}, 422, "top_k"),
        ({"top_k": "101"}, 422, "top_k"),
        ({"top_k": ["1", "2"]}, 422, "given twice"),
        ({"nothing": "1"}, 422, "nothing"),
        ({"model": "other"}, 404, "small"),
        ({"within": "Atlantis"}, 422, "Atlantis"),
        ({"not_within": "Germny"}, 422, "did you mean Germany"),
        ({"within": "/etc/area.geojson"}, 422, "send the GeoJSON itself"),
        ({"within": "{"}, 422, "GeoJSON"),
        ({"within": "20,-40,30,-30"}, 422, "sea"),
        ({"text": "a desert", "together": "true"}, 422, "alone"),
        ({"text_weight": "2"}, 422, "text_weight"),
        ({"decode": "best"}, 422, "decode"),
    ],
)
def test_what_does_not_fit_is_told(serving: Serve, png: Png, fields: dict[str, Any], status: int, told: str) -> None:
    answer = serving().post("/v1/locate", files=[("images", ("a.png", png(1)))], data=fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert told in error["message"]
    assert set(error) == {"message", "type", "code"}


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/json", 415),
        (b"", "multipart/form-data", 400),
        (b"--b\r\n", "multipart/form-data; boundary=b", 400),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 400),
        (
            b'--b\r\nContent-Disposition: form-data; name="images"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            422,
        ),
        (b"--b\r\nX: " + b"y" * 10000, "multipart/form-data; boundary=b", 400),
    ],
)
def test_damaged_forms(serving: Serve, body: bytes, kind: str, status: int) -> None:
    assert serving().post("/v1/locate", content=body, headers={"Content-Type": kind}).status_code == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 422),
        ("[]", 422),
        ('{"texts":[]}', 422),
        ('{"texts":["a"],"top_k":"5"}', 422),
        ('{"texts":["\\ud800"]}', 422),
    ],
)
def test_damaged_json(serving: Serve, body: str, status: int) -> None:
    answer = serving().post("/v1/text", content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == status


@pytest.mark.parametrize("given", ["", "91,0", "data:image/png;base64,@@", "data:image/png,abc"])
def test_inputs_that_are_none(serving: Serve, given: str) -> None:
    answer = serving().post("/v1/embeddings", json={"model": "small", "input": [given]})
    assert answer.status_code == 422
    assert "input 0" in answer.json()["error"]["message"]


def test_lists(serving: Serve) -> None:
    client = serving()
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["small"]
    countries = {country["code"]: country for country in client.get("/v1/countries").json()}
    assert countries["FR"]["name"] == "France"
    assert {"GB", "GBR", "UK", "Great Britain"} <= set(countries["GB"]["spellings"])
    assert client.get("/v1/page").json()["limits"]["max_images"] == 100
    nothing, wrong = client.get("/nothing"), client.get("/v1/locate")
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (404, "not_found")
    assert "/openapi.json" in nothing.json()["error"]["message"]
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert "takes POST" in wrong.json()["error"]["message"]
    assert client.get("/readyz").status_code == client.get("/healthz").status_code == 200


def test_answers_as_files(serving: Serve, png: Png) -> None:
    from open_geoclip.export.formats import FORMATS, About, render

    client = serving()
    assert client.get("/v1/page").json()["formats"] == list(FORMATS)
    described = client.get("/openapi.json").json()["paths"]["/v1/locate"]["post"]["responses"]["200"]["content"]
    assert set(described) == {"application/json", *(kind.media_type for kind in FORMATS.values())}
    files = [("images", ("a.png", png(1))), ("images", ("b.png", b"x"))]
    records = client.post("/v1/locate", files=files).json()["data"]
    table = client.post("/v1/locate", files=files, data={"format": "csv"})
    assert table.headers["Content-Disposition"] == 'attachment; filename="answers.csv"'
    assert table.headers["Content-Type"].startswith("text/csv")
    time = re.compile(rb"\d\d:\d\d:\d\d\+00:00")  # when the table was made
    assert time.sub(b"", table.content) == time.sub(b"", render(records, "csv", about=About()))
    places = client.post("/v1/export", json={"format": "geojson", "records": records})
    assert places.json()["type"] == "FeatureCollection"
    assert client.post("/v1/export", json={"format": "csv", "records": [{"image": 1}]}).status_code == 422


def test_metrics_count_what_was_asked(serving: Serve, png: Png) -> None:
    client = serving()
    client.post("/v1/locate", files=[("images", ("a.png", png(1))), ("images", ("b.png", b"x"))])
    text = client.get("/metrics").text
    assert 'geoclip_inputs_total{model="small",outcome="answered"} 1.0' in text
    assert 'geoclip_inputs_total{model="small",outcome="unreadable"} 1.0' in text
    assert 'geoclip_requests_total{route="/v1/locate",status="200"} 1.0' in text
    assert 'geoclip_queue_waiting{model="small"} 0.0' in text
    assert "geoclip_held_bytes 0.0" in text


def test_the_examples_of_the_description_are_right(serving: Serve, png: Png) -> None:
    client = serving()
    paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert {"400", "405"} <= set(operation["responses"])
            if method != "post":
                continue
            [(kind, content)] = operation["requestBody"]["content"].items()
            assert content["examples"]
            for name, example in content["examples"].items():
                value = dict(example["value"])
                value.pop("model", None)
                if kind == "multipart/form-data":
                    files = [("images", (f"{n}.png", png(n))) for n, _ in enumerate(value.pop("images"))]
                    files += [("tracks", (f"{n}.gpx", b"<gpx/>")) for n, _ in enumerate(value.pop("tracks", []))]
                    answer = client.post(path, files=files, data=value)
                else:
                    answer = client.post(path, json=value | ({"model": "small"} if "input" in value else {}))
                assert answer.status_code == 200, (path, name, answer.text)


def test_requests_made_from_the_description_cannot_break_it(locator: Locator) -> None:
    app = create_app(ServerSettings(max_file_mb=1, max_request_mb=2), {"small": locator})
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    found: Iterable[Any] = schema.get_all_operations()  # what is no operation has no `ok`: it fails
    for operation in (one.ok() for one in found):

        @settings(
            max_examples=15,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            # A text that is no country is refused, and the description cannot say which are.
            case.call_and_validate(
                headers={"Host": "localhost"}, excluded_checks=[positive_data_acceptance], timeout=60
            )

        check()


def test_detail_is_told_where_it_is_asked_for(serving: Serve, png: Png) -> None:
    client = serving()
    for together in ("false", "true"):
        for detail in ("false", "true"):
            files = [("images", (f"{n}.png", png(n))) for n in range(2)]
            done = client.post("/v1/locate", data={"detail": detail, "together": together}, files=files)
            assert done.status_code == 200, done.text
            for answer in done.json()["data"]:
                assert ({"regions", "heat"} <= answer.keys()) == (detail == "true")
    done = client.post("/v1/text", json={"texts": ["a hot desert"], "detail": True})
    assert set(done.json()["data"][0]["regions"]) == {"50", "90"}
