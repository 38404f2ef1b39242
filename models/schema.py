"""JSON Schemas of metadata, config and policy, for editors and other languages: made from the types, never by hand.

`python -m models schemas` writes them; a test says when they are not current.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.core.intent import Policy
from agent.core.release import Config, Metadata

FOLDER = Path(__file__).parent / "schemas"
NOTHING_ELSE = ("Config", "Preprocessing")  # devices leave keys alone that they do not know, the desk refuses them
DOCUMENTS: Mapping[str, type] = {"metadata": Metadata, "config": Config, "policy": Policy}

TEXTS: Mapping[str, Mapping[str, str]] = {
    "Metadata": {
        "name": "The release's name: {task}_{architecture}_{dataset}_{date}",
        "version": "The date in the name, with the build where it is not the first: 20250628, 20250628-2",
        "task": "What the model does, for example face_detection; as in the name",
        "architecture": "The network's kind, for example retinaface; as in the name",
        "dataset": "What it was trained on; as in the name",
        "accuracy": "0 to 1, in accuracy_metric on accuracy_dataset",
        "inference_time": "Milliseconds of one inference on inference_time_on",
        "model_size_mb": "Size of the ONNX file in MB",
        "inputs": "The input tensors, as in the file",
        "outputs": "The output tensors, as in the file",
        "compatibility": "What a device needs; checked before loading",
        "accuracy_metric": "For example mAP50",
        "accuracy_dataset": "What accuracy was measured on",
        "inference_time_on": "The machine and runtime that inference_time was measured on",
        "classes": "Names of the classes, in the order of the model's outputs",
        "training": "Script, data, hyperparameters, duration: what somebody needs to train it again",
        "licence": "SPDX identifier of the weights' licence",
    },
    "Tensor": {
        "name": "As in the ONNX file",
        "shape": "Sizes; -1 is any size",
        "dtype": "Type of the elements, as numpy names it",
    },
    "Compatibility": {
        "opset": "Version of the standard ONNX operators; as in the file",
        "ir_version": "Version of the ONNX format",
        "minimum_runtime": "Lowest version of each runtime: onnxruntime, openvino, tensorrt",
        "memory_mb": "Memory that loading and running needs",
        "platforms": "For example linux/aarch64",
    },
    "Config": {
        "input_size": "Height and width of the image in pixels",
        "confidence_threshold": "0 to 1; detections below it are not reported",
        "batch_size": "Images in one inference",
        "precision": "What backends compute in, unless optimization says otherwise for one of them",
        "variants": "Precisions in which the weights lie there once more, as {name}.fp16.onnx; each is a candidate",
        "preprocessing": "How a camera's frame becomes the input tensor",
        "postprocessing": "NMS, filters and thresholds, for the program that reads the outputs",
        "optimization": (
            "Settings of one backend each, under its name; threads for all. A list under precision, threads or "
            "openvino's device is a candidate for each of its values"
        ),
        "backends": "Where the release may run, in order of preference while nothing was measured",
        "gates": "What a device must measure before the release may serve",
        "warm_up": "Inferences before the first timed one",
    },
    "Preprocessing": {
        "layout": "Order of the axes of the input tensor",
        "colour": "Order of the colours of the input tensor",
        "scale": "Factor of each pixel, before mean and std",
        "mean": "Subtracted from each colour",
        "std": "Divisor of each colour",
    },
    "Gates": {
        "min_fps": "Lowest frames per second",
        "max_latency_p95_ms": "Highest 95th percentile of one inference, in milliseconds",
        "parity": "How far each output may be from its golden reference",
        "detections": "Beside parity, for detectors: which detections must be found again",
        "max_memory_mb": "Most memory of the process that runs it",
        "min_accuracy": "Lowest accuracy in the metadata; checked when publishing",
        "max_error_rate": "Highest share of failed requests during the soak",
    },
    "Detections": {
        "boxes": "The output of boxes: [..., n, 4], corners in any unit",
        "scores": "The output of scores: [..., n] or [..., n, classes], 0 to 1",
        "min_score": "From here on it is a detection",
        "min_iou": "Least overlap of a detection and its golden partner, of the same class",
        "max_score": "Most that the scores of the two differ",
        "max_alone": "Highest share of detections without a partner, of both answers together",
    },
    "Tolerance": {
        "atol": "Absolute part of |difference| <= atol + rtol * |reference|",
        "rtol": "Relative part of |difference| <= atol + rtol * |reference|",
    },
    "Policy": {
        "operators": "Who may do what; a key that is not named may do nothing",
        "signatures": "Acts that more than one operator must sign",
    },
    "Operator": {
        "key": "TUF id of a key of the role operators; `policy set` takes its first 8 or more letters",
        "name": "For people; shown in refusals",
        "verbs": "rollout, sync, pin, rollback, retry, bench, report, or patterns of them such as *",
        "groups": "Names of groups, or patterns of them such as line-*",
        "expires": "With its zone; nothing new counts after it, what was taken before stands",
    },
    "Quorum": {
        "count": "How many operators who may must sign; the threshold of the role operators counts where it is more",
        "verbs": "The acts that need so many; patterns",
        "groups": "The groups where they do; patterns",
    },
}


def schema(document: str) -> bytes:
    """The JSON Schema (2020-12) of `metadata`, `config` or `policy`."""
    tree = msgspec.json.schema(DOCUMENTS[document])
    for title, definition in tree["$defs"].items():
        for field, text in TEXTS[title].items():
            definition["properties"][field] = _described(definition["properties"][field], text)
        if title in NOTHING_ELSE:
            definition["additionalProperties"] = False
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": document, **tree}
    return json.dumps(found, indent=2).encode() + b"\n"


def write_schemas() -> tuple[Path, ...]:
    """Writes `schemas/{document}.schema.json`; gives their paths."""
    FOLDER.mkdir(exist_ok=True)
    paths = tuple(FOLDER / f"{document}.schema.json" for document in DOCUMENTS)
    for document, path in zip(DOCUMENTS, paths, strict=True):
        path.write_bytes(schema(document))
    return paths


def _described(field: dict[str, Any], text: str) -> dict[str, Any]:
    return {"description": text, **field}
