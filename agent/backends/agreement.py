"""Whether two answers of a detector show the same things, whatever single numbers differ.

1. A detection is a box, a class and a score of at least `min_score`. Both answers are held against each other: one that
   is missing counts, and so does one too many.
2. A partner has the same class, overlaps by `min_iou` and is within `max_score` of the score. What is so close to
   `min_score` that it may fall on either side needs none.
3. Nothing is suppressed before: near twins are each other's partners.
"""

import math
from dataclasses import dataclass

import numpy as np

from agent.backends.session import Array
from agent.core.errors import BackendError, Kind
from agent.core.release import Detections

MOST = 1000  # detections of one answer, the surest first: the comparison grows with the square


@dataclass(frozen=True, slots=True)
class _Found:
    boxes: Array  # [n, 4] xyxy, in any unit
    scores: Array  # [n]
    classes: Array  # [n], of one image of the batch


def alone(reference: tuple[Array, Array], given: tuple[Array, Array], rule: Detections) -> float:
    """The share of all detections that have no partner in the other answer, 0 to 1; 0 where there is none.

    Args:
        reference: boxes [batch, n, 4] and scores [batch, n] or [batch, n, classes].
        given: the same, of another backend or precision.
        rule: of the release.

    Raises:
        BackendError: STRUCTURE; these are no boxes and scores.
    """
    one, other = (_found(*answer, rule) for answer in (reference, given))
    sure = rule.min_score + rule.max_score
    pairs = _partners(one, other, rule)
    mine, theirs = one.scores[:MOST] >= sure, other.scores[:MOST] >= sure
    paired = pairs.max(axis=1, initial=False)[:MOST], pairs.max(axis=0, initial=False)[:MOST]
    missing = (mine & ~paired[0]).sum() + (theirs & ~paired[1]).sum()
    return float(missing / max(1, mine.sum() + theirs.sum()))


def _found(boxes: Array, scores: Array, rule: Detections) -> _Found:
    if boxes.shape[-1:] != (4,) or scores.shape[: boxes.ndim - 1] != boxes.shape[:-1]:
        raise BackendError(
            f"gates.detections: {rule.boxes} {list(boxes.shape)} and {rule.scores} {list(scores.shape)} are no boxes "
            "[..., n, 4] and scores [..., n] or [..., n, classes]",
            Kind.STRUCTURE,
        )
    images, classes = math.prod(boxes.shape[:-2]), math.prod(scores.shape[boxes.ndim - 1 :])
    flat = scores.reshape(images, boxes.shape[-2], classes).astype(np.float64)
    places = np.argwhere(flat >= rule.min_score)
    places = places[np.argsort(-flat[tuple(places.T)], kind="stable")][: 2 * MOST]  # partners of the last ones too
    image, box, label = places.T
    corners = boxes.reshape(images, *boxes.shape[-2:]).astype(np.float64)[image, box]
    return _Found(corners, flat[image, box, label], image * classes + label)


def _partners(one: _Found, other: _Found, rule: Detections) -> Array:
    """Which detections of the one are which of the other: [n, m]."""
    low = np.maximum(one.boxes[:, None, :2], other.boxes[None, :, :2])
    high = np.minimum(one.boxes[:, None, 2:], other.boxes[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(side.boxes[:, 2:] - side.boxes[:, :2], 0, None).prod(axis=1) for side in (one, other)]
    overlap = both >= rule.min_iou * (areas[0][:, None] + areas[1][None, :] - both)
    near = np.abs(one.scores[:, None] - other.scores[None, :]) <= rule.max_score
    pairs: Array = overlap & near & (one.classes[:, None] == other.classes[None, :])
    return pairs
