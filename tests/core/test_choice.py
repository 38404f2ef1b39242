"""Of the candidates that passed, which serves."""

import pytest

from agent.core import plan
from agent.core.candidate import Backend, Candidate
from agent.core.messages import Place
from agent.core.release import Ref

REF = Ref(name="face_detection_retinaface_widerface_20250628", digest="d")
FIRST, SECOND = (Place(ref=REF, candidate=Candidate(backend=one)) for one in (Backend.OPENVINO, Backend.CPU))


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [(100, 101, FIRST), (100, 102.9, FIRST), (101, 100, FIRST), (100, 104, SECOND), (100, 200, SECOND)],
)
def test_the_fastest_serves_and_of_equals_the_first(first, second, chosen):
    """Speeds closer than a measurement can tell are one: the config's order decides, not the noise of a minute."""
    copies = {REF: (FIRST.candidate, SECOND.candidate)}
    seen = plan.Observed(copies=copies, serving=SECOND, passed={FIRST: first, SECOND: second})
    assert plan.place_of(REF, plan.Desired(REF), seen) == chosen


@pytest.mark.parametrize(
    ("backend", "change_s", "hold_s", "passed", "step"),
    [
        (Backend.CPU, 9.0, 10.0, {}, plan.Unload),
        (Backend.CPU, 11.0, 10.0, {}, plan.Refuse),
        (Backend.CPU, 11.0, 10.0, {Backend.CPU: 1.0}, plan.Unload),
        (Backend.TENSORRT, 1.0, 10.0, {}, plan.Refuse),
        (Backend.TENSORRT, 1.0, 1e4, {}, plan.Unload),
    ],
    ids=["short", "too long", "the way back", "an engine to build", "an engine, and all the time"],
)
def test_under_resource_nothing_is_dark_for_longer_than_requests_may_wait(backend, change_s, hold_s, passed, step):
    """A release that was never tried is refused where its trial and the way back take too long; a known one is not."""
    old, new = Ref(name="a_b_c_20250601", digest="0" * 64), Ref(name="a_b_c_20250602", digest="1" * 64)
    serving = Place(ref=old, candidate=Candidate(backend=Backend.CPU))
    candidates = {new: (Candidate(backend=backend),), old: (serving.candidate,)}
    seen = plan.Observed(
        copies=candidates, seats={serving: True}, serving=serving, last_good=serving, change_s=change_s,
        passed={serving: 1.0} | {Place(ref=new, candidate=Candidate(backend=one)): fps for one, fps in passed.items()},
    )  # fmt: skip
    assert isinstance(plan.next_step(plan.Desired(new, plan.Swap.RESOURCE, hold_s=hold_s), seen, 0.0), step)
