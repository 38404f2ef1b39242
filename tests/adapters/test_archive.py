"""An exported file from an untrusted stick: whatever it holds, it is refused in a sentence or read as bytes."""

import os
import stat
import struct
import tracemalloc
import warnings
import zipfile

import pytest

from agent.adapters.archive import INDEX_BYTES, ArchiveStore
from agent.adapters.fetch import TargetInfo, fetch
from agent.adapters.store import Changed, Missing
from agent.core.errors import EdgeError, InputError
from tests.adapters.zips import zipped

BIG = bytes(range(256)) * 8192  # two pieces


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site.zip"


def refused(path, words):
    with pytest.raises(InputError, match=words) as caught:
        ArchiveStore(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bomb_is_not_opened(path):
    """A compressed entry is refused, whatever it would become."""
    refused(zipped(path, [("targets/x", b"\0" * 50_000_000)], zipfile.ZIP_DEFLATED), "compressed")
    assert path.stat().st_size < 100_000


def test_an_index_that_would_fill_the_memory_is_not_read(path):
    """A file that announces an index of gigabytes costs no memory."""
    with path.open("wb") as file:
        file.truncate(3_000_000_000)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2_999_999_999, 1, 0))
    tracemalloc.start()
    refused(path, "index of 2999999999 bytes")
    assert tracemalloc.get_traced_memory()[1] < INDEX_BYTES
    tracemalloc.stop()


@pytest.mark.parametrize("key", ["/etc/passwd", "../../etc/passwd", "a/../../b", "a//b", "a\\b", "folder/", "x" * 1025])
def test_a_name_that_could_leave_is_refused(path, key):
    """Absolute names, steps upwards, folders: no export has them."""
    refused(zipped(path, [("fine", b""), (key, b"x")]), "a key is a relative path")


def test_a_name_that_stands_twice_is_refused(path):
    """Two readers could see two contents."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        zipped(path, [("metadata/timestamp.json", b"old"), ("metadata/timestamp.json", b"new")])
    refused(path, "twice")


def test_a_link_is_refused(path):
    """An entry that calls itself a link."""
    refused(zipped(path, [("targets/x", b"/etc/passwd")], modes={"targets/x": stat.S_IFLNK | 0o777}), "a link")


@pytest.mark.parametrize(("at", "value"), [(8, 1), (10, 8)])
def test_an_encrypted_or_compressed_entry_is_refused(path, at, value):
    """Its flag or its method says so, whatever its sizes say; there is no password to ask for."""
    raw = bytearray(zipped(path, [("key", b"content")]).read_bytes())
    raw[raw.index(b"PK\1\2") + at] |= value
    path.write_bytes(raw)
    refused(path, "encrypted")


def test_an_entry_beyond_the_end_is_refused(path):
    """The index promises more bytes than there are: the file was made so, or cut in its middle."""
    raw = bytearray(zipped(path, [("key", b"content")]).read_bytes())
    at = raw.index(b"PK\1\2") + 20
    raw[at : at + 8] = struct.pack("<2L", 5_000_000, 5_000_000)
    path.write_bytes(raw)
    refused(path, "not copied to its end")


@pytest.mark.parametrize("keep", [0, 10, 1_000_000, -1, -22])
def test_a_file_that_was_not_copied_to_its_end_is_refused(path, keep):
    """A stick that was pulled too early: the index is at the end of the file."""
    raw = zipped(path, [("key", BIG)]).read_bytes()
    path.write_bytes(raw[:keep])
    refused(path, "not a whole export")


def test_garbage_anywhere_is_an_error_that_we_know(path):
    """A flipped byte anywhere in heads and index gives bytes or one of our errors, never a crash."""
    raw = zipped(path, [("a/b", b"content"), ("c", b"more")]).read_bytes()
    for at in range(len(raw)):
        for bit in (0x01, 0x80):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :])
            try:
                store = ArchiveStore(path)
                for key in ("a/b", "c"):
                    assert len(store.read(key, 100)) <= 100
            except EdgeError:
                continue


def test_a_link_or_pipe_in_place_of_the_file_is_not_opened(path, tmp_path):
    """A folder into which a stick is copied cannot lead out of itself, nor hang us."""
    outside = zipped(tmp_path / "outside.zip", [("key", b"x")])
    folder = tmp_path / "drop"
    folder.mkdir()
    (folder / "link.zip").symlink_to(outside)
    os.mkfifo(folder / "pipe.zip")
    for name in ("link.zip", "pipe.zip", "absent.zip"):
        with pytest.raises(Missing):
            ArchiveStore(folder / name)


def test_a_file_that_is_replaced_meanwhile_is_noticed(path):
    """Bytes of two files are never put together."""
    store = ArchiveStore(zipped(path, [("key", BIG)]))
    first = store.stream("key")
    first.close()
    zipped(path, [("key", BIG[::-1])])
    with pytest.raises(Changed):
        store.stream("key", 1000, first.etag)


def test_a_release_is_fetched_from_a_file(path, tmp_path):
    """The very same download as from a bucket."""
    import hashlib

    store = ArchiveStore(zipped(path, [("first", b"x" * 100), ("targets/x.sealed", BIG), ("last", b"y" * 100)]))
    key, place = "targets/x.sealed", tmp_path / "x.sealed"
    target = TargetInfo(path=key, key=key, length=len(BIG), sha256=hashlib.sha256(BIG).hexdigest(), custom={})
    fetch(store, target, place, on_progress=lambda done: None, should_stop=lambda: False)
    assert place.read_bytes() == BIG
