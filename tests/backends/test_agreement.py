"""Answers of a detector that show the same pass, whatever moved; answers that show something else do not."""

import numpy as np
import pytest

from agent.backends.agreement import alone
from agent.backends.golden import Sample, compare
from agent.core.candidate import Backend, Candidate, Evidence, judge
from agent.core.errors import BackendError, Kind
from agent.core.release import Detections, Gates, Tolerance

RULE = Detections(boxes="boxes", scores="scores")
BOXES = np.array([[[10, 10, 50, 50], [60, 60, 90, 80], [0, 0, 5, 5]]], np.float32)  # [1, 3, 4]
SCORES = np.array([[[0.9, 0.1], [0.2, 0.8], [0.3, 0.1]]], np.float32)  # [1, 3, 2]: two detections


def changed(array, place, value):
    copy = array.copy()
    copy[place] = value
    return copy


def test_the_same_answer_agrees():
    """And so does an answer without any detection with another one without any."""
    assert alone((BOXES, SCORES), (BOXES, SCORES), RULE) == 0
    assert alone((BOXES, SCORES * 0), (BOXES, SCORES * 0), RULE) == 0
    assert alone((BOXES[:, :0], SCORES[:, :0]), (BOXES[:, :0], SCORES[:, :0]), RULE) == 0
    assert alone((BOXES[0], SCORES[0]), (BOXES[0], SCORES[0]), RULE) == 0


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [
        (changed(BOXES, (0, 0), [10, 10, 51, 51]), SCORES),
        (BOXES, changed(SCORES, (0, 0, 0), 0.86)),
        (changed(BOXES, (0, 2), [70, 0, 95, 5]), SCORES),
        (BOXES[:, ::-1], SCORES[:, ::-1]),
        (BOXES, changed(SCORES, (0, 2, 0), 0.54)),
    ],
    ids=["box a little off", "score a little off", "no detection moved", "another order", "neither one nor the other"],
)
def test_what_shows_the_same_agrees(boxes, scores):
    """Small differences, and whatever is no detection for sure, do not count."""
    assert alone((BOXES, SCORES), (boxes, scores), RULE) == 0


@pytest.mark.parametrize(
    ("boxes", "scores", "share"),
    [
        (changed(BOXES, (0, 0), [16, 10, 56, 50]), SCORES, 2 / 4),
        (BOXES, changed(SCORES, (0, 0, 0), 0.8), 2 / 4),
        (BOXES, changed(SCORES, (0, 0), [0.1, 0.9]), 2 / 4),
        (BOXES, changed(SCORES, (0, 0, 0), 0.1), 1 / 3),
        (BOXES, changed(SCORES, (0, 2, 0), 0.9), 1 / 5),
        (BOXES, SCORES * 0, 2 / 2),
    ],
    ids=["moved", "less sure", "another class", "missing", "one too many", "nothing found"],
)
def test_what_shows_something_else_does_not(boxes, scores, share):
    """The share of detections, of both answers together, that have no partner."""
    assert alone((BOXES, SCORES), (boxes, scores), RULE) == pytest.approx(share)


def test_images_of_a_batch_are_not_each_other_s_partners():
    """The same two answers in another order are four detections too many or too few."""
    boxes, scores = np.concatenate([BOXES, BOXES + 200]), np.concatenate([SCORES, SCORES])
    assert alone((boxes, scores), (boxes, scores), RULE) == 0
    assert alone((boxes, scores), (boxes[::-1], scores[::-1]), RULE) == 1


def test_one_score_for_each_box_is_one_class():
    """Scores may come without an axis of classes."""
    assert alone((BOXES, SCORES[..., 0]), (BOXES, SCORES[..., 0]), RULE) == 0
    assert alone((BOXES, SCORES[..., 0]), (BOXES, SCORES[..., 1]), RULE) == 1


def test_an_answer_full_of_detections_is_judged_by_its_surest():
    """A network that answers noise finds something everywhere; comparing all of it would take gigabytes."""
    chance = np.random.default_rng(0)
    corners = chance.random((1, 8400, 2), np.float32)
    boxes, scores = np.concatenate([corners, corners + 0.1], axis=2), chance.random((1, 8400, 80), np.float32)
    assert alone((boxes, scores), (boxes, scores), RULE) == 0
    assert alone((boxes, scores), (boxes + 1, scores), RULE) == 1


def test_what_is_no_boxes_and_scores_is_a_fault_of_the_release():
    """Shapes that do not fit are told with both."""
    with pytest.raises(BackendError, match=r"boxes \[1, 3, 2\] and scores \[1, 3, 2\] are no boxes") as caught:
        alone((BOXES[..., :2], SCORES), (BOXES, SCORES), RULE)
    assert caught.value.kind is Kind.STRUCTURE


class Answering:
    def __init__(self, **outputs):
        self.outputs = outputs

    def run(self, names, feeds, run_options=None):
        return [self.outputs[name] for name in names]


@pytest.mark.parametrize(("max_alone", "passes"), [(0.0, False), (0.5, True)])
def test_detections_are_a_gate_beside_parity(max_alone, passes):
    """Numbers within a wide tolerance do not make up for a detection that went missing."""
    rule = Detections(boxes="boxes", scores="scores", max_alone=max_alone)
    gates = Gates(parity=dict.fromkeys(("boxes", "scores"), Tolerance(atol=1000)), detections=rule)
    golden = [Sample({}, {"boxes": BOXES, "scores": SCORES})]
    found = compare(Answering(boxes=BOXES, scores=changed(SCORES, (0, 0, 0), 0.1)), golden, gates)
    failure = judge(Evidence(candidate=Candidate(backend=Backend.CPU), key="", deviations=found, fps=10), gates)
    assert (failure is None) is passes
    if failure is not None:
        assert failure.kind is Kind.PARITY
        assert failure.reason.startswith("33.3% of the detections have no partner")
