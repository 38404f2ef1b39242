"""What may be published is whole, true and computes; everything else is told at once."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from agent.backends import open_session
from agent.backends.golden import load_golden
from agent.core.documents import from_json
from agent.core.release import Config, Metadata
from models.check import REFERENCE, UnfitError, check_release
from models.folder import open_folder
from models.storage import compress_weights
from tests.backends import graphs

NAME = "pose_ssd_coco_20250628"
IMAGES = np.random.default_rng(0).random((2, 1, 3, 8, 8), np.float32)
FEATURES = {"name": "features", "shape": [1, 4, 8, 8], "dtype": "float32"}
SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "models" / "weights").glob("*.onnx"))


def metadata(**changes):
    tensor = {"name": "input", "shape": [1, 3, 8, 8], "dtype": "float32"}
    scores = {"name": "scores", "shape": [1, 4], "dtype": "float32"}
    return {
        "name": NAME,
        "version": "20250628",
        "task": "pose",
        "architecture": "ssd",
        "dataset": "coco",
        "accuracy": 0.9,
        "inference_time": 1.0,
        "model_size_mb": 0.1,
        "inputs": [tensor],
        "outputs": [FEATURES, scores],
        "compatibility": {"opset": 17},
    } | changes


def config(**changes):
    return {"input_size": [8, 8], "confidence_threshold": 0.5} | changes


@pytest.fixture
def release(tmp_path):
    """Writes a release, with changes; gives its folder."""

    def write(metadata=None, config=None, golden=None, name=NAME, **network):
        for room in ("metadata", "configs", "golden"):
            (tmp_path / room).mkdir()
        graphs.network(tmp_path / "weights" / f"{name}.onnx", **network)
        (tmp_path / "metadata" / f"{name}_metadata.json").write_text(json.dumps(metadata or _metadata()))
        (tmp_path / "configs" / f"{name}_config.yaml").write_text(yaml.safe_dump(config or _config()))
        np.savez(tmp_path / "golden" / f"{name}_golden.npz", **(golden or {"in.input": IMAGES}))
        return tmp_path

    return write


_metadata, _config = metadata, config


def problems(folder, name=NAME):
    with pytest.raises(UnfitError) as caught:
        check_release(folder, name)
    return caught.value.problems


def test_a_good_release_may_be_published(release):
    """The four files come back as bytes, with references that the weights compute."""
    folder = release()
    checked = check_release(folder, NAME)
    assert checked.name == NAME
    assert checked.weights == (folder / "weights" / f"{NAME}.onnx").read_bytes()
    assert checked.metadata == (folder / "metadata" / f"{NAME}_metadata.json").read_bytes()
    assert checked.config == (folder / "configs" / f"{NAME}_config.yaml").read_bytes()
    samples = load_golden(checked.golden, from_json(Metadata, checked.metadata, ""))
    session = open_session(str(folder / "weights" / f"{NAME}.onnx"), REFERENCE, Config(**config()))
    assert np.array_equal(samples[1].outputs["scores"], session.run(["scores"], {"input": IMAGES[1]})[0])


def test_compressed_weights_are_published_plain(release):
    """A compressed file is the same release."""
    folder = release()
    plain = (folder / "weights" / f"{NAME}.onnx").read_bytes()
    compress_weights(NAME, folder)
    assert check_release(folder, NAME).weights == plain


def test_weights_listed_as_inputs_are_taken_off(release):
    """The published file lists inputs alone, and computes the same."""
    checked = check_release(release(listed=True), NAME)
    assert [value.name for value in onnx.load_from_string(checked.weights).graph.input] == ["input"]
    assert checked.notes == ("1 weights are no longer listed as inputs",)


def test_weights_stay_listed_where_that_changes_an_answer(release, monkeypatch, tmp_path):
    """A file is changed on the way only when it computes the same."""
    other = graphs.network(tmp_path / "other.onnx", seed=5).read_bytes()
    monkeypatch.setattr("models.check.strip_listed_weights", lambda content: (other, 1))
    checked = check_release(release(listed=True), NAME)
    assert checked.weights != other
    assert checked.notes == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "pose_ssd_coco_20250629"}, "metadata: name is 'pose_ssd_coco_20250629'; the name says"),
        ({"version": "1.0.0"}, "metadata: version is '1.0.0'; the name says '20250628'"),
        ({"task": "tracking"}, "task"),
        ({"architecture": "mtcnn"}, "architecture"),
        ({"dataset": "voc"}, "dataset"),
        ({"compatibility": {"opset": 13}}, "opset is 13; the file is of opset 17"),
        ({"inputs": [{"name": "image", "shape": [1, 3, 8, 8], "dtype": "float32"}]}, "input"),
        ({"inputs": [{"name": "input", "shape": [1, 3, 8, 8], "dtype": "uint8"}]}, "declared uint8|are no samples"),
        ({"accuracy": 90}, "accuracy"),
        ({"license": "MIT"}, r"metadata: license is not known; did you mean licence\?"),
        ({"Classes": ["a"]}, r"did you mean classes\?"),
        ({"outputs": [FEATURES, {"name": "scores", "shape": [1, 5], "dtype": "float32"}]}, "output scores: declared"),
    ],
)
def test_metadata_that_is_not_true_is_told(release, changes, told):
    """Name, tensors and opset in the metadata are those of the name and of the file."""
    found = problems(release(metadata=metadata(**changes)))
    assert any(re.search(told, problem) for problem in found)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gates": {"min_accuracy": 0.95}}, "accuracy is 0.9; the gate min_accuracy asks for 0.95"),
        ({"gates": {"parity": {"boxes": {"atol": 1.0}}}}, "gates.parity names 'boxes'"),
        ({"gates": {"min_fsp": 5}}, "gates.min_fsp is not known; did you mean gates.min_fps?"),
        ({"thraeds": 2}, "thraeds is not known; did you mean optimization.threads?"),
        ({"preprocessing": {"colour": "RGB", "sdt": [1.0]}}, "preprocessing.sdt is not known; did you mean"),
        ({"gates": {"parity": {"scores": {"atoll": 1}}}}, "did you mean gates.parity.scores.atol?"),
        ({"gates": {"max_memory_mb": float("inf")}}, "gates.max_memory_mb is inf, which is no number to compare with"),
        ({"variants": ["fp16", "fp99"]}, "config: variants 'fp99': one of bf16, fp16, fp32, int8"),
        ({"preprocessing": {"layout": "NCWH"}}, "config: preprocessing.layout 'NCWH': one of NCHW, NHWC"),
        ({"author": "me"}, "what is for other programs belongs under postprocessing"),
        ({"postprocessing": {"author": "me"}, "batch_size": 4}, "batch_size is 4"),
        ({"input_size": [8, 16]}, "input_size is [8, 16]; the input takes [8, 8]"),
        ({"batch_size": 4}, "batch_size is 4; the input input takes 1"),
        ({"optimization": {"tensorrt": {"fp16": True}}}, "optimization.tensorrt.fp16 is not known"),
        ({"optimization": {"opnvino": {}}}, "optimization.opnvino is not known"),
        ({"precision": "fp16"}, "set optimization.cpu.precision to fp32"),
        ({"optimization": {"tensorrt": {"precision": ["fp16", "fp8"]}}}, "optimization.tensorrt.precision 'fp8'"),
        ({"optimization": {"openvino": {"device": "AUTO"}}}, "optimization.openvino.device 'AUTO'"),
        ({"optimization": {"threads": [1, 0]}}, "optimization.threads 0"),
    ],
)
def test_a_config_that_cannot_hold_is_told(release, changes, told):
    """Gates, sizes and options fit the release, and no typing mistake switches one off."""
    assert told in "\n".join(problems(release(config=config(**changes))))


def test_metadata_may_say_what_we_do_not_know(release):
    """Others add to it: a key that looks like one of ours is no slip where ours is there too, or hardly looks so."""
    more = {"licence": "MIT", "license": "MIT", "dataset_url": "https://example.org", "author": "me"}
    assert check_release(release(metadata=metadata(**more)), NAME).name == NAME


def test_a_key_that_stands_twice_is_told(release):
    """Of two values of one key nobody knows which was meant; each is told with its line, beside what else is wrong."""
    folder = release()
    text = "input_size: [8, 8]\nconfidence_threshold: 0.5\ngates:\n  min_fps: 1\n  min_fps: 2\ngates: {}\nwarmup: 1\n"
    (folder / "configs" / f"{NAME}_config.yaml").write_text(text)
    told = problems(folder)
    assert [one.split(";")[0] for one in told] == [
        "config: warmup is not known",
        "config: gates.min_fps stands twice, again in line 5",
        "config: gates stands twice, again in line 6",
    ]


def test_a_key_of_the_metadata_that_stands_twice_is_told(release):
    """Also one of a tensor; objects beside each other have the same keys."""
    folder = release()
    path = folder / "metadata" / f"{NAME}_metadata.json"
    text = path.read_text().replace('"accuracy":', '"accuracy": 0.99,\n\t"accuracy":')
    path.write_text(text.replace('"dtype":', '"dtype": "int8", "dtype":', 1))
    assert [one.split(";")[0] for one in problems(folder)] == [
        "metadata: dtype stands twice in one object",
        "metadata: accuracy stands twice in one object",
    ]


@pytest.mark.parametrize(
    ("golden", "told"),
    [
        ({"in.image": IMAGES}, "golden samples: wanted ['in.input']"),
        ({"in.input": IMAGES * np.nan}, "NaN or Inf"),
        ({"in.input": IMAGES.astype(np.float64)}, "no samples"),
        (
            {
                "in.input": IMAGES,
                "out.features": np.zeros((2, 1, 4, 8, 8), "f4"),
                "out.scores": np.zeros((2, 1, 4), "f4"),
            },
            "output features is",
        ),
    ],
)
def test_golden_samples_that_prove_nothing_are_told(release, golden, told):
    """Samples fit the inputs, answers are finite, and references that come along are those of these weights."""
    assert told in problems(release(golden=golden))[0]


def test_all_problems_are_told_at_once(release):
    """Whoever publishes mends everything in one go."""
    found = problems(
        release(metadata=metadata(version="1", accuracy=0.1), config=config(batch_size=2, gates={"min_accuracy": 0.5}))
    )
    assert len(found) == 3


@pytest.mark.parametrize("missing", ["weights", "metadata", "configs", "golden"])
def test_a_missing_file_is_told(release, missing):
    """Each of the four files is needed."""
    folder = release()
    next((folder / missing).iterdir()).unlink()
    assert len(problems(folder)) == 1


def test_a_name_outside_the_registry_is_told(release):
    """The registry is checked when publishing; the folder may extend it."""
    name = "weld_unet_plant_20250628"
    changed = metadata(name=name, task="weld", architecture="unet", dataset="plant")
    folder = release(metadata=changed, name=name)
    assert "task" in problems(folder, name)[0]
    (folder / "registry.yaml").write_text("tasks: [weld]\narchitectures: [unet]\n")
    assert check_release(folder, name).name == name


def test_unsound_weights_are_told(release):
    """A graph that ONNX's checker refuses is not published."""
    folder = release()
    path = folder / "weights" / f"{NAME}.onnx"
    model = onnx.load(str(path))
    model.graph.node[0].op_type = "Convolve"
    path.write_bytes(model.SerializeToString())
    assert "not sound ONNX" in problems(folder)[0]


def test_weights_in_another_file_are_told(release):
    """A model whose weights lie beside it would lose them on the way."""
    folder = release()
    path = folder / "weights" / f"{NAME}.onnx"
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert "another file" in problems(folder)[0]


def with_variants(folder, *precisions):
    weights = folder / "weights" / f"{NAME}.onnx"
    for precision in precisions:
        graphs.in_precision(weights, weights.with_suffix(f".{precision}.onnx"), precision)
    return folder


WIDE = {"parity": {"features": {"atol": 0.1}, "scores": {"atol": 0.1}}}


def test_weights_in_other_precisions_are_published_too(release):
    """What the config names lies there, answers the golden samples within the gates, and is no release of its own."""
    folder = with_variants(release(config=config(variants=["fp16", "int8"], gates=WIDE)), "fp16", "int8")
    checked = check_release(folder, NAME)
    assert set(checked.variants) == {"fp16", "int8"}
    assert checked.variants["int8"] == (folder / "weights" / f"{NAME}.int8.onnx").read_bytes()
    assert open_folder(folder).releases() == (NAME,)


@pytest.mark.parametrize(
    ("variants", "there", "told"),
    [
        (["fp16", "int8"], ["fp16"], f"there is no weights/{NAME}.int8.onnx"),
        (["fp16"], ["fp16", "int8"], "`variants` does not name int8"),
        (["fp32"], ["fp32"], "variants name fp32, which is the precision of"),
    ],
)
def test_variants_that_are_not_what_the_config_says_are_told(release, variants, there, told):
    """Files and config name the same precisions, none twice."""
    folder = with_variants(release(config=config(variants=variants, gates=WIDE)), *there)
    assert told in "\n".join(problems(folder))


def test_a_variant_that_no_device_would_take_is_told(release):
    """Weights in int8 that miss the release's own gates are noticed at the desk, not on every device."""
    strict = {"parity": {"scores": {"atol": 1e-5}}}
    folder = with_variants(release(config=config(variants=["int8"], gates=strict)), "int8")
    assert "weights in int8: output features is" in "\n".join(problems(folder))


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"boxes": "corners", "scores": "scores"}, "gates.detections names 'corners'"),
        ({"boxes": "features", "scores": "scores", "min_score": 0.01}, "are no boxes"),
        ({"boxes": "features", "scores": "scores", "min_score": 0.9}, "take inputs that show something"),
    ],
)
def test_a_gate_for_detections_that_proves_nothing_is_told(release, rule, told):
    """It names boxes and scores, and the golden samples show something."""
    dim = {"in.input": IMAGES * np.float32(0.2 if rule.get("min_score") == 0.9 else 1)}
    assert told in "\n".join(problems(release(config=config(gates={"detections": rule}), golden=dim)))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_models_that_we_ship_may_be_published(name):
    """What stands in this repository passes its own rules."""
    assert check_release(None, name).name == name
