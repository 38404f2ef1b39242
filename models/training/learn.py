"""Teaching a network plates: the drawn batches, which default boxes answer for which defect, and the loss.

The rules:
1. Everything comes from the recipe: the same recipe on the same machine and PyTorch gives the same weights.
2. Seeds for training and for measuring never meet: training counts up from 0, measuring from HELD_OUT_FROM.
3. A default box answers for the defect it overlaps most, if by enough; each defect has its ANSWERS best in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.plates import draw_plate
from models.training.network import Network, Width, decode, default_boxes

if TYPE_CHECKING:
    from collections.abc import Iterator

HELD_OUT_FROM = 1_000_000  # the first seed that no training may draw
MOST_DEFECTS = 4
OVERLAP = 0.5  # from here on a default box answers for a defect
ANSWERS = 4
FOCUS = 2.0  # exponent of the weight of easy negatives
NEGATIVE_SHARE = 0.75
BOX_WEIGHT = 2.0
SQUARE_TURNS = 8  # a plate turned and mirrored is another plate


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a network's weights."""

    width: Width
    plates: int
    epochs: int
    batch: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Plates:
    """Drawn plates: pixels uint8 [n, 3, H, W]; boxes float32 [n, 4, 4], absent: 0; labels int64 [n, 4], absent: -1."""

    pixels: Tensor
    boxes: Tensor
    labels: Tensor


def draw(seeds: range) -> Plates:
    drawn = [draw_plate(seed) for seed in seeds]
    boxes = torch.zeros(len(drawn), MOST_DEFECTS, 4)
    labels = torch.full((len(drawn), MOST_DEFECTS), -1)
    for place, plate in enumerate(drawn):
        boxes[place, : len(plate.boxes)] = torch.from_numpy(plate.boxes)
        labels[place, : len(plate.labels)] = torch.from_numpy(plate.labels)
    pixels = np.stack([plate.image for plate in drawn]).transpose(0, 3, 1, 2)
    return Plates(torch.from_numpy(np.ascontiguousarray(pixels)), boxes, labels)


def turned(pixels: Tensor, boxes: Tensor, turn: int) -> tuple[Tensor, Tensor]:
    """Pixels and boxes of the same plates in one of the eight ways a square can lie."""
    side = pixels.shape[-1]
    if turn & 1:
        pixels, boxes = (
            pixels.flip(-1),
            torch.stack((side - boxes[..., 2], boxes[..., 1], side - boxes[..., 0], boxes[..., 3]), -1),
        )
    if turn & 2:
        pixels, boxes = (
            pixels.flip(-2),
            torch.stack((boxes[..., 0], side - boxes[..., 3], boxes[..., 2], side - boxes[..., 1]), -1),
        )
    if turn & 4:
        pixels, boxes = pixels.transpose(-1, -2), boxes[..., (1, 0, 3, 2)]
    return pixels, boxes


def iou(ones: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union of boxes xyxy, element by element, and its generalised form (Rezatofighi 2019)."""
    sides = (torch.minimum(ones[..., 2:], others[..., 2:]) - torch.maximum(ones[..., :2], others[..., :2])).clamp(min=0)
    hull = torch.maximum(ones[..., 2:], others[..., 2:]) - torch.minimum(ones[..., :2], others[..., :2])
    common, around = sides.prod(-1), hull.prod(-1)
    union = (ones[..., 2:] - ones[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1) - common
    plain = common / union.clamp(min=1e-6)
    return plain, plain - (around - union) / around.clamp(min=1e-6)


def answers(defaults: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """For each default box [B, N] the index of the defect it answers for, or -1."""
    corners = torch.cat((defaults[:, :2] - defaults[:, 2:] / 2, defaults[:, :2] + defaults[:, 2:] / 2), -1)
    overlap, _ = iou(corners[None, :, None, :], boxes[:, None, :, :])
    overlap = overlap.masked_fill(labels[:, None, :] < 0, -1.0)
    best = overlap.topk(ANSWERS, dim=1).values[:, -1:, :].clamp(max=OVERLAP)
    overlap = overlap.masked_fill((overlap < best) | (overlap <= 0), -1.0)
    closest, defect = overlap.max(-1)
    return defect.masked_fill(closest < 0, -1)


def loss(logits: Tensor, offsets: Tensor, defaults: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Varifocal loss of the scores (Zhang 2021: the target is the box's own overlap) and GIoU loss of the boxes."""
    defect = answers(defaults, boxes, labels)
    image, box = torch.nonzero(defect >= 0, as_tuple=True)
    truth = boxes[image, defect[image, box]]
    plain, general = iou(decode(offsets, defaults)[image, box], truth)
    target = torch.zeros_like(logits)
    target[image, box, labels[image, defect[image, box]]] = plain.detach().clamp(min=0.05)
    weight = torch.where(target > 0, target, NEGATIVE_SHARE * torch.sigmoid(logits.detach()) ** FOCUS)
    scores = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
    return (scores + BOX_WEIGHT * (1 - general).sum()) / max(1, len(image))


def batches(plates: Plates, recipe: Recipe, chance: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One epoch: every plate once, in a new order, each batch lying its own way."""
    for chosen in torch.randperm(len(plates.labels), generator=chance).split(recipe.batch):
        turn = int(torch.randint(SQUARE_TURNS, (), generator=chance))
        pixels, boxes = turned(plates.pixels[chosen].float(), plates.boxes[chosen], turn)
        gain = 1 + 0.15 * (2 * torch.rand((len(chosen), 1, 1, 1), generator=chance) - 1)
        yield (pixels * gain).clamp(0, 255), boxes, plates.labels[chosen]


def train(recipe: Recipe) -> Network:
    """A network taught by the recipe, in evaluation mode."""
    torch.manual_seed(recipe.seed)
    chance = torch.Generator().manual_seed(recipe.seed)
    plates = draw(range(recipe.plates))
    network, defaults = Network(recipe.width).train(), default_boxes()
    network.to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-recipe.plates // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.1)
    for epoch in range(recipe.epochs):
        total = 0.0
        for pixels, boxes, labels in batches(plates, recipe, chance):
            logits, offsets = network(pixels.contiguous(memory_format=torch.channels_last))
            cost = loss(logits, offsets, defaults, boxes, labels)
            optimizer.zero_grad()
            cost.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            average.update_parameters(network)
            schedule.step()
            total += cost.item() * len(labels)
        print(f"epoch {epoch + 1} of {recipe.epochs}: loss {total / recipe.plates:.3f}", flush=True)
    return average.module.eval()
