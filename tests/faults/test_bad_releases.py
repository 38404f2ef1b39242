"""Releases that break the rules: refused at the desk, and, where somebody published one all the same, on the device."""

import json
import shutil

import pytest

import fleet.publish
from fleet import cli
from tests.system.plant import MODELS, TWO

ROOMS = {"weights": ".onnx", "metadata": "_metadata.json", "configs": "_config.yaml", "golden": "_golden.npz"}


# --- at the desk -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A models folder with one sound release of another day."""
    name = TWO.replace("20250629", "20250701")
    for room, ending in ROOMS.items():
        (tmp_path / room).mkdir()
        shutil.copy(MODELS / room / f"{TWO}{ending}", tmp_path / room / f"{name}{ending}")
    path = tmp_path / "metadata" / f"{name}_metadata.json"
    path.write_text(path.read_text().replace("20250629", "20250701"))
    return tmp_path


NAME = TWO.replace("20250629", "20250701")


def file(folder, room):
    return folder / room / f"{NAME}{ROOMS[room]}"


def edit(room, old, new):
    """A change of one text in one file."""

    def change(folder):
        path = file(folder, room)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def overwrite(room, content):
    """Other bytes in one file; a function of the old ones."""

    def change(folder):
        path = file(folder, room)
        path.write_bytes(content(path.read_bytes()))

    return change


def rename_outputs(folder):
    """Metadata that declares other tensors than the network has."""
    path = file(folder, "metadata")
    tree = json.loads(path.read_bytes())
    tree["outputs"][0]["name"] = "elsewhere"
    path.write_text(json.dumps(tree))
    config = file(folder, "configs")
    config.write_text(config.read_text().replace("    boxes:", "    elsewhere:"))


AT_THE_DESK = {
    "metadata that is no JSON": (edit("metadata", "{", "{{"), "is not valid JSON"),
    "metadata without a key": (edit("metadata", '"inputs"', '"imputs"'), "did you mean inputs?"),
    "metadata with a value of another type": (edit("metadata", '"accuracy": 0', '"accuracy": "high", "x": 0'), "accuracy"),
    "metadata with an impossible accuracy": (edit("metadata", '"accuracy": 0', '"accuracy": 8'), "<= 1"),
    "metadata of another release": (edit("metadata", '"version": "2025', '"version": "2024'), "the name says '20250701'"),
    "no metadata": (lambda folder: file(folder, "metadata").unlink(), "metadata: there is none"),
    "config that is no YAML": (overwrite("configs", lambda _: b"input_size: [1, 2\n"), "is not valid YAML"),
    "config with an impossible threshold": (edit("configs", "threshold: 0.5", "threshold: 5"), "confidence_threshold"),
    "config with a gate that is not known": (edit("configs", "min_fps", "min_pfs"), "min_pfs"),
    "config with a backend that is not known": (edit("configs", "[tensorrt, cuda", "[tensorflow, cuda"), "tensorflow"),
    "config of another input size": (edit("configs", "input_size: [160", "input_size: [161"), "input_size is [161, 160]"),
    "config that is text": (overwrite("configs", lambda _: b"hello"), "Expected `object`"),
    "config that is binary": (overwrite("configs", lambda _: bytes(range(256))), "is not valid YAML"),
    "metadata that is binary": (overwrite("metadata", lambda _: bytes(range(256))), "is not valid JSON"),
    "an ONNX file that is truncated": (overwrite("weights", lambda old: old[: len(old) // 2]), "truncated"),
    "an ONNX file of no bytes": (overwrite("weights", lambda _: b""), "not"),
    "a file that is not ONNX": (overwrite("weights", lambda _: b"\x89PNG\r\n" + bytes(5000)), "not an ONNX model"),
    "other tensors than declared": (rename_outputs, "elsewhere"),
    "golden samples that are none": (overwrite("golden", lambda _: b"none"), "golden"),
    "no golden samples": (lambda folder: file(folder, "golden").unlink(), "golden samples: there are none"),
    "no weights": (lambda folder: file(folder, "weights").unlink(), "no such model"),
}  # fmt: skip


def publish(standing, folder, name, *more):
    plant = standing.plant
    return cli.main(
        ["publish", name, "--folder", str(folder), "--store", plant.url, "--keys", str(plant.folder / "keys"), *more]
    )


@pytest.mark.parametrize("case", AT_THE_DESK)
def test_a_release_that_breaks_a_rule_is_not_published(standing, folder, capsys, case):
    """Exit 2, a sentence for each problem, and the store as it was."""
    change, answer = AT_THE_DESK[case]
    change(folder)
    before = sorted(standing.plant.store.keys())
    assert publish(standing, folder, NAME) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert answer in said
    assert "Traceback" not in said
    assert sorted(standing.plant.store.keys()) == before


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("defect_detection_ssd_plates", "not in _YYYYMMDD"),
        ("defect_detection_ssd_plates_20251332", "not a day in the calendar"),
        ("defect_detection_ssd_20250701", "nothing follows"),
        ("dance_detection_ssd_plates_20250701", "starts with none that is known"),
        ("Defect_detection_ssd_plates_20250701", "cannot stand there"),
        ("../../etc/passwd_a_b_20250701", "cannot stand there"),
        ("", "0 characters"),
        (f"defect_detection_ssd_{'x' * 200}_20250701", "1 to 128"),
    ],
)
def test_a_name_that_breaks_the_rules_is_not_published(standing, folder, capsys, name, answer):
    """The message says which part is wrong, and what would be right."""
    before = sorted(standing.plant.store.keys())
    assert publish(standing, folder, name) == 2
    assert answer in capsys.readouterr().err
    assert sorted(standing.plant.store.keys()) == before


def test_two_problems_are_told_at_once(standing, folder, capsys):
    """Nobody has to publish twice to learn of the second mistake."""
    edit("metadata", '"inputs"', '"imputs"')(folder)
    edit("configs", "min_fps", "min_pfs")(folder)
    assert publish(standing, folder, NAME) == 2
    said = capsys.readouterr().err
    assert "inputs" in said
    assert "min_pfs" in said


def test_a_name_that_was_published_is_not_given_to_other_bytes(standing, capsys):
    """One name is one set of bytes for ever."""
    assert publish(standing, MODELS, TWO) == 2
    assert "published before" in capsys.readouterr().err


# --- on the device ---------------------------------------------------------------------------------------------

OTHER_TENSORS = [
    {"name": "boxes", "shape": [1, 7], "dtype": "float32"},
    {"name": "more", "shape": [1], "dtype": "int64"},
]

ON_THE_DEVICE = {
    "metadata that is no JSON": ({"metadata": b"{"}, "structure", "metadata.json: this is not valid JSON"),
    "metadata that is binary": ({"metadata": bytes(range(256))}, "structure", "metadata.json: this is not valid"),
    "metadata without a key": ({"keys": {"compatibility": None}}, "structure", "missing required field `compat"),
    "metadata of another release": ({"keys": {"name": TWO}}, "structure", f"its metadata is of {TWO}"),
    "metadata of another task": ({"keys": {"task": "pose"}}, "structure", "its task is pose, the slot is defect"),
    "config that is no YAML": ({"config": b"a: ["}, "structure", "config.yaml: this is not valid YAML"),
    "config that is binary": ({"config": bytes(range(256))}, "structure", "config.yaml: this is not valid YAML"),
    "config with an impossible value": ({"config": b"input_size: [160, 160]\nconfidence_threshold: 7\n"}, "structure", "<= 1"),
    "other tensors than declared": ({"keys": {"outputs": OTHER_TENSORS}}, "structure", "boxes"),
    "a file that is not ONNX": ({"weights": lambda _: b"\x89PNG\r\n" + bytes(5000)}, "structure", "not an ONNX model"),
    "an ONNX file that is truncated": ({"weights": lambda whole: whole[: len(whole) // 2]}, "structure", "truncated or not one"),
    "an ONNX file of no bytes": ({"weights": lambda _: b""}, "structure", "not an ONNX model"),
    "golden samples that are none": ({"golden": b"none"}, "structure", "golden"),
}  # fmt: skip


@pytest.mark.parametrize("case", ON_THE_DEVICE)
def test_a_release_that_breaks_a_rule_is_rejected_by_the_device(standing, monkeypatch, case):
    """Signed by our own keys and deployed: it is rejected for good, with its kind, and the good release serves on."""
    changes, kind, words = ON_THE_DEVICE[case]
    date = f"202401{list(ON_THE_DEVICE).index(case) + 1:02}"
    release = published(standing, monkeypatch, date, **changes)
    with standing.unharmed(but={"deployment"}):
        standing.deploy(release.name)
        failure = standing.rejection(release)
        assert failure["kind"] == kind
        assert words in failure["reason"]
        standing.until_told(words)


def published(standing, monkeypatch, date, keys=None, **files):
    """A release that somebody with our keys published without a look at it."""
    sound, describe = standing.unsound(date), fleet.publish.describe_listing
    monkeypatch.setattr(fleet.publish, "describe_listing", lambda _, size, wraps: describe(sound, size, wraps))
    if "weights" in files:
        files["weights"] = files["weights"](sound.weights)
    return standing.plant.publish_checked(standing.unsound(date, keys, **files))
