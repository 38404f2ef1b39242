"""A folder that serves as a store tells of publications."""

import threading

from agent.adapters.folder_watch import watched
from agent.adapters.store import open_store


def test_a_publication_is_noticed_at_once(tmp_path):
    """The new timestamp wakes; what is written before it does not."""
    store = open_store(f"file://{tmp_path}")
    store.write("metadata/1.root.json", b"{}")
    woken = threading.Event()
    with watched(f"file://{tmp_path}", woken.set):
        store.write("metadata/2.snapshot.json", b"{}")
        assert not woken.is_set()
        store.write("metadata/timestamp.json", b"{}")
        assert woken.wait(10)


def test_what_is_no_folder_is_left_to_polling(tmp_path):
    """A bucket, or a folder that is not there, is no error."""
    for url in ("s3://models", f"file://{tmp_path}/absent"):
        with watched(url, lambda: None):
            pass
