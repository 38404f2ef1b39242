"""Retrains the defect detectors that this project ships: `python -m models.training.train`.

The rules:
1. A release is a recipe in this file; the same recipe on the same machine and PyTorch gives the same weights.
2. PyTorch is needed here and nowhere else in the project.
3. The third release is bad on purpose and says so: as accurate as the second, and far too slow for its gate.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.training.artefacts import export, export_behind, release, weights_of
from models.training.learn import Recipe, train
from models.training.network import Detector, Refinement, Width

MODELS = Path(__file__).resolve().parent.parent
PREFIX = "defect_detection_ssd_plates_"

SMALL = Recipe(Width(stem=(8, 16), maps=(24, 32, 32), blocks=0), plates=4000, epochs=14)
LARGE = Recipe(Width(stem=(16, 24), maps=(48, 56, 48), blocks=1), plates=6000, epochs=18)

# 64 channels on 160 x 160 pixels are 1.9 GFLOP a step; 32 steps make 60 GFLOP of a release that needs less than a
# millisecond: about 5 FPS on two cores where the gate asks for 30, and hardly 30 on sixteen.
REFINE_CHANNELS = 64
REFINE_STEPS = 32


@dataclass(frozen=True, slots=True)
class Release:
    """A release to make: how its network is taught, and what its config says otherwise than its siblings'."""

    date: str
    recipe: Recipe
    note: str
    behind: str = ""  # the date of a release to whose network a refinement is added, instead of training one
    warm_up: int = 10
    golden: int = 4  # samples
    backends: str = "[tensorrt, cuda, openvino, cpu]"
    backends_why: str = "Tried in this order; the fastest that passes every gate serves."


RELEASES = (
    Release("20250628", SMALL, "small network, short training"),
    Release("20250629", LARGE, "wider and deeper network, more plates, longer training"),
    Release(
        "20250630",
        LARGE,
        "the network of 20250629 as trained there, behind an untrained refinement of all pixels: made to miss its "
        "speed gate; duration_s is the joining of the two",
        behind="20250629",
        warm_up=2,
        golden=1,
        backends="[openvino, cpu]",
        backends_why="No GPU here: this release exists to be refused for its speed, and a GPU could rescue it.",
    ),
)

CONFIG = """\
# How to run {name}.
# What it is stands in ../metadata/{name}_metadata.json.

input_size: [160, 160]      # height, width in pixels
confidence_threshold: 0.5   # detections below it are not reported; nine in ten above it are defects
batch_size: 1
precision: fp32             # what the golden samples were computed in

# The graph takes pixels as the camera gives them and normalises them itself.
preprocessing:
  layout: NCHW
  colour: RGB
  scale: 1.0                # pixels stay 0 to 255
  mean: [0, 0, 0]
  std: [1, 1, 1]

# The graph decodes its boxes (xyxy, pixels); suppression is left to the reader: models.accuracy.detect.
postprocessing:
  nms:
    iou_threshold: 0.5      # for each class alone
    max_detections: 20      # a plate has four defects at most
  filters:
    min_score: 0.5
    min_area: 16            # square pixels; the smallest defect that is drawn has about 25

optimization:
  tensorrt:
    precision: fp16
    workspace_mb: 512
  openvino:
    performance_hint: LATENCY
  cpu:
    graph_optimization: all

# {backends_why}
backends: {backends}

# A device measures these itself before the release may serve.
gates:
  min_fps: 30               # the line's cameras give 30 frames a second; siblings reach hundreds on one core
  max_latency_p95_ms: 250   # wide, so that a busy device is not refused for one late frame
  parity:                   # |difference| <= atol + rtol * |golden|
    boxes:
      atol: 0.25            # a quarter of a pixel; float32 backends differ by 0.00004, half precision by 0.1
      rtol: 0.001
    scores:
      atol: 0.003           # float32 differs by 0.000001, half precision by 0.001, bfloat16 by 0.006: that is out
      rtol: 0.001
  max_memory_mb: 1024

warm_up: {warm_up}{warm_up_pad}# inferences before the first timed one
"""


def make(one: Release, out: Path) -> None:
    """Trains one release, writes its files below `out` and says what was measured."""
    name, begin = PREFIX + one.date, time.monotonic()
    if one.behind:
        torch.manual_seed(one.recipe.seed)
        refinement = Refinement(REFINE_CHANNELS, REFINE_STEPS)
        export_behind(refinement, weights_of(PREFIX + one.behind, out), weights_of(name, out))
    else:
        export(Detector(train(one.recipe)), weights_of(name, out))
    seconds = time.monotonic() - begin
    found = release(name, training_of(one, seconds), config_of(name, one), one.golden, out)
    print(
        f"{name}: mAP50 {found.accuracy:.3f}, {found.milliseconds:.2f} ms, {found.megabytes:.2f} MB, "
        f"{found.memory_mb:.0f} MB resident, {seconds:.0f} s to train"
    )


def training_of(one: Release, seconds: float) -> dict[str, Any]:
    return {
        "script": "models/training/train.py",
        "dataset": f"{one.recipe.plates} drawn plates, seeds 0 to {one.recipe.plates - 1}, turned and mirrored",
        "epochs": one.recipe.epochs,
        "batch_size": one.recipe.batch,
        "seed": one.recipe.seed,
        "optimizer": "AdamW, one cycle, averaged weights",
        "learning_rate": one.recipe.learning_rate,
        "duration_s": round(seconds),
        "framework": f"PyTorch {torch.__version__.split('+')[0]}",
        "note": one.note,
    }


def config_of(name: str, one: Release) -> str:
    return CONFIG.format(
        name=name,
        backends=one.backends,
        backends_why=one.backends_why,
        warm_up=one.warm_up,
        warm_up_pad=" " * (19 - len(str(one.warm_up))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Retrain the defect detectors and write their releases.")
    parser.add_argument("--only", action="append", choices=[one.date for one in RELEASES], help="this date; repeatable")
    parser.add_argument("--out", type=Path, default=MODELS, help="folder of weights/, metadata/, configs/ and golden/")
    wanted = parser.parse_args()
    warnings.filterwarnings(
        "ignore", category=DeprecationWarning, module="torch"
    )  # the exporter that needs no onnxscript
    torch.set_num_threads(1)  # the order of sums, and so the weights, depend on it
    torch.use_deterministic_algorithms(mode=True)
    for one in RELEASES:
        if wanted.only and one.date not in wanted.only:
            continue
        make(one, wanted.out)


if __name__ == "__main__":
    main()
