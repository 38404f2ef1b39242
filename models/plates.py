"""Textured metal plates with surface defects, drawn from a seed: the `plates` dataset.

The rules:
1. A seed and a size give one plate, always the same: chance comes from the seed alone.
2. Lengths are written for a plate of 160 pixels and grow with the size.
3. A box bounds what can be seen of a defect, not what was aimed at; it lies inside the plate.
4. The contrast of a defect is drawn from a range whose low end drowns in the texture: some cannot be found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Field = NDArray[np.float32]  # [size, size], one value a pixel, or broadcast over that

CLASSES = ("scratch", "pit", "stain")
FINISHES = ("brushed", "turned", "rolled", "blasted")

NATIVE_SIZE = 160  # pixels a side; the lengths below are meant for it
VISIBLE = 0.25  # the share of a defect's depth from which a pixel belongs to its box
CROWDED = 0.15  # the share of the smaller box that two defects may have in common
SHORTEST_SIDE = 5.0  # pixels; a thinner box could not be told from its neighbour a pixel away


@dataclass(frozen=True, slots=True)
class Plate:
    """One plate and the defects on it.

    Attributes:
        image: uint8 [size, size, 3], RGB.
        boxes: float32 [n, 4], pixels: left, top, right, bottom.
        labels: int64 [n], indices into CLASSES.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def draw_plate(seed: int, size: int = NATIVE_SIZE) -> Plate:
    """The plate of this seed, `size` pixels a side, with none to four defects."""
    rng = np.random.default_rng(seed)
    image: Field = np.asarray(_texture(rng, size)[..., None] * rng.uniform(0.92, 1.06, 3), np.float32)
    boxes: list[Field] = []
    labels: list[int] = []
    for _ in range(int(rng.choice(5, p=(0.08, 0.25, 0.32, 0.22, 0.13)))):
        label = int(rng.integers(len(CLASSES)))
        cover, change = (_scratch, _pit, _stain)[label](rng, size)
        box = _bounds(cover)
        if box is None or any(_shared(box, other) > CROWDED for other in boxes):
            continue
        image += change
        boxes.append(box)
        labels.append(label)
    image *= _light(rng, size)[..., None]
    image += rng.normal(0.0, rng.uniform(1.0, 4.0), image.shape).astype(np.float32)
    return Plate(
        np.clip(np.rint(image), 0, 255).astype(np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
    )


def _grid(size: int) -> tuple[Field, Field]:
    """Rows and columns of the pixels' centres, in lengths of the native plate."""
    steps = ((np.arange(size, dtype=np.float32) + 0.5) * (NATIVE_SIZE / size)).astype(np.float32)
    return steps[:, None], steps[None, :]


def _clouds(rng: np.random.Generator, size: int, cell: float) -> Field:
    """Smooth noise between -1 and 1 whose spots are about `cell` native pixels wide."""
    knots = int(NATIVE_SIZE / cell) + 2
    place = np.linspace(0, knots - 1.001, size)
    low = place.astype(np.int64)
    share = place - low
    spots = rng.uniform(-1, 1, (knots, knots))
    # By hand and not as a product of matrices: the bits are those of any machine, and no thread pool is woken.
    tall = spots[low] * (1 - share)[:, None] + spots[low + 1] * share[:, None]
    return np.asarray(tall[:, low] * (1 - share) + tall[:, low + 1] * share, np.float32)


def _grooves(rng: np.random.Generator, size: int, along: Field) -> Field:
    """Noise that depends on one coordinate only: the marks of a brush or of a lathe."""
    knots = np.arange(-300.0, 500.0, rng.uniform(0.8, 2.5))
    lines = np.interp(along.ravel(), knots, rng.normal(0.0, 1.0, knots.size))
    return (lines.reshape(along.shape) * (0.7 + 0.3 * _clouds(rng, size, 30.0))).astype(np.float32)


def _texture(rng: np.random.Generator, size: int) -> Field:
    """The bare plate in grey levels."""
    rows, columns = _grid(size)
    level, strength = rng.uniform(85, 175), rng.uniform(2.0, 10.0)
    finish = rng.choice(FINISHES)
    if finish == "brushed":
        angle = rng.uniform(0, np.pi)
        marks = _grooves(rng, size, (rows * np.cos(angle) - columns * np.sin(angle)).astype(np.float32))
    elif finish == "turned":
        middle = rng.uniform(-60, 220, 2)
        marks = _grooves(rng, size, np.hypot(rows - middle[0], columns - middle[1]).astype(np.float32))
    elif finish == "rolled":
        marks = 0.9 * _clouds(rng, size, 2.0) + 1.1 * _clouds(rng, size, 7.0)
    else:
        marks = 1.6 * _clouds(rng, size, 1.5)
    return (level + strength * marks + rng.uniform(2, 9) * _clouds(rng, size, 55.0)).astype(np.float32)


def _light(rng: np.random.Generator, size: int) -> Field:
    """How brightly each pixel is lit, about 1: a slope across the plate and the glare of a lamp."""
    rows, columns = _grid(size)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.3)
    across = (rows * np.sin(angle) + columns * np.cos(angle)) / NATIVE_SIZE - 0.5 * (np.sin(angle) + np.cos(angle))
    lamp, reach = rng.uniform(0, NATIVE_SIZE, 2), rng.uniform(25, 80)
    glare = np.exp(-((rows - lamp[0]) ** 2 + (columns - lamp[1]) ** 2) / (2 * reach**2))
    return np.asarray(1 + slope * across + rng.uniform(-0.1, 0.25) * glare, np.float32)


def _scratch(rng: np.random.Generator, size: int) -> tuple[Field, Field]:
    """A thin bent line, dark or bright, whose depth comes and goes."""
    rows, columns = _grid(size)
    start, angle, length = rng.uniform(12, 148, 2), rng.uniform(0, 2 * np.pi), rng.uniform(22, 95)
    end = start + length * np.array((np.sin(angle), np.cos(angle)))
    knee = (start + end) / 2 + rng.uniform(-0.15, 0.15, 2) * length
    share = np.linspace(0, 1, 9)[:, None]
    bends = (1 - share) ** 2 * start + 2 * share * (1 - share) * knee + share**2 * end
    distance = np.full((size, size), np.inf)
    for (row, column), (down, right) in zip(bends[:-1], np.diff(bends, axis=0), strict=True):
        along = np.clip(((rows - row) * down + (columns - column) * right) / (down**2 + right**2), 0, 1)
        distance = np.minimum(distance, np.hypot(rows - row - along * down, columns - column - along * right))
    cover = np.clip(rng.uniform(1.0, 1.9) - distance, 0, 1).astype(np.float32)
    depth = rng.choice((-1.0, 1.0)) * rng.uniform(9, 60) * (0.8 + 0.2 * _clouds(rng, size, 12.0))
    return cover, (cover * depth)[..., None].astype(np.float32)


def _blob(rng: np.random.Generator, size: int, radius: float, soft: float) -> Field:
    """A round spot with an uneven edge: 1 inside, falling to 0 over the outer `soft` share of its radius."""
    rows, columns = _grid(size)
    middle = rng.uniform(8, 152, 2)
    down, right = rows - middle[0], (columns - middle[1]) * rng.uniform(0.65, 1.5)
    angle, edge = np.arctan2(down, right), np.ones((size, size))
    for waves in range(2, 6):
        edge = edge + rng.uniform(0, 0.3 / waves) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return np.asarray(np.clip((1 - np.hypot(down, right) / (radius * edge)) / soft, 0, 1), np.float32)


def _pit(rng: np.random.Generator, size: int) -> tuple[Field, Field]:
    """A small dark hole with one lit wall and one in shadow."""
    cover = _blob(rng, size, rng.uniform(3.0, 9.0), rng.uniform(0.3, 0.7))
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(9, 65)
    down, right = np.gradient(cover)
    wall = (down * np.sin(angle) + right * np.cos(angle)) * (size / NATIVE_SIZE)
    return cover, (depth * (rng.uniform(0.8, 2.0) * wall - cover))[..., None].astype(np.float32)


def _stain(rng: np.random.Generator, size: int) -> tuple[Field, Field]:
    """A wide patch of another colour, often with a darker rim where it dried."""
    cover = _blob(rng, size, rng.uniform(10.0, 32.0), rng.uniform(0.12, 0.5))
    patch = cover * (0.8 + 0.2 * _clouds(rng, size, 8.0)) + rng.uniform(0, 1.2) * cover * (1 - cover)
    colour = rng.choice((-1.0, -1.0, 1.0)) * rng.uniform(5, 32) + rng.uniform(-7, 7, 3)
    return cover, (patch[..., None] * colour).astype(np.float32)


def _bounds(cover: Field) -> Field | None:
    """The box around what can be seen of a defect, or nothing if too little lies on the plate."""
    rows, columns = np.nonzero(cover > VISIBLE)
    if rows.size == 0:
        return None
    box = np.array((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), np.float32)
    shortest = SHORTEST_SIDE * cover.shape[0] / NATIVE_SIZE
    if max(box[2] - box[0], box[3] - box[1]) < shortest:
        return None
    spare = np.maximum(0, shortest - (box[2:] - box[:2])) / 2
    return np.asarray(np.clip(np.concatenate((box[:2] - spare, box[2:] + spare)), 0, cover.shape[0]), np.float32)


def _shared(one: Field, other: Field) -> float:
    """The share of the smaller box that lies in the other."""
    sides = np.clip(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0, None)
    return float(sides.prod() / min((one[2:] - one[:2]).prod(), (other[2:] - other[:2]).prod()))
