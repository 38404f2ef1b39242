"""Whether a serving seat keeps its gates through the soak.

Capacity (requests / seconds the seat was busy) is judged; the offered FPS never is: a camera that sends little is
no fault of the model. A soak never ends on no evidence: too few requests are made up by probes.
"""

from agent.core.candidate import Failure
from agent.core.errors import Kind
from agent.core.messages import Counters
from agent.core.release import Gates

ENOUGH_REQUESTS = 20  # fewer say nothing about a rate


def judge_soak(counters: Counters, gates: Gates) -> Failure | None:
    """The first gate that the serving seat misses, or None."""
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
    if counters.busy_s > 0 and (capacity := counters.requests / counters.busy_s) < gates.min_fps:
        reason = f"capacity of {capacity:.1f} FPS during the soak; its gate asks for {gates.min_fps:g} FPS"
        return Failure(kind=Kind.SPEED, reason=reason)
    return None


def has_evidence(counters: Counters) -> bool:
    """Whether the soak rests on anything."""
    return counters.requests >= ENOUGH_REQUESTS or counters.probes > 0
