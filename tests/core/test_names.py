"""The naming rule: every part is told apart, and a wrong one is named."""

import pytest

from agent.core.errors import InputError
from agent.core.names import NAME_LENGTH, Registry, ReleaseName, check_form

SEED = Registry()


def parts(text, registry=SEED):
    name = ReleaseName.parse(text, registry)
    return name.task, name.architecture, name.dataset, name.version


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("face_detection_retinaface_widerface_20250628", ("face_detection", "retinaface", "widerface", "20250628")),
        ("face_recognition_arcface_glint360k_20250628", ("face_recognition", "arcface", "glint360k", "20250628")),
        ("defect_detection_yolov8n_factory_20250628", ("defect_detection", "yolov8n", "factory", "20250628")),
        ("powerline_inspection_efficientdet_d1_20250628", ("powerline_inspection", "efficientdet", "d1", "20250628")),
        ("defect_detection_faster_rcnn_factory_20250628", ("defect_detection", "faster_rcnn", "factory", "20250628")),
        ("pose_ssd_two_words_20250628-12", ("pose", "ssd", "two_words", "20250628-12")),
    ],
)
def test_each_part_of_a_name_is_told_apart(text, expected):
    """Tasks, architectures and datasets with underscores are told apart by the registry."""
    assert parts(text) == expected


def test_the_longest_known_word_is_meant():
    """A registry that knows `faster` and `faster_rcnn` reads the longer one, unless no dataset would be left."""
    registry = SEED.extend(architectures=["faster"])
    assert parts("pose_faster_rcnn_coco_20250628", registry)[1:3] == ("faster_rcnn", "coco")
    assert parts("pose_faster_rcnn_20250628", registry)[1:3] == ("faster", "rcnn")


@pytest.mark.parametrize("text", ["pose_ssd_coco_20250628", "pose_faster_rcnn_coco_20240229-2"])
def test_a_name_is_written_as_it_was_read(text):
    """str() gives back the name."""
    assert str(ReleaseName.parse(text, SEED)) == text


def test_names_are_ordered_by_date_then_build():
    """A later date is newer whatever the words before it, and build 10 is newer than build 2."""
    names = ["tracking_ssd_a_20250628", "pose_ssd_a_20250628-2", "pose_ssd_a_20250628-10", "emotion_ssd_a_20250629"]
    assert [str(name) for name in sorted(ReleaseName.parse(text, SEED) for text in reversed(names))] == names


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "1 to 128"),
        ("pose_ssd_" + "x" * NAME_LENGTH + "_20250628", "1 to 128"),
        ("Pose_ssd_coco_20250628", "'P'"),
        ("pose_ssd_coco_20250628.onnx", "no file ending"),
        ("pose_ssd_../x_20250628", "'/'"),
        ("pose_ssd-mobile_coco_20250628", "'-'"),
        ("pose__coco_20250628", "empty"),
        ("_pose_ssd_coco_20250628", "empty"),
        ("pose_ssd_coco", "date"),
        ("pose_ssd_coco_2025062", "date"),
        ("pose_ssd_coco_٢٠٢٥٠٦٢٨", "cannot stand"),
        ("pose_ssd_coco_20250628\n", "cannot stand"),
        ("pose_ssd_coco_20250229", "calendar"),
        ("pose_ssd_coco_20251301", "calendar"),
        ("pose_ssd_coco_00000101", "calendar"),
        ("pose_ssd_coco_20250628-", "'20250628-'"),
        ("pose_ssd_coco_20250628-1", "build"),
        ("pose_ssd_coco_20250628-02", "build"),
        ("pose_ssd_coco_20250628-1000", "build"),
        ("pose_coco_20250628", "part is missing"),
        ("20250628", "part is missing"),
    ],
)
def test_a_device_refuses_what_cannot_be_a_name(text, told):
    """Form and date are checked without a registry, and the error names the part."""
    with pytest.raises(InputError, match=told):
        check_form(text)


def test_a_device_takes_words_that_it_does_not_know():
    """A fleet's own task needs no update of its devices."""
    assert check_form("weld_seams_unet_plant7_20250628-2") == ("weld_seams_unet_plant7", "20250628-2")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("weld_seams_ssd_coco_20250628", "task: 'weld_seams_ssd_coco'.*face_detection"),
        ("pose_unet_coco_20250628", "architecture: 'unet_coco'.*faster_rcnn"),
        ("pose_faster_rcnn_20250628", "nothing follows the architecture faster_rcnn"),
        ("face_detection_ssd_20250628", "nothing follows the architecture ssd"),
    ],
)
def test_an_unknown_part_is_named_with_what_is_allowed(text, told):
    """Whoever mistypes a task or an architecture reads the list of those that are known."""
    with pytest.raises(InputError, match=told):
        ReleaseName.parse(text, SEED)


def test_a_user_extends_the_registry_from_a_file():
    """Tasks and architectures from YAML are known beside the seed's own."""
    registry = SEED.extend_from_yaml("tasks: [weld_seams]\narchitectures: [unet]\n", "registry.yaml")
    assert parts("weld_seams_unet_plant_20250628", registry)[:2] == ("weld_seams", "unet")
    assert parts("pose_unet_plant_20250628", registry)[:2] == ("pose", "unet")


@pytest.mark.parametrize("content", ["task: [weld]", "tasks: [Weld-Seams]", "tasks: [a__b]", "[", "tasks: weld"])
def test_a_bad_registry_file_is_refused(content):
    """A typing mistake in the registry is an error, not a word that never matches."""
    with pytest.raises(InputError, match="registry"):
        SEED.extend_from_yaml(content, "registry.yaml")
