"""Logs and metrics of the server: JSON lines on stderr, numbers for Prometheus; no content of requests or answers."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["JsonLines", "Metrics", "log_as_json", "source_lines"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def source_lines(trace: TracebackType | None) -> list[str]:
    """File and line of each frame: a traceback without the values that messages and code may hold."""
    return [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in traceback.extract_tb(trace)]


class JsonLines(logging.Formatter):
    """A record as one line of JSON; of an exception its kind and where it was raised, never its message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["at"] = source_lines(record.exc_info[2])[-8:]
        return json.dumps(line, ensure_ascii=False)


def log_as_json(level: int = logging.INFO) -> None:
    """Send this package's logs and uvicorn's to stderr, as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("open_geoclip").setLevel(level)
    for name in ("PIL", "python_multipart"):  # what they say about damaged files and forms concerns the sender alone
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(level)


class Metrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "geoclip"}
        self.requests = Counter("requests", "Requests answered", ["route", "status"], **own)
        self.seconds = Histogram("request_seconds", "From first to last byte", ["route"], buckets=_SECONDS, **own)
        self.refused = Counter("refused", "Requests refused", ["code"], **own)
        self.waiting = Gauge("queue_waiting", "Images and texts that wait or are worked on", ["model"], **own)
        self.held = Gauge("held_bytes", "Bytes of requests that are being read, wait or are worked on", **own)
        sizes = (1, 2, 4, 8, 16, 32)
        self.batches = Histogram("batch_size", "Inputs processed together", ["model"], buckets=sizes, **own)
        self.inputs = Counter("inputs", "Images and texts answered", ["model", "outcome"], **own)
        self.restarts = Counter("worker_restarts", "Workers that died or were too slow", ["model"], **own)

    def text(self) -> bytes:
        """All of them in the text format of Prometheus."""
        return generate_latest(self.registry)
