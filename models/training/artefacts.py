"""From a trained network to a release: the graph, what was measured of it, its config and its golden samples.

The rules:
1. Every figure is measured through the exported graph on ONNX Runtime's CPU backend, never on the network.
2. Golden samples and accuracy come from plates that no training saw.
3. A graph is kept only if ONNX's checker takes it and OpenVINO agrees with it within the config's own tolerance.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.compose
import torch
import yaml

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded
import onnxruntime
import openvino

from models.accuracy import detect, map50
from models.plates import CLASSES, NATIVE_SIZE, draw_plate
from models.training.learn import HELD_OUT_FROM

if TYPE_CHECKING:
    from models.training.network import Detector, Refinement

OPSET = 17
HELD_OUT = 500  # plates
TIMED_RUNS = 200
TIMED_SECONDS = 15.0  # a slow graph is timed for no longer
CANDIDATE_SCORE = 0.01  # mAP looks at the whole curve, not at what a user would see
SUPPRESS_IOU = 0.5

MEMORY_PROBE = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
shape = session.get_inputs()[0].shape
for _ in range(3):
    session.run(None, {"input": numpy.zeros(shape, "float32")})
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):  # getrusage would count what the parent held when it forked
        print(int(line.split()[1]) * 1024 / 1e6)
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a graph was found to be."""

    accuracy: float  # mAP50
    milliseconds: float  # p50, one thread
    megabytes: float  # file
    memory_mb: float  # peak of a process that loads and runs it


def release(name: str, training: dict[str, Any], config: str, count: int, out: Path) -> Measured:
    """Writes config, `count` golden samples and metadata for the graph in `out`/weights and gives what was measured."""
    weights = weights_of(name, out)
    for folder in ("metadata", "configs", "golden"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / "configs" / f"{name}_config.yaml").write_text(config, encoding="utf-8")
    samples, outputs = golden(weights, count)
    agree(weights, samples, outputs, yaml.safe_load(config)["gates"]["parity"])
    np.savez_compressed(
        out / "golden" / f"{name}_golden.npz",
        **{"in.input": samples, "out.boxes": outputs[0], "out.scores": outputs[1]},
    )
    found = Measured(accuracy(weights), speed(weights), weights.stat().st_size / 1e6, memory(weights))
    text = json.dumps(describe(name, weights, found, training), indent=2)
    (out / "metadata" / f"{name}_metadata.json").write_text(text + "\n", encoding="utf-8")
    return found


def weights_of(name: str, out: Path) -> Path:
    path = out / "weights" / f"{name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def export(detector: Detector, path: Path) -> None:
    keep(graph_of(detector, ["boxes", "scores"]), path)


def export_behind(refinement: Refinement, detector: Path, path: Path) -> None:
    """Writes the graph of a detector that gets its pixels from a refinement."""
    behind = onnx.compose.add_prefix(onnx.load(detector), "detector/", rename_outputs=False)
    before = graph_of(refinement, ["refined"])
    keep(onnx.compose.merge_models(before, behind, io_map=[("refined", "detector/input")]), path)


def graph_of(module: torch.nn.Module, outputs: list[str]) -> onnx.ModelProto:
    written = io.BytesIO()
    torch.onnx.export(
        module.eval(),
        (torch.zeros(1, 3, NATIVE_SIZE, NATIVE_SIZE),),
        written,
        dynamo=False,
        opset_version=OPSET,
        input_names=["input"],
        output_names=outputs,
    )
    return onnx.load_from_string(written.getvalue())


def keep(model: onnx.ModelProto, path: Path) -> None:
    """Writes a graph that ONNX's checker takes, without the places in the source that its nodes came from."""
    for node in model.graph.node:
        node.ClearField("doc_string")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def pixels_of(seed: int) -> np.ndarray:
    """A plate as the graph takes it: float32 [1, 3, H, W], whole numbers from 0 to 255."""
    return np.ascontiguousarray(draw_plate(seed).image.transpose(2, 0, 1)[None], np.float32)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def golden(path: Path, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Inputs [S, 3, H, W] of the first held-out plates, and their reference boxes [S, N, 4] and scores [S, N, C]."""
    session = open_session(path)
    samples = [pixels_of(HELD_OUT_FROM + place) for place in range(count)]
    outputs = [session.run(["boxes", "scores"], {"input": sample}) for sample in samples]
    return np.concatenate(samples), [np.concatenate(one) for one in zip(*outputs, strict=True)]


def agree(path: Path, samples: np.ndarray, outputs: list[np.ndarray], parity: dict[str, dict[str, float]]) -> None:
    """Stops if OpenVINO in float32 is further from the golden outputs than a device would allow."""
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for place, sample in enumerate(samples):
        for name, given in compiled(sample[None]).to_dict().items():
            key = name.any_name
            wanted = outputs[("boxes", "scores").index(key)][place]
            limit = parity[key]["atol"] + parity[key]["rtol"] * np.abs(wanted)
            if not np.all(np.abs(given[0] - wanted) <= limit):
                raise SystemExit(f"{path.name}: OpenVINO's {key} of sample {place} are not those of ONNX Runtime")


def accuracy(path: Path) -> float:
    session = open_session(path)
    truths = [draw_plate(HELD_OUT_FROM + place) for place in range(HELD_OUT)]
    predictions = []
    for place in range(HELD_OUT):
        boxes, scores = session.run(["boxes", "scores"], {"input": pixels_of(HELD_OUT_FROM + place)})
        predictions.append(detect(boxes[0], scores[0], CANDIDATE_SCORE, SUPPRESS_IOU))
    return map50(predictions, truths)


def speed(path: Path) -> float:
    """The median time of one inference on one thread, in milliseconds."""
    session, sample = open_session(path), {"input": pixels_of(HELD_OUT_FROM)}
    session.run(None, sample)
    times: list[float] = []
    while len(times) < TIMED_RUNS and sum(times) < TIMED_SECONDS:
        begin = time.perf_counter()
        session.run(None, sample)
        times.append(time.perf_counter() - begin)
    return float(np.median(times)) * 1e3


def memory(path: Path) -> float:
    """Peak resident memory, in MB, of a process of its own that loads the graph and runs it."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.py"
        probe.write_text(MEMORY_PROBE, encoding="utf-8")
        found = subprocess.run([sys.executable, str(probe), str(path)], check=True, capture_output=True, text=True)
    return float(found.stdout)


def processor() -> str:
    """What the machine calls its processor, and the runtime that was timed on it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else os.uname().machine}, 1 thread, ONNX Runtime {version('onnxruntime')}"


def tensors(values: list[Any]) -> list[dict[str, Any]]:
    """Declared tensors; every one here is float32 of a fixed shape."""
    return [
        {"name": one.name, "shape": [axis.dim_value for axis in one.type.tensor_type.shape.dim], "dtype": "float32"}
        for one in values
    ]


def describe(name: str, path: Path, found: Measured, training: dict[str, Any]) -> dict[str, Any]:
    graph = onnx.load(path)
    last = HELD_OUT_FROM + HELD_OUT - 1
    return {
        "name": name,
        "version": name.rsplit("_", 1)[1],
        "task": "defect_detection",
        "architecture": "ssd",
        "dataset": "plates",
        "accuracy": round(found.accuracy, 4),
        "accuracy_metric": "mAP50",
        "accuracy_dataset": f"{HELD_OUT} drawn plates, seeds {HELD_OUT_FROM} to {last}; none was trained on",
        "inference_time": round(found.milliseconds, 3),
        "inference_time_on": processor(),
        "model_size_mb": round(found.megabytes, 3),
        "classes": list(CLASSES),
        "inputs": tensors(graph.graph.input),
        "outputs": tensors(graph.graph.output),
        "training": training,
        "compatibility": {
            "opset": OPSET,
            "ir_version": graph.ir_version,
            "minimum_runtime": {"onnxruntime": "1.17", "openvino": "2024.0"},
            "memory_mb": round(found.memory_mb),
            "platforms": ["linux/x86_64", "linux/aarch64"],
        },
        "licence": "Apache-2.0",
    }
