"""Logs and metrics of the server: JSON lines on stderr, numbers for Prometheus; no content of requests or answers."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["JsonLines", "Metrics", "log_as_json"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


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
            frames = []
            trace = record.exc_info[2]
            while trace is not None:
                frames.append(f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
                trace = trace.tb_next
            line["at"] = frames[-8:]
        return json.dumps(line, ensure_ascii=False)


def log_as_json(level: int = logging.INFO) -> None:
    """Send this package's logs and uvicorn's to stderr, as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("open_geoclip").setLevel(level)
    # What it says about damaged images is in their answers, and concerns their sender alone.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
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
        self.batches = Histogram(
            "batch_size",
            "Images and texts that a model processed together",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32),
            **own,
        )
        self.inputs = Counter("inputs", "Images and texts answered", ["model", "outcome"], **own)
        self.restarts = Counter(
            "worker_restarts", "Workers that died or were too slow, and were replaced", ["model"], **own
        )

    def text(self) -> bytes:
        """All of them in the text format of Prometheus."""
        return generate_latest(self.registry)
