"""An inspected plate, for people: what was found, and what is there."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.accuracy import Detections, iou_matrix
from models.plates import CLASSES, Plate

ZOOM = 4
MARGIN, HEADER, FOOTER = 24, 64, 56  # pixels around the plate
LINE = 3
PAPER, INK, FAINT, MISSED = "#14181d", "#f2f4f6", "#8b97a3", "#ffffff"
COLOURS = {"scratch": "#ffb02e", "pit": "#ff5d5d", "stain": "#37c8f5"}
FOUND_IOU = 0.5


def draw(plate: Plate, found: Detections, title: str, path: Path) -> None:
    """Writes the plate as a PNG: found defects as boxes with class and score, missed ones dashed."""
    side = plate.image.shape[0] * ZOOM
    sheet = Image.new("RGB", (side + 2 * MARGIN, HEADER + side + FOOTER), PAPER)
    enlarged = Image.fromarray(plate.image).resize((side, side), Image.Resampling.BICUBIC)
    sheet.paste(enlarged, (MARGIN, HEADER))
    pen = ImageDraw.Draw(sheet)
    hits = are_found(plate, found)
    for box in plate.boxes[~hits]:
        dashed(pen, placed(box))
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        marked(pen, placed(box), CLASSES[label], f"{CLASSES[label]} {score:.2f}")
    pen.text((MARGIN, HEADER / 2), title, INK, font(20), "lm")
    legend(pen, HEADER + side + FOOTER / 2)
    told = f"{int(hits.sum())} of {len(hits)} defects found"
    pen.text((sheet.width - MARGIN, HEADER + side + FOOTER / 2), told, INK, font(18), "rm")
    sheet.save(path)


def are_found(plate: Plate, found: Detections) -> NDArray[np.bool_]:
    """Of each defect that is there, whether a detection of its class lies on it."""
    fits = iou_matrix(plate.boxes, found.boxes) >= FOUND_IOU
    return np.asarray((fits & (plate.labels[:, None] == found.labels[None, :])).any(axis=1))


def placed(box: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """A box of the plate on the sheet."""
    left, top, right, bottom = (float(edge) * ZOOM for edge in box)
    return left + MARGIN, top + HEADER, right + MARGIN, bottom + HEADER


def marked(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], name: str, words: str) -> None:
    """A found defect: its box, and a label above it where there is room, else inside."""
    pen.rectangle(box, outline=COLOURS[name], width=LINE)
    _, _, width, height = pen.textbbox((0, 0), words, font(16))
    tall = height + 8
    top = box[1] - tall if box[1] - tall >= HEADER else box[1]
    left = min(box[0], pen.im.size[0] - MARGIN - width - 12)
    pen.rectangle((left, top, left + width + 12, top + tall), fill=COLOURS[name])
    pen.text((left + 6, top + tall / 2), words, PAPER, font(16), "lm")


def dashed(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float]) -> None:
    """A defect that was missed."""
    left, top, right, bottom = box
    for begin in np.arange(left, right, 12):
        for level in (top, bottom):
            pen.line((begin, level, min(begin + 6, right), level), MISSED, 2)
    for begin in np.arange(top, bottom, 12):
        for level in (left, right):
            pen.line((level, begin, level, min(begin + 6, bottom)), MISSED, 2)


def legend(pen: ImageDraw.ImageDraw, middle: float) -> None:
    """Colours and what they stand for."""
    left = float(MARGIN)
    for name in CLASSES:
        pen.rectangle((left, middle - 7, left + 14, middle + 7), outline=COLOURS[name], width=LINE)
        pen.text((left + 22, middle), name, FAINT, font(16), "lm")
        left += 22 + pen.textlength(name, font(16)) + 22
    dashed(pen, (left, middle - 7, left + 18, middle + 7))
    pen.text((left + 26, middle), "missed", FAINT, font(16), "lm")


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own."""
    return ImageFont.load_default(size)
