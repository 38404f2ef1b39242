"""One release with its weights in three precisions: each is a candidate on the device, and the fastest in parity serves."""

import json
import shutil

import numpy as np
import yaml

from tests.backends import graphs
from tests.system.client import command
from tests.system.plant import MODELS, ONE, SLOT, UnixConnection, golden, infer

WIDE = {"boxes": {"atol": 20.0, "rtol": 0.1}, "scores": {"atol": 0.3}}  # int8 with one scale for a whole tensor
DETECTIONS = {"boxes": "boxes", "scores": "scores", "min_iou": 0.6, "max_score": 0.2, "max_alone": 0.3}


def release_with_variants(folder):
    for path in MODELS.glob(f"*/{ONE}*"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.parent.name)
    weights = folder / "weights" / f"{ONE}.onnx"
    for precision in ("fp16", "int8"):
        graphs.in_precision(weights, weights.with_suffix(f".{precision}.onnx"), precision)
    config = folder / "configs" / f"{ONE}_config.yaml"
    tree = yaml.safe_load(config.read_text())
    gates = {"parity": WIDE, "detections": DETECTIONS, "min_fps": 1}
    config.write_text(yaml.safe_dump(tree | {"variants": ["fp16", "int8"], "backends": ["cpu"], "gates": gates}))
    return folder


def test_the_fastest_precision_of_a_release_serves(plant, tmp_path):
    """All three are sealed in one release, tried on the device with evidence each, and one is chosen by its speed."""
    plant.publish(ONE, release_with_variants(tmp_path / "models"))
    plant.rollout(ONE)
    device = plant.device().start()
    device.until(lambda: device.slot().get("step") == "settled" and device.slot()["confirmed"], "settled", 90)
    slot = device.slot()
    trials = {one["place"]["candidate"].get("precision", "fp32"): one for one in slot["trials"]}
    evidence = {precision: one["evidence"] for precision, one in trials.items()}
    assert set(evidence) == {"fp32", "fp16", "int8"}
    matched = {each["output"] for one in evidence.values() for each in one["deviations"]}
    assert matched == {"boxes", "scores", "matched detections"}
    assert evidence["int8"]["deviations"] != evidence["fp32"]["deviations"], "the other weights were measured"
    assert sorted(one["beside"] is None for one in trials.values()) == [False, False, True], "nothing served at first"
    speeds = {precision: one["scaled_fps"] or one["evidence"]["fps"] for precision, one in trials.items()}
    serving = slot["candidate"].split("/")[1]
    assert speeds[serving] >= 0.9 * max(speeds.values())
    frame, wanted = golden(ONE)
    answer = infer(UnixConnection(device.door), frame)
    assert np.abs(answer.outputs["scores"] - wanted["scores"]).max() < 0.3

    done = command(device, "bench", "--write", str(tmp_path))
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / f"{SLOT}.json").read_text())
    assert figures["device"]
    assert figures["hardware"]
    rows = {one["candidate"].get("precision", "fp32"): one for one in figures["measured"][SLOT]}
    assert set(rows) == {"fp32", "fp16", "int8"}
    assert {one["release"] for one in rows.values()} == {ONE}
    assert all(one["version"] for one in rows.values())
    assert (tmp_path / f"{SLOT}.png").read_bytes().startswith(b"\x89PNG")
    told = command(device, "why").stdout
    assert "what serves was measured at" in told
    assert " ".join(told.split()).count("times as fast as") == 2
    assert "on CPUExecutionProvider" in " ".join(told.split())
