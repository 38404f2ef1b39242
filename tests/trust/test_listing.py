"""Faults in what TUF signs about a release."""

import pytest

from agent.core.documents import to_tree
from agent.core.errors import BackendError, InputError, TrustError
from agent.trust.listing import FORMAT, Listing, Wrap, read_listing, target_path

NAME = "face_detection_retinaface_widerface_20250628"
LISTING = Listing(
    fmt=FORMAT, size=10, wraps=(Wrap(group="g1", epoch=1, key=b"k1"), Wrap(group="g1", epoch=3, key=b"k3")),
    task="face_detection", architecture="retinaface", dataset="widerface", version="1.0", memory_mb=20, opset=17,
)  # fmt: skip


def test_a_listing_is_read_as_it_was_written():
    """Through the tree that TUF signs and back."""
    assert read_listing(to_tree(LISTING), "p") == LISTING


@pytest.mark.parametrize(
    "custom", [None, [], {}, to_tree(LISTING) | {"fmt": "cob256+zstd+bg/v2"}, to_tree(LISTING) | {"fmt": None}]
)
def test_another_format_is_refused_by_name(custom):
    """There is nothing to negotiate: an unknown format asks for another agent."""
    with pytest.raises(BackendError, match="its format is"):
        read_listing(custom, "p")


@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": "10"}, {"size": 2**33 + 1}, {"opset": None}, {"more": 1}, {"wraps": [{"group": "g"}]}],
)
def test_a_malformed_listing_is_refused(change):
    """A signature does not make it well formed."""
    with pytest.raises(TrustError, match=r"p: "):
        read_listing(to_tree(LISTING) | change, "p")


def test_the_newest_granted_epoch_is_taken():
    """Of several wrapped keys, the newest that the device can open."""
    assert LISTING.wrap("g1", [1, 2, 3]).key == b"k3"
    assert LISTING.wrap("g1", [1, 2]).key == b"k1"


@pytest.mark.parametrize("held", [("g1", [2]), ("g2", [1]), ("g1", [])])
def test_a_release_sealed_for_others_says_so(held):
    """A device without the epoch is told what to ask for."""
    with pytest.raises(TrustError, match="grant the device"):
        LISTING.wrap(*held)


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/b/c", "UPPER_case", "a" * 200, f"{NAME}\n", f"../{NAME}", f"*{NAME}", "face_detection"],
)
def test_a_name_cannot_leave_its_folder(name):
    """Names are part of paths and of patterns."""
    with pytest.raises(InputError, match="name"):
        target_path(name)


def test_the_path_follows_from_the_name():
    """A device knows the path of every release that a deployment names."""
    assert target_path(NAME) == f"releases/{NAME}.sealed"
    assert target_path(f"{NAME}-2") != target_path(NAME)
