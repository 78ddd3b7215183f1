"""What is counted, for Prometheus: numbers only, nothing of what was asked or answered."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "geoclip"}
        self.requests = Counter("requests", "Requests answered", ["route", "status"], **own)
        self.seconds = Histogram("request_seconds", "From first to last byte", ["route"], buckets=_SECONDS, **own)
        self.refused = Counter("refused", "Requests refused", ["code"], **own)
        self.waiting = Gauge("queue_waiting", "Pictures and texts that wait or are worked on", ["model"], **own)
        self.held = Gauge("held_bytes", "Bytes of requests that are being read, wait or are worked on", **own)
        self.batches = Histogram(
            "batch_size", "Pictures and texts that a model saw together", ["model"], buckets=(1, 2, 4, 8, 16, 32), **own
        )
        self.pictures = Counter("pictures", "Pictures and texts answered", ["model", "outcome"], **own)
        self.restarts = Counter("worker_restarts", "Workers that died and were replaced", ["model"], **own)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
