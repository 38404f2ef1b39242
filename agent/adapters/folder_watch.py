"""A store in a folder says when something was published into it: nobody waits for the next poll.

Only the timestamp counts: it is replaced last. Where the file system tells nothing (a network share, a user who has no
inotify instances left), polling goes on.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

TIMESTAMP = "timestamp.json"
ENDING_S = 0.5  # the event loop waits so long for the observer's threads; they end with the process at the latest

log = logging.getLogger("edge-agent")


class Publication(FileSystemEventHandler):
    """Calls when a new timestamp lies there."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        """One change in the folder; from a thread of the observer's."""
        if event.event_type in {"moved", "created", "modified"} and TIMESTAMP in {
            Path(str(path)).name for path in (event.src_path, event.dest_path) if path
        }:
            self.wake()


@contextmanager
def watched(url: str, wake: Callable[[], object]) -> Iterator[None]:
    """Calls `wake` at each publication while the store at `url` is a folder that can be watched."""
    parts = urlsplit(url)
    folder = Path(unquote(parts.path)) / "metadata"
    if parts.scheme != "file" or not folder.is_dir():
        yield
        return
    publication = Publication(wake)
    try:
        observer = Observer()
        observer.schedule(publication, str(folder))
        observer.start()
    except OSError as error:
        log.warning("step=watch outcome=polling reason=%s: cannot be watched (%s)", folder, error)
        yield
        return
    try:
        yield
    finally:
        publication.wake = lambda: None  # an event that is under way finds nobody
        ending = threading.Thread(target=observer.stop, name="end of watch", daemon=True)
        ending.start()
        ending.join(ENDING_S)
