"""A file is the old one or the new one, never half of one."""

import io
import os

import pytest

from agent.adapters import files
from agent.core.errors import TransferError


def test_content_and_mode_arrive_together(tmp_path):
    """The new content has its mode from the first moment, and no temp stays."""
    path = tmp_path / "state.json"
    files.write_durably(path, b"one")
    files.write_durably(path, io.BytesIO(b"two"), 0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["state.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """A full disk costs the new content, not the old."""
    path = tmp_path / "state.json"
    files.write_durably(path, b"old")

    def full(number):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(TransferError, match=r"disk is full \(.* MB free\)"):
        files.write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_crash_left_is_removed(tmp_path):
    """A temp of a crashed writer goes, everything else stays."""
    (tmp_path / f"{files.TEMP}abc").write_bytes(b"half")
    (tmp_path / "state.json").write_bytes(b"whole")
    files.remove_temps(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["state.json"]


def test_an_absent_file_is_none(tmp_path):
    """Absence is an answer."""
    assert files.read_or_none(tmp_path / "none" / "state.json") is None


def test_free_room_is_that_of_the_folder_to_be(tmp_path):
    """A path that is not there yet has the room of where it will be."""
    assert files.free_bytes(tmp_path / "a" / "b" / "c") > 0
