"""A single-shot detector for small machines: default boxes on three strides, decoding inside the graph.

The rules:
1. Pixels go in as they are (float32 0 to 255, RGB, NCHW); normalising is the first layer.
2. Boxes come out in pixels and scores as probabilities; suppression stays outside, where it can be configured.
3. Training sees logits and offsets; `Detector` is the same network with the decoding put behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.plates import CLASSES, NATIVE_SIZE

# Width and height of the default boxes in pixels, by stride: pits, then scratches and stains, then the large ones.
DEFAULT_BOXES = {
    8: ((10, 10), (18, 18), (34, 12), (12, 34)),
    16: ((34, 34), (56, 24), (24, 56), (64, 12), (12, 64)),
    32: ((60, 60), (88, 44), (44, 88), (90, 90)),
}
OFFSET_SCALE = 0.1  # the SSD paper's variances: offsets of the middle, and of the logarithm of the sides
SIDE_SCALE = 0.2
SIDE_REACH = 2.0  # a side is at most e^2 times its default: keeps an untrained network finite
RARE = -4.0  # first bias of the scores: defects are rare among the boxes


@dataclass(frozen=True, slots=True)
class Width:
    """Channels of the stem (strides 2 and 4) and of the maps that are read (strides 8, 16 and 32)."""

    stem: tuple[int, int]
    maps: tuple[int, int, int]
    blocks: int  # residual blocks on each map


def default_boxes() -> Tensor:
    """All default boxes: float32 [N, 4], middle x, middle y, width, height in pixels."""
    found: list[Tensor] = []
    for stride, shapes in DEFAULT_BOXES.items():
        middles = (torch.arange(NATIVE_SIZE // stride) + 0.5) * stride
        rows, columns = torch.meshgrid(middles, middles, indexing="ij")
        place = torch.stack((columns, rows), -1)[:, :, None, :].expand(-1, -1, len(shapes), -1)
        sides = torch.tensor(shapes, dtype=torch.float32).expand_as(place)
        found.append(torch.cat((place, sides), -1).reshape(-1, 4))
    return torch.cat(found)


def decode(offsets: Tensor, defaults: Tensor) -> Tensor:
    """Boxes xyxy in pixels from a network's offsets [..., N, 4]."""
    middle = defaults[:, :2] + offsets[..., :2] * (OFFSET_SCALE * defaults[:, 2:])
    half = 0.5 * defaults[:, 2:] * torch.exp((SIDE_SCALE * offsets[..., 2:]).clamp(-SIDE_REACH, SIDE_REACH))
    return torch.cat((middle - half, middle + half), -1)


def _conv(inputs: int, outputs: int, stride: int = 1, *, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_conv(channels, channels // 2, kernel=1), _conv(channels // 2, channels))

    def forward(self, values: Tensor) -> Tensor:
        return values + self.inner(values)


class Head(nn.Module):
    def __init__(self, channels: int, shapes: int) -> None:
        super().__init__()
        self.depth = len(CLASSES) + 4
        self.mix = _conv(channels, channels)
        self.read = nn.Conv2d(channels, shapes * self.depth, 1)
        nn.init.zeros_(self.read.bias)
        with torch.no_grad():
            self.read.bias.view(shapes, self.depth)[:, : len(CLASSES)] = RARE

    def forward(self, values: Tensor) -> Tensor:
        read = self.read(self.mix(values))
        return read.permute(0, 2, 3, 1).reshape(read.shape[0], -1, self.depth)


class Network(nn.Module):
    """Logits [B, N, C] and offsets [B, N, 4] from pixels [B, 3, H, W]."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        inputs, stages = width.stem[1], []
        for channels in width.maps:
            stages.append(nn.Sequential(_conv(inputs, channels, 2), *(Block(channels) for _ in range(width.blocks))))
            inputs = channels
        self.stem = nn.Sequential(_conv(3, width.stem[0], 2), _conv(*width.stem, 2))
        self.stages = nn.ModuleList(stages)
        self.down = nn.ModuleList(
            _conv(deep, here, kernel=1) for here, deep in zip(width.maps, width.maps[1:], strict=False)
        )
        self.heads = nn.ModuleList(
            Head(channels, len(shapes)) for channels, shapes in zip(width.maps, DEFAULT_BOXES.values(), strict=True)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        values = self.stem((pixels - 127.5) / 50.0)
        maps = []
        for stage in self.stages:
            values = stage(values)
            maps.append(values)
        for place in (1, 0):
            deeper = nn.functional.interpolate(self.down[place](maps[place + 1]), scale_factor=2.0, mode="nearest")
            maps[place] = maps[place] + deeper
        read = torch.cat([head(values) for head, values in zip(self.heads, maps, strict=True)], 1)
        return read[..., : len(CLASSES)], read[..., len(CLASSES) :]


class Detector(nn.Module):
    """What is exported: boxes float32 [1, N, 4] xyxy in pixels, inside the image, and scores float32 [1, N, C]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("defaults", default_boxes())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits, offsets = self.network(pixels)
        return decode(offsets, self.defaults).clamp(0, NATIVE_SIZE), torch.sigmoid(logits)


class Refinement(nn.Module):
    """Pixels from pixels, by an author who forgot the stride: every step runs at full resolution.

    One weight tensor serves all steps, so the file stays small while the work does not. It is not trained, and its
    share of the pixels is small: a detector behind it finds what it found before, late.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.spread = nn.Conv2d(3, channels, 3, padding=1)
        self.refine = nn.Conv2d(channels, channels, 3, padding=1)
        self.gather = nn.Conv2d(channels, 3, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        values = torch.relu(self.spread((pixels - 127.5) / 50.0))
        for _ in range(self.steps):
            values = values + torch.relu(self.refine(values)) / self.steps
        return pixels + self.gather(values)
