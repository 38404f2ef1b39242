"""What a seat is asked, and what its answer is worth.

1. A run has a deadline, which the release's own gate for latency gives; past it the seat counts as hung.
2. A refusal for the request's sake blames the request. Any other, and NaN or Inf out of an input without, the seat.
3. A client gets whatever there is: an answer with NaN as such, a refusal as an error that says who must act.
"""

from dataclasses import dataclass

from agent.core.candidate import Failure
from agent.core.errors import BackendError, InputError, Kind
from agent.core.messages import Refused, SeatRan
from agent.core.release import Config
from agent.runner.seats import Seat

RUN_S = (3.0, 30.0)  # bounds of a run's deadline: a busy device's hiccup, and what a camera may be kept waiting
RUN_FACTOR = 5  # a run is hung when it takes so many times the latency that its gate allows


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and the seat that gave it."""

    seat: Seat
    ran: SeatRan


def run_deadline_s(config: Config) -> float:
    """How long one run may take before the seat counts as hung."""
    shortest, longest = RUN_S
    return min(max(RUN_FACTOR * config.gates.max_latency_p95_ms / 1000, shortest), longest)


def fault_of(seat: Seat, answer: SeatRan | Refused) -> Failure | None:
    """What is wrong with an answer, if anything."""
    if isinstance(answer, Refused):
        return answer.failure
    if answer.finite:
        return None
    return Failure(kind=Kind.PARITY, reason=f"{seat.place}: an answer held NaN or Inf for an input that held none")


def answer_anyway(seat: Seat, answer: SeatRan | Refused) -> Answered:
    """The answer, also one with NaN or Inf: the client is told so.

    Raises:
        InputError: the request does not fit the model after all.
        BackendError: there is none.
    """
    if isinstance(answer, SeatRan):
        return Answered(seat, answer)
    if answer.failure.kind is Kind.STRUCTURE:
        raise InputError(answer.failure.reason)
    raise BackendError(answer.failure.reason, answer.failure.kind)
