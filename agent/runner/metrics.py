"""The runner's figures in Prometheus' text format. Read when asked for; nothing is counted twice."""

from collections.abc import Iterable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.core.messages import SlotFacts
from agent.runner.slots import Slot

CONTENT_TYPE = CONTENT_TYPE_LATEST
LABELS = ("slot", "release")


class _Figures(Collector):
    def __init__(self, slots: Mapping[str, Slot], requests: int, refused: int) -> None:
        self._slots, self._requests, self._refused = slots, requests, refused

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily("edge_requests", "Requests to infer, all slots", self._requests)
        yield CounterMetricFamily("edge_refused", "Requests answered with 503", self._refused)
        families = _families()
        for name, slot in self._slots.items():
            _add(families, name, slot.facts())
        yield from families.values()


def exposition(slots: Mapping[str, Slot], requests: int, refused: int) -> bytes:
    """All figures as text."""
    registry = CollectorRegistry()
    registry.register(_Figures(slots, requests, refused))
    return generate_latest(registry)


def _families() -> dict[str, CounterMetricFamily | GaugeMetricFamily]:
    return {
        "serving": GaugeMetricFamily("edge_slot_serving", "1 while a model serves", labels=("slot",)),
        "requests": CounterMetricFamily("edge_slot_requests", "Requests since promotion", labels=LABELS),
        "errors": CounterMetricFamily("edge_slot_errors", "Faults of the seat since promotion", labels=LABELS),
        "not_finite": CounterMetricFamily("edge_slot_not_finite", "Answers with NaN or Inf", labels=LABELS),
        "busy": CounterMetricFamily("edge_slot_busy_seconds", "Seconds inside the model", labels=LABELS),
        "offered": GaugeMetricFamily("edge_slot_offered_fps", "Requests per second just now", labels=LABELS),
        "latency": GaugeMetricFamily(
            "edge_slot_latency_milliseconds", "At the door, newest requests", labels=(*LABELS, "quantile")
        ),
        "memory": GaugeMetricFamily(
            "edge_seat_memory_megabytes", "Resident memory of a seat", labels=(*LABELS, "candidate", "state")
        ),
    }


def _add(families: dict[str, CounterMetricFamily | GaugeMetricFamily], slot: str, facts: SlotFacts) -> None:
    families["serving"].add_metric((slot,), float(facts.serving is not None))
    for seat in facts.seats:
        place = seat.place
        families["memory"].add_metric((slot, place.ref.name, str(place.candidate), seat.state), seat.rss_mb)
    if facts.serving is None:
        return
    labels, counters = (slot, facts.serving.ref.name), facts.counters
    families["requests"].add_metric(labels, counters.requests)
    families["errors"].add_metric(labels, counters.errors)
    families["not_finite"].add_metric(labels, counters.not_finite)
    families["busy"].add_metric(labels, counters.busy_s)
    families["offered"].add_metric(labels, counters.offered_fps)
    if counters.latency_ms is not None:
        for quantile, value in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99")):
            families["latency"].add_metric((*labels, quantile), getattr(counters.latency_ms, value))
