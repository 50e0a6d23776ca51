"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from streamdrop._version import __version__
from streamdrop.service.daemon import Daemon
from streamdrop.service.stats import BUCKETS, Histogram
from streamdrop.service.stream_session import StreamSession

COUNTERS = {
    "frames": "Frames that came from the source",
    "tracked": "Frames in which the target was looked for",
    "dropped": "Frames passed over because they were late",
    "lost": "Tracked frames in which the target was not found",
    "rounds": "Adaptation rounds",
    "failures": "Times that the stream failed and was started again",
    "saves": "Times that state was saved",
    "save_failures": "Times that state could not be saved",
    "output_failures": "Times that something could not be written",
}


class DaemonCollector(Collector):
    """Metrics made from the sessions when they are asked for: those of a stream end with it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def collect(self) -> Iterable[Metric]:
        """Every family, one sample a stream."""
        sessions = self._daemon.sessions()
        info = GaugeMetricFamily("streamdrop_build_info", "Always 1", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily("streamdrop_start_time_seconds", "When the daemon began", self._daemon.began)
        yield GaugeMetricFamily(
            "streamdrop_config_reload_success", "Whether the last reload succeeded", not self._daemon.reload_failed
        )
        used = CounterMetricFamily("streamdrop_turn_seconds", "Computing time used", labels=["stream"])
        for name, seconds in self._daemon.share.used().items():
            used.add_metric([name], seconds)
        yield used
        for field, text in COUNTERS.items():
            family = CounterMetricFamily(f"streamdrop_{field}", text, labels=["stream"])
            for session in sessions:
                family.add_metric([session.name], getattr(session.stats.counters, field))
            yield family
        yield from _of_signals(sessions)
        yield from _gauges(sessions)
        yield _distribution(
            "streamdrop_frame_latency_seconds", "From a frame's arrival to its result", sessions, "latency"
        )
        yield _distribution("streamdrop_update_seconds", "Time in the tracker per frame", sessions, "update")
        yield _distribution("streamdrop_round_seconds", "Time of an adaptation round", sessions, "round")


def _of_signals(sessions: list[StreamSession]) -> Iterable[Metric]:
    up = GaugeMetricFamily("streamdrop_stream_up", "Whether frames come", labels=["stream"])
    reconnects = CounterMetricFamily("streamdrop_reconnects", "Times that the source came back", labels=["stream"])
    skipped = CounterMetricFamily("streamdrop_skipped", "Frames that could not be decoded", labels=["stream"])
    for session in sessions:
        up.add_metric([session.name], session.signal.up)
        reconnects.add_metric([session.name], session.signal.reconnects)
        skipped.add_metric([session.name], session.signal.skipped)
    return up, reconnects, skipped


def _gauges(sessions: list[StreamSession]) -> Iterable[Metric]:
    names = {
        "target": "Whether there is a target",
        "targets": "Targets",
        "targets_lost": "Targets that are lost",
        "target_lost": "Whether it is lost",
        "score": "Score of the last frame",
        "fps": "Frames tracked a second, of late",
        "cut": "Layers dropped",
        "layers": "Droppable layers",
        "loss": "Loss of the last round",
        "paused": "Whether the stream is paused",
        "saved_timestamp_seconds": "When state was last saved",
    }
    families = {name: GaugeMetricFamily(f"streamdrop_{name}", text, labels=["stream"]) for name, text in names.items()}
    for session in sessions:
        status = session.status()
        target = status["target"]
        values = {
            "target": target is not None,
            "target_lost": bool(target and target["lost"]),
            "targets": len(status["targets"]),
            "targets_lost": sum(one["lost"] for one in status["targets"]),
            "score": target["score"] if target else None,
            "saved_timestamp_seconds": status["saved"],
            **{name: status[name] for name in ("fps", "cut", "layers", "loss", "paused")},
        }
        for name, value in values.items():
            if value is not None:
                families[name].add_metric([session.name], float(value))
    return families.values()


def _distribution(name: str, text: str, sessions: list[StreamSession], which: str) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["stream"])
    for session in sessions:
        histogram: Histogram = getattr(session.stats, which)
        edges = [*(str(bound) for bound in BUCKETS), "+Inf"]
        below = map(float, accumulate(tuple(histogram.counts)))
        family.add_metric([session.name], list(zip(edges, below, strict=True)), histogram.total)
    return family


def render(daemon: Daemon) -> bytes:
    """All metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(DaemonCollector(daemon))
    return bytes(generate_latest(registry))
