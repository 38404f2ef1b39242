"""A name is enough to load a model and to look up what it is, and nothing answers for another release."""

import json
import os
import shutil

import numpy as np
import pytest

from agent.core.candidate import Backend
from agent.core.errors import BackendError, InputError
from models import (
    ModelNotFoundError,
    compress_weights,
    format_name,
    get_model_metadata,
    load_model,
    load_model_config,
    open_folder,
    parse_name,
)
from tests.backends import graphs
from tests.models.tree import DEFECT, FACE, NEXT_FACE, RECOGNITION, plant_two_versions, write_config, write_metadata

IMAGE = np.ones((1, 3, 112, 112), np.float32)
DEVICES = {"auto": "", "cpu": "CPUExecutionProvider", "openvino": "OpenVINO:CPU"}


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_answers_as_onnx_runtimes_session_does(folder, device):
    """run, get_inputs, get_outputs and get_providers are there on every device, and it is the one that was named."""
    if device == "openvino":
        pytest.importorskip("openvino", reason="the openvino extra is not installed")
    session = load_model(RECOGNITION, device=device)
    assert [one.name for one in session.get_inputs()] == ["input"]
    assert [one.name for one in session.get_outputs()] == ["features", "scores"]
    assert session.run(["scores"], {"input": IMAGE})[0].shape == (1, 4)
    assert DEVICES[device] in session.get_providers()[0]


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_named_device_that_is_absent_is_an_error(folder, device):
    """Never the CPU instead, and the error says what to do."""
    if os.path.exists("/dev/nvidia0"):  # noqa: PTH110
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(BackendError, match=rf"{device} is absent here.*Next: "):
        load_model(RECOGNITION, device=device)


def test_auto_passes_over_what_is_absent(folder):
    """The config's order is kept, and what this device lacks is left out."""
    write_config(folder, RECOGNITION, "input_size: [1, 1]\nconfidence_threshold: 0\nbackends: [cuda, cpu, openvino]\n")
    assert load_model(RECOGNITION).get_providers() == ["CPUExecutionProvider"]


def test_auto_without_any_device_says_why_for_each(folder):
    """A config whose backends are all absent is an error, not the CPU."""
    if os.path.exists("/dev/nvidia0"):  # noqa: PTH110
        pytest.skip("this machine has an NVIDIA GPU")
    write_config(folder, RECOGNITION, "input_size: [1, 1]\nconfidence_threshold: 0\nbackends: [cuda, tensorrt]\n")
    with pytest.raises(BackendError, match=r"cuda.*tensorrt"):
        load_model(RECOGNITION)


def test_an_unknown_device_is_refused(folder):
    """A typing mistake does not end on the CPU."""
    with pytest.raises(InputError, match="'gpu': one of auto, tensorrt, cuda, openvino, cpu"):
        load_model(RECOGNITION, device="gpu")


@pytest.mark.parametrize("name", [NEXT_FACE, "no_such_model", "../weights/" + FACE, "", "/etc/passwd"])
def test_a_model_that_is_not_there(folder, name):
    """Loading says what there is, as a FileNotFoundError; its documents are None; no path is built from it."""
    with pytest.raises(ModelNotFoundError, match=f"no such model; there are: {DEFECT}, ") as caught:
        load_model(name)
    assert isinstance(caught.value, FileNotFoundError)
    assert get_model_metadata(name) is None
    assert load_model_config(name) is None


def test_a_damaged_model_is_told(folder):
    """A file that is no model is the user's to replace."""
    path = folder / "weights" / f"{FACE}.onnx"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="truncated"):
        load_model(FACE)


def test_a_folder_may_be_given(folder, tmp_path):
    """The argument goes before EDGE_MODELS."""
    other = tmp_path / "other"
    graphs.network(other / "weights" / f"{NEXT_FACE}.onnx")
    assert load_model(NEXT_FACE, folder=other).get_inputs()[0].name == "input"
    assert open_folder(other).releases() == (NEXT_FACE,)


def test_the_packages_own_folder_is_the_default(monkeypatch):
    """Without an argument and without EDGE_MODELS, the folder is the one of this package."""
    monkeypatch.delenv("EDGE_MODELS", raising=False)
    assert (open_folder().path / "weights" / "__init__.py").is_file()


def test_a_compressed_model_loads(folder):
    """`.onnx.zst` takes the place of `.onnx`, is smaller, and answers the same."""
    plain = folder / "weights" / f"{RECOGNITION}.onnx"
    graphs.network(plain, shape=(1, 3, 112, 112), seed=3)
    before = load_model(RECOGNITION, "cpu").run(None, {"input": IMAGE})[0]
    packed = compress_weights(RECOGNITION)
    assert packed.name == f"{RECOGNITION}.onnx.zst"
    assert not plain.exists()
    for device in ("cpu", "auto"):
        assert np.allclose(load_model(RECOGNITION, device).run(None, {"input": IMAGE})[0], before, atol=1e-5)
    assert compress_weights(RECOGNITION) == packed
    assert RECOGNITION in open_folder().releases()


def test_the_plain_file_stays_until_the_compressed_one_is_proven(folder, monkeypatch):
    """A disk that gives back other bytes costs no model."""
    monkeypatch.setattr("models.storage._unpack", lambda source, target, path: target.write(b"other"))
    with pytest.raises(InputError, match="reads back differently"):
        compress_weights(RECOGNITION)
    assert open_folder().weights(RECOGNITION).suffix == ".onnx"


def test_a_damaged_compressed_model_is_told(folder):
    """A flipped byte is found by the checksum."""
    packed = compress_weights(RECOGNITION)
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 0xFF
    packed.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load_model(RECOGNITION)


def test_a_document_of_its_own_goes_first(folder):
    """A release's own file goes before the task's."""
    write_metadata(folder, FACE, version="20250628", accuracy=0.5)
    assert get_model_metadata(FACE)["accuracy"] == 0.5


def test_a_tasks_document_is_of_one_release(folder):
    """Two versions never read one file: the version in it says whose it is."""
    shutil.copy(folder / "weights" / f"{FACE}.onnx", folder / "weights" / f"{NEXT_FACE}.onnx")
    assert get_model_metadata(FACE)["version"] == "20250628"
    assert get_model_metadata(NEXT_FACE) is None


def test_the_name_in_a_tasks_document_decides(folder):
    """A name in the document goes before its version."""
    write_metadata(folder, "face_detection", name=NEXT_FACE, version="20250628")
    assert get_model_metadata(FACE) is None
    assert get_model_metadata(NEXT_FACE)["name"] == NEXT_FACE


def test_a_document_without_identity_is_of_the_only_release(folder):
    """A config that names nobody is of the one release of its task, and of none that is not there."""
    assert load_model_config(FACE)["input_size"] == [640, 640]
    assert load_model_config(NEXT_FACE) is None


def test_a_document_that_could_be_of_two_releases_is_an_error(folder):
    """With a second release of the task, a config that names nobody answers for none of them."""
    shutil.copy(folder / "weights" / f"{FACE}.onnx", folder / "weights" / f"{NEXT_FACE}.onnx")
    with pytest.raises(InputError, match=r"add `name` to it"):
        load_model_config(FACE)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not valid JSON"),
        ("[]", "Expected `object`"),
        (json.dumps({"accuracy": 95}), r"accuracy"),
        (json.dumps({"accuracy": "high"}), r"accuracy"),
        (json.dumps({"inference_time": -1}), r"inference_time"),
    ],
)
def test_bad_metadata_is_told(folder, content, told):
    """The error names the file and the key."""
    (folder / "metadata" / f"{FACE}_metadata.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=told) as caught:
        get_model_metadata(FACE)
    assert f"{FACE}_metadata.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("input_size: [640, 640", "not valid YAML"),
        ("- 640", "Expected `object`"),
        ("input_size: [640, 640]", "confidence_threshold"),
        ("input_size: [640, 640]\nconfidence_threshold: 50", "confidence_threshold"),
        ("input_size: [640, 640]\nconfidence_threshold: 0.5\ngates: {min_fsp: 5}", "min_fsp"),
    ],
)
def test_a_bad_config_is_told(folder, content, told):
    """The error names the file and the key, for a look-up and for loading alike."""
    write_config(folder, FACE, content)
    for call in (load_model_config, load_model):
        with pytest.raises(InputError, match=told) as caught:
            call(FACE)
        assert f"{FACE}_config.yaml" in str(caught.value)


def test_a_config_says_the_precision(folder):
    """The precision of the config is asked of the backend, which refuses what it cannot compute."""
    write_config(folder, FACE, "input_size: [1, 1]\nconfidence_threshold: 0\nprecision: fp16\n")
    with pytest.raises(BackendError, match="fp16"):
        load_model(FACE, str(Backend.CPU))


def test_a_registry_in_the_folder_extends_the_products(folder):
    """A user's own task names a release, and its document is found."""
    (folder / "registry.yaml").write_text("tasks: [weld_seams]\narchitectures: [unet]\n", encoding="utf-8")
    name = format_name("weld_seams", "unet", "plant", parse_name(FACE).date, build=2)
    assert name == "weld_seams_unet_plant_20250628-2"
    write_metadata(folder, "weld_seams", version="20250628-2", accuracy=0.7)
    assert get_model_metadata(name)["accuracy"] == 0.7


def test_a_name_that_would_be_read_otherwise_is_not_made(folder):
    """format_name gives a name whose parts are found again, or an error."""
    day = parse_name(FACE).date
    (folder / "registry.yaml").write_text("architectures: [faster]\n", encoding="utf-8")
    with pytest.raises(InputError, match="would be read as pose, faster_rcnn, coco"):
        format_name("pose", "faster", "rcnn_coco", day)
    with pytest.raises(InputError, match="task"):
        format_name("weld", "ssd", "coco", day)


def test_two_versions_have_documents_of_their_own(folder):
    """Each version reads its own file."""
    plant_two_versions(folder)
    assert [get_model_metadata(name)["accuracy"] for name in (FACE, NEXT_FACE)] == [0.95, 0.962]
