"""Jobs and answers as bytes: JSON, and pictures after it. Nothing that comes from a worker is unpickled."""

import json
import struct
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from open_geoclip.server.jobs import Job, Options, Picture

__all__ = ["HEAD", "jobs_from", "packed_jobs", "packed_message", "parts_of"]

HEAD = struct.Struct("<QQ")
"""Sizes of a message's JSON and of the bytes after it."""


def packed_message(content: Any, blobs: Iterable[bytes] = ()) -> list[bytes]:
    """A message, as parts to write one after the other."""
    text, blobs = json.dumps(content).encode(), list(blobs)
    return [HEAD.pack(len(text), sum(map(len, blobs))), text, *blobs]


def packed_jobs(jobs: Iterable[Job]) -> list[bytes]:
    """Jobs for a worker, as parts to write."""
    blobs: list[bytes] = []

    def plain(picture: Picture) -> list[Any]:
        blobs.append(picture.data)
        return [picture.name, len(picture.data)]

    content = [
        {
            "kind": job.kind,
            "options": asdict(job.options),
            "pictures": [plain(picture) for picture in job.pictures],
            "texts": job.texts,
            "inputs": [
                {"picture": plain(given)} if isinstance(given, Picture) else {"given": given} for given in job.inputs
            ],
        }
        for job in jobs
    ]
    return packed_message(content, blobs)


def jobs_from(text: bytes, blobs: bytes) -> list[Job]:
    """Jobs as :func:`packed_jobs` wrote them."""
    at = 0

    def picture(plain: list[Any]) -> Picture:
        nonlocal at
        name, size = plain
        at += size
        return Picture(name, blobs[at - size : at])

    def given(plain: dict[str, Any]) -> Picture | tuple[float, float] | str:
        if "picture" in plain:
            return picture(plain["picture"])
        return plain["given"] if isinstance(plain["given"], str) else tuple(plain["given"])

    return [
        Job(
            job["kind"],
            Options(**_frozen(job["options"])),
            tuple(picture(plain) for plain in job["pictures"]),
            tuple(job["texts"]),
            tuple(given(plain) for plain in job["inputs"]),
        )
        for job in json.loads(text)
    ]


def _frozen(options: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def parts_of(head: bytes) -> tuple[int, int]:
    """How many bytes of JSON and of blobs follow a message's head."""
    text, blobs = HEAD.unpack(head)
    return text, blobs
