"""The runner's figures in Prometheus' text format. Read when asked for; nothing is counted twice.

1. Names with `edge_` judge the device: of slots and seats, since the promotion.
2. Names with `nv_inference_` are Triton's, to the letter and without the ending of a counter, and mean what they
   mean there: of each version of a model, since the start. What reads Triton's figures reads these.
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from agent.core.messages import SlotFacts
from agent.runner.model_documents import version_of
from agent.runner.slots import Slot
from agent.runner.tally import Statistics

CONTENT_TYPE = CONTENT_TYPE_LATEST
LABELS = ("slot", "release")
COUNTED = (  # of a slot that serves: where its counters hold it
    (CounterMetricFamily, "edge_slot_requests", "Requests since promotion", "requests"),
    (CounterMetricFamily, "edge_slot_errors", "Faults of the seat since promotion", "errors"),
    (CounterMetricFamily, "edge_slot_not_finite", "Answers with NaN or Inf", "not_finite"),
    (CounterMetricFamily, "edge_slot_busy_seconds", "Seconds inside the model", "busy_s"),
    (GaugeMetricFamily, "edge_slot_offered_fps", "Requests per second just now", "offered_fps"),
)
TRITON: tuple[tuple[str, str, Callable[[Statistics], float]], ...] = (
    ("request_success", "Requests that were answered", lambda one: one.answered),
    ("count", "Inferences", lambda one: one.answered),
    ("exec_count", "Executions of the model", lambda one: one.answered),
    ("request_duration_us", "From a request's head to its answer", lambda one: one.answered_s * 1e6),
    ("queue_duration_us", "Waiting", lambda one: one.queue_s * 1e6),
    ("compute_input_duration_us", "Receiving", lambda one: one.input_s * 1e6),
    ("compute_infer_duration_us", "Inside the model", lambda one: one.infer_s * 1e6),
)
QUANTILES = {"0.5": "p50", "0.95": "p95", "0.99": "p99"}


class _Figures(Collector):
    def __init__(self, slots: Mapping[str, Slot], requests: int, refused: int) -> None:
        self._slots, self._requests, self._refused = slots, requests, refused

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily("edge_requests", "Requests to infer, all slots", self._requests)
        yield CounterMetricFamily("edge_refused", "Requests answered with 503", self._refused)
        facts = {name: slot.facts() for name, slot in self._slots.items()}
        yield from _of_slots(facts)
        yield from _of_those_that_serve(facts)
        yield from _as_triton_tells(self._slots)


def exposition(slots: Mapping[str, Slot], requests: int, refused: int) -> bytes:
    """All figures as text."""
    return generate_latest(_Figures(slots, requests, refused))


def _of_slots(facts: Mapping[str, SlotFacts]) -> Iterable[Metric]:
    serving = GaugeMetricFamily("edge_slot_serving", "1 while a model serves", labels=("slot",))
    labels = (*LABELS, "candidate", "state")
    memory = GaugeMetricFamily("edge_seat_memory_megabytes", "Resident memory of a seat", labels=labels)
    for name, slot in facts.items():
        serving.add_metric((name,), float(slot.serving is not None))
        for seat in slot.seats:
            memory.add_metric((name, seat.place.ref.name, str(seat.place.candidate), seat.state), seat.rss_mb)
    return serving, memory


def _of_those_that_serve(facts: Mapping[str, SlotFacts]) -> Iterable[Metric]:
    serving = {(name, one.serving.ref.name): one.counters for name, one in facts.items() if one.serving is not None}
    for family, name, meaning, field in COUNTED:
        counted = family(name, meaning, labels=LABELS)
        for labels, counters in serving.items():
            counted.add_metric(labels, getattr(counters, field))
        yield counted
    names = (*LABELS, "quantile")
    latency = GaugeMetricFamily("edge_slot_latency_milliseconds", "At the door, newest requests", labels=names)
    for labels, counters in serving.items():
        if counters.latency_ms is not None:
            for quantile, value in QUANTILES.items():
                latency.add_metric((*labels, quantile), getattr(counters.latency_ms, value))
    yield latency


def _as_triton_tells(slots: Mapping[str, Slot]) -> Iterable[Metric]:
    counted = {(slot.name, version_of(name)): one for slot in slots.values() for name, one in slot.statistics.items()}
    labels = ("model", "version")
    for name, meaning, value in TRITON:
        family = UnknownMetricFamily(f"nv_inference_{name}", meaning, labels=labels)
        for of, one in counted.items():
            family.add_metric(of, value(one))
        yield family
    failed = UnknownMetricFamily("nv_inference_request_failure", "Requests that failed", labels=(*labels, "reason"))
    for of, one in counted.items():
        failed.add_metric((*of, "BACKEND"), one.failed)
        failed.add_metric((*of, "REJECTED"), one.late)
    pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests that wait", labels=labels)
    for slot in slots.values():
        if slot.serving is not None:
            pending.add_metric((slot.name, version_of(slot.serving.place.ref.name)), len(slot.queue))
    yield from (failed, pending)
