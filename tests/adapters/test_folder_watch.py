"""A folder that serves as a store tells of publications."""

import errno
import threading
import time

from watchdog.observers import Observer

from agent.adapters import folder_watch
from agent.adapters.folder_watch import watched
from fleet.stores import open_store
from tests.fakes.waiting import PATIENCE


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


class Exhausted(Observer):
    """As Linux answers a user whose inotify instances are all in use."""

    def schedule(self, *args, **options):
        raise OSError(errno.EMFILE, "inotify instance limit reached")


class Hung(Observer):
    """One whose threads do not end."""

    def stop(self):
        threading.Event().wait()


def test_without_inotify_the_folder_is_left_to_polling(tmp_path, monkeypatch, caplog):
    """No instance is left for this user: the store is polled, and one line says so."""
    (tmp_path / "metadata").mkdir()
    monkeypatch.setattr(folder_watch, "Observer", Exhausted)
    with watched(f"file://{tmp_path}", lambda: None):
        pass
    assert [record.message.count("limit reached") for record in caplog.records] == [1]


def test_the_end_of_a_watch_holds_nobody_up(tmp_path, monkeypatch):
    """An observer that does not stop is left behind."""
    (tmp_path / "metadata").mkdir()
    monkeypatch.setattr(folder_watch, "Observer", Hung)
    began = time.monotonic()
    with watched(f"file://{tmp_path}", lambda: None):
        pass
    assert time.monotonic() - began < 5 * PATIENCE
