"""A models folder with the seed's tree and file names."""

import json

from tests.backends import graphs

FACE = "face_detection_retinaface_widerface_20250628"
NEXT_FACE = "face_detection_retinaface_widerface_20250629"
RECOGNITION = "face_recognition_arcface_glint360k_20250628"
DEFECT = "defect_detection_yolov8n_factory_20250628"
NAMES = (FACE, RECOGNITION, DEFECT)

# The seed's sample feeds `test_images[0]` of an array [1, 3, 640, 640]: its face detector takes one image, no batch.
FACE_SHAPE = (3, 640, 640)


def plant(root):
    """The seed's tree below `root`: one document for each task."""
    folder = root / "models"
    for room in ("weights", "metadata", "configs"):
        (folder / room).mkdir(parents=True)
        (folder / room / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "README.md").touch()
    graphs.chain(folder / "weights" / f"{FACE}.onnx", ["Relu", "Sigmoid"], shape=FACE_SHAPE)
    graphs.network(folder / "weights" / f"{RECOGNITION}.onnx", shape=(1, 3, 112, 112))
    graphs.network(folder / "weights" / f"{DEFECT}.onnx", name="images", shape=(1, 3, 64, 64))
    for name in NAMES:
        task = name[: name.index("_", name.index("_") + 1)]
        write_metadata(folder, task, version=name[-8:], accuracy=0.95, inference_time=15.2, model_size_mb=27.3)
        write_config(folder, task)
    return folder


def write_metadata(folder, stem, **keys):
    """One metadata document, of a task or of a release."""
    (folder / "metadata" / f"{stem}_metadata.json").write_text(json.dumps(keys), encoding="utf-8")


def write_config(folder, stem, text="input_size: [640, 640]\nconfidence_threshold: 0.5\n"):
    """One config document, of a task or of a release."""
    (folder / "configs" / f"{stem}_config.yaml").write_text(text, encoding="utf-8")


def plant_two_versions(folder):
    """A second version of the face detector, each with documents of its own."""
    weights = folder / "weights" / f"{FACE}.onnx"
    (folder / "weights" / f"{NEXT_FACE}.onnx").write_bytes(weights.read_bytes())
    write_metadata(folder, FACE, version="20250628", accuracy=0.95, inference_time=15.2, model_size_mb=27.3)
    write_metadata(folder, NEXT_FACE, version="20250629", accuracy=0.962, inference_time=17.0, model_size_mb=26.0)
    for name in (FACE, NEXT_FACE):
        write_config(folder, name)
    return folder
