"""The form of a name: whatever cannot be one is refused, and the wrong part is named."""

import pytest

from agent.core.errors import InputError
from agent.core.names import NAME_LENGTH, age_of, check_form


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


def test_a_device_tells_which_release_is_newer():
    """By date, then build as a number, whatever the words before it are."""
    names = ["z_z_z_20241231-9", "a_a_a_20250628", "x_x_x_20250628-2", "b_b_b_20250628-10", "a_a_a_20250629"]
    assert sorted(names, key=age_of) == names
