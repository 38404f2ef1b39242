"""The words of a name: every part is told apart, and an unknown one is named."""

import pytest

from agent.core.errors import InputError
from models.registry import Registry, ReleaseName

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
