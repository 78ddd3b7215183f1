"""Some hundred broken requests and images; `make fuzz-serve` sends thousands to a real server."""

from collections import Counter
from collections.abc import Callable
from random import Random
from types import ModuleType
from typing import Any

import httpx2
from starlette.testclient import TestClient

from open_geoclip.search.locator import Locator

Serve = Callable[..., TestClient]


def ask(client: TestClient, asked: Any) -> httpx2.Response | None:
    try:
        return client.request(asked.method, asked.path, headers=asked.headers, content=asked.body)
    except (httpx2.InvalidURL, UnicodeError):  # the client's own refusal
        return None


def test_broken_requests_are_told_so(serving: Serve, locator: Locator, fuzzing: ModuleType) -> None:
    client = serving({"earth": locator}, max_file_mb=1, max_request_mb=2)
    seen: Counter[int] = Counter()
    for asked in fuzzing.requests_broken(Random(5), 200):
        if (answer := ask(client, asked)) is not None:
            assert answer.status_code < 500, (asked, answer.text)
            is_html = answer.headers.get("Content-Type", "").startswith("text/html")  # the page, if it is not built
            if answer.status_code >= 400 and asked.method != "HEAD" and not is_html:
                assert set(answer.json()["error"]) == {"message", "type", "code"}
            seen[answer.status_code] += 1
    assert len(seen) >= 6
    assert seen[200] > 20


def test_broken_images_are_answered_one_by_one(serving: Serve, locator: Locator, fuzzing: ModuleType) -> None:
    client = serving({"earth": locator})
    answered: Counter[str] = Counter()
    for asked in fuzzing.images(Random(6), 120):
        answer = ask(client, asked)
        assert answer is not None
        assert answer.status_code in (200, 422), (asked, answer.text)
        if answer.headers["Content-Type"] == "application/json" and answer.status_code == 200:
            for record in answer.json()["data"]:
                answered["error" if "error" in record else "vector" if "embedding" in record else "answer"] += 1
    assert answered["error"] > 20
    assert answered["answer"] > 10
