"""Whether a serving seat keeps its gates through the soak.

Capacity (requests / seconds the seat was busy) is judged; the offered FPS never is: a camera that sends little is
no fault of the model. Nor are the cameras that wait for each other: the time inside the seat is judged, not that at
the door. A soak never ends on no evidence: too few requests are made up by probes. A trial is over before a device is
hot: what heat costs is told, and ends no soak while the gates are kept.
"""

from collections.abc import Sequence
from statistics import median

from agent.core.candidate import Evidence, Failure
from agent.core.errors import Kind
from agent.core.messages import Counters
from agent.core.release import Config

ENOUGH_REQUESTS = 20  # fewer say nothing about a rate
ENOUGH_FOR_P95 = 100  # five of them are the slowest five in a hundred
SLOWED = 1.5  # times the median of the trial: a third of the speed is gone


def judge_soak(counters: Counters, config: Config) -> Failure | None:
    """The first gate that the serving seat misses, or None."""
    gates = config.gates
    if counters.not_finite:
        return Failure(kind=Kind.PARITY, reason=f"{counters.not_finite} answers held NaN or Inf during the soak")
    if counters.probe_failures:
        return Failure(kind=Kind.PARITY, reason="golden samples came out wrong during the soak")
    if counters.requests < ENOUGH_REQUESTS:
        return None
    if counters.errors > gates.max_error_rate * counters.requests:
        return Failure(
            kind=Kind.BACKEND,
            reason=f"{counters.errors} of {counters.requests} requests failed during the soak; "
            f"its gate allows {gates.max_error_rate:.1%}",
        )
    capacity = counters.requests * config.batch_size / counters.busy_s if counters.busy_s else gates.min_fps
    p95 = counters.run_ms.p95 if counters.run_ms is not None and counters.requests >= ENOUGH_FOR_P95 else 0.0
    reason = ""
    if capacity < gates.min_fps:
        reason = f"capacity of {capacity:.1f} FPS during the soak; its gate asks for {gates.min_fps:g} FPS"
    elif p95 > gates.max_latency_p95_ms:
        reason = f"p95 latency {p95:.1f} ms during the soak; its gate allows {gates.max_latency_p95_ms:g} ms"
    return Failure(kind=Kind.SPEED, reason=reason) if reason else None


def judge_pace(run_ms: Sequence[float], config: Config) -> Failure | None:
    """What is wrong when a seat has become slow, also after its soak: half of the newest requests miss the gates.

    The gate allows one in twenty; a device that is busy for a moment makes more of them late, but not half.
    """
    allowed_ms = min(config.gates.max_latency_p95_ms, 1000 * config.batch_size / max(config.gates.min_fps, 1e-3))
    if not run_ms or (half_ms := median(run_ms)) <= allowed_ms:
        return None
    reason = (
        f"half of the newest {len(run_ms)} requests took {half_ms:.0f} ms or more; its gates allow {allowed_ms:.0f} ms"
    )
    return Failure(kind=Kind.SPEED, reason=reason)


def slowed(counters: Counters, trial: Evidence) -> str:
    """How much longer the newest runs take than those of the trial, in words; nothing where they are about as quick."""
    now, then = counters.run_ms, trial.latency_ms
    if now is None or then is None or counters.requests < ENOUGH_FOR_P95 or now.p50 < SLOWED * then.p50:
        return ""
    return f"half of the newest requests took {now.p50:.1f} ms or more, in its trial it was {then.p50:.1f} ms"


def has_evidence(counters: Counters) -> bool:
    """Whether the soak rests on anything."""
    return counters.requests >= ENOUGH_REQUESTS or counters.probes > 0
