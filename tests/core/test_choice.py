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
