"""A folder says when something came into it: nobody waits for the next look.

In a store only the timestamp counts: it is replaced last. A file counts when whoever wrote it has closed or renamed
it. Where the file system tells nothing (a network share, a user who has no inotify instances left), polling goes on.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote, urlsplit

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

TIMESTAMP = "metadata/timestamp.json"
ENDING_S = 0.5  # the event loop waits so long for the observer's threads; they end with the process at the latest

log = logging.getLogger("edge-agent")


class Arrival(FileSystemEventHandler):
    """Calls when a file with such a name is whole."""

    def __init__(self, pattern: str, wake: Callable[[], object]) -> None:
        self.pattern = pattern
        self.wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        """One change in the folder; from a thread of the observer's."""
        names = [Path(str(path)).name for path in (event.src_path, event.dest_path) if path]
        if event.event_type in {"moved", "closed"} and any(fnmatch(name, self.pattern) for name in names):
            self.wake()


@contextmanager
def watched(url: str, wake: Callable[[], object], what: str = TIMESTAMP) -> Iterator[None]:
    """Calls `wake` when `what` comes below `url`, while that is a folder that can be watched."""
    parts = urlsplit(url)
    path = Path(unquote(parts.path)) / what
    folder = path.parent
    if parts.scheme != "file" or not folder.is_dir():
        yield
        return
    arrival = Arrival(path.name, wake)
    try:
        observer = Observer()
        observer.schedule(arrival, str(folder))
        observer.start()
    except OSError as error:
        log.warning("step=watch outcome=polling reason=%s: cannot be watched (%s)", folder, error)
        yield
        return
    try:
        yield
    finally:
        arrival.wake = lambda: None  # an event that is under way finds nobody
        ending = threading.Thread(target=observer.stop, name="end of watch", daemon=True)
        ending.start()
        ending.join(ENDING_S)
