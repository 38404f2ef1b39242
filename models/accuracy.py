"""From a detector's raw outputs to detections, and from detections to one figure.

The rules:
1. A detector here gives decoded boxes in pixels and one score for each class; nothing is decoded twice.
2. Non-maximum suppression is done for each class alone: a pit in a stain is two defects.
3. The figure is mAP50: the mean over classes of the area under the precision envelope at an intersection
   over union of at least 0.5, as PASCAL VOC has counted since 2010. A class without truths is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MATCH_IOU = 0.5  # from here on a box is where the truth is
CONSIDERED = 400  # boxes a class taken into suppression, best first; bounds its square cost


class Marked(Protocol):
    """An image's truths: `boxes` float32 [n, 4] (xyxy, pixels) and `labels` int64 [n]."""

    @property
    def boxes(self) -> NDArray[np.float32]: ...  # noqa: D102 - told by the class

    @property
    def labels(self) -> NDArray[np.int64]: ...  # noqa: D102 - told by the class


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one image, best score first.

    Attributes:
        boxes: float32 [n, 4], pixels: left, top, right, bottom.
        scores: float32 [n], 0 to 1.
        labels: int64 [n], indices into the model's classes.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


def iou_matrix(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union [a, b] of boxes [a, 4] and [b, 4], xyxy in one unit."""
    low = np.maximum(ones[:, None, :2], others[None, :, :2])
    high = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (ones, others)]
    return np.asarray(common / np.maximum(areas[0][:, None] + areas[1][None, :] - common, 1e-9), np.float32)


def suppress(boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float) -> NDArray[np.int64]:
    """Indices, best first, of the boxes [n, 4] that no better-scored one overlaps by more than `iou`."""
    order = np.argsort(-scores, kind="stable")[:CONSIDERED]
    overlaps = iou_matrix(boxes[order], boxes[order]) > iou
    alive = np.ones(order.size, bool)
    for place in range(order.size):
        if alive[place]:
            alive[place + 1 :] &= ~overlaps[place, place + 1 :]
    return np.asarray(order[alive], np.int64)


def detect(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    confidence: float,
    iou: float,
    limit: int = 100,
    min_area: float = 0.0,
) -> Detections:
    """The detections of one image from a model's raw outputs.

    Args:
        boxes: float32 [N, 4], xyxy in pixels.
        scores: float32 [N, C], 0 to 1.
        confidence: scores below it are left out.
        iou: overlap, 0 to 1, above which the weaker of two boxes of a class is left out.
        limit: the most detections given.
        min_area: smaller boxes (square pixels) are left out.
    """
    large = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) >= min_area
    kept: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int64]] = []
    for label in range(scores.shape[1]):
        likely = np.flatnonzero((scores[:, label] >= confidence) & large)
        best = likely[suppress(boxes[likely], scores[likely, label], iou)]
        kept.append(best)
        labels.append(np.full(best.size, label, np.int64))
    where, what = np.concatenate(kept), np.concatenate(labels)
    order = np.argsort(-scores[where, what], kind="stable")[:limit]
    where, what = where[order], what[order]
    return Detections(boxes[where].astype(np.float32), scores[where, what].astype(np.float32), what)


def map50(predictions: Sequence[Detections], truths: Sequence[Marked]) -> float:
    """Mean average precision, 0 to 1, at an overlap of 0.5; the n-th prediction answers the n-th truth."""
    present = np.unique(np.concatenate([truth.labels for truth in truths]))
    if present.size == 0:
        raise ValueError("no truth to measure against: none of the images has a defect")
    return float(np.mean([average_precision(predictions, truths, int(label)) for label in present]))


def average_precision(predictions: Sequence[Detections], truths: Sequence[Marked], label: int) -> float:
    """The area under one class's precision envelope, 0 to 1, at an overlap of 0.5."""
    scores: list[NDArray[np.float32]] = []
    hits: list[NDArray[np.bool_]] = []
    for found, truth in zip(predictions, truths, strict=True):
        mine = found.labels == label
        scores.append(found.scores[mine])
        hits.append(_hits(found.boxes[mine], truth.boxes[truth.labels == label]))
    right = np.concatenate(hits)[np.argsort(-np.concatenate(scores), kind="stable")]
    total = sum(int((truth.labels == label).sum()) for truth in truths)
    precision = np.cumsum(right) / np.arange(1, right.size + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * right).sum() / total) if total else 0.0


def _hits(boxes: NDArray[np.float32], truths: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of the boxes, best first, are the first to find their truth."""
    right = np.zeros(len(boxes), bool)
    if not len(truths):
        return right
    taken = np.zeros(len(truths), bool)
    for place, overlaps in enumerate(iou_matrix(boxes, truths)):
        closest = int(overlaps.argmax())
        if overlaps[closest] >= MATCH_IOU and not taken[closest]:
            taken[closest] = right[place] = True
    return right
