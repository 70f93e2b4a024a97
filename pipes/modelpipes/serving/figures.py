"""What Prometheus is told of the gateway and of the pool behind it."""

from __future__ import annotations

import prometheus_client as prometheus

from modelpipes.gateway.wire import Residency


class GatewayFigures:
    """The gateway's own figures, beside the pool's."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        name = "modelpipes_gateway_"
        self.running = prometheus.Gauge(name + "running", "Requests now", registry=self.registry)
        self.waiting = prometheus.Gauge(name + "waiting", "Requests that wait for an engine", registry=self.registry)
        self.again = prometheus.Counter(name + "again", "Requests asked of a second engine", registry=self.registry)
        self.left = prometheus.Counter(name + "left", "Requests whose client left", registry=self.registry)
        self.broken = prometheus.Counter(name + "broken", "Answers that broke off", registry=self.registry)
        self.first_byte = prometheus.Histogram(
            name + "first_byte_seconds",
            "From the whole request to the first byte of the engine's answer",
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )
        self._answers = prometheus.Counter(
            name + "answers", "Answers by path and status", ["path", "status"], registry=self.registry
        )
        self._children: dict[tuple[str, int], prometheus.Counter] = {}

    def count(self, path: str, status: int) -> None:
        """One answer; `path` is one of few."""
        child = self._children.get((path, status))
        if child is None:
            child = self._children[path, status] = self._answers.labels(path, str(status))
        child.inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return prometheus.generate_latest(self.registry)


class PoolFigures:
    """What became of the models, and the memory that they take."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        name = "modelpipes_pool_"
        seconds = (0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
        self.waited = prometheus.Histogram(
            name + "waited_seconds", "From a request to its engine", registry=self.registry, buckets=seconds
        )
        self.load = prometheus.Histogram(
            name + "load_seconds", "From a decision to a ready engine", registry=self.registry, buckets=seconds
        )
        self.restore = prometheus.Histogram(
            name + "restore_seconds", "Of a load: saved conversations", registry=self.registry, buckets=seconds
        )
        self.stop = prometheus.Histogram(
            name + "stop_seconds", "From a decision to free memory", registry=self.registry, buckets=seconds
        )
        self.save = prometheus.Histogram(
            name + "save_seconds", "Of a stop: conversations to be kept", registry=self.registry, buckets=seconds
        )
        self.restored = prometheus.Counter(
            name + "restored", "Conversations that went on after a swap", registry=self.registry
        )
        self.failures = prometheus.Counter(
            name + "failures", "Engines that failed to start, or died", registry=self.registry
        )
        self.decisions = prometheus.Counter(
            name + "decisions", "Decisions, by what was decided", ["action"], registry=self.registry
        )
        self.bytes = prometheus.Gauge(
            name + "bytes", "Memory, by place and use", ["place", "use"], registry=self.registry
        )
        self.waiting = prometheus.Gauge(name + "waiting", "Requests that wait for an engine", registry=self.registry)
        self.resident = prometheus.Gauge(name + "resident", "Models in memory", registry=self.registry)

    def text(self, now: Residency) -> bytes:
        """In Prometheus' text format."""
        self.bytes.labels("card", "budget").set(now.budget_bytes)
        self.bytes.labels("card", "used").set(now.used_bytes)
        self.bytes.labels("host", "budget").set(now.host_budget_bytes)
        self.bytes.labels("host", "used").set(now.host_used_bytes)
        self.waiting.set(len(now.waiting))
        self.resident.set(len(now.resident))
        return prometheus.generate_latest(self.registry)
