"""Exported files come in: one that `edge-agent import` names, or whatever is copied into the import folder.

A file takes the store's place until everything wanted lies on this device; what it says is believed as little as a
store is. A file of the folder that was tried is not tried again before it changes, or the agent starts anew.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.adapters.archive import ArchiveStore
from agent.adapters.folder_watch import watched
from agent.adapters.ledger import Ledger
from agent.adapters.source import Source
from agent.core.errors import EdgeError, TransferError
from agent.core.records import Rejection, ReleaseRecord
from agent.core.slot import SlotRecord
from agent.daemon.board import Board
from agent.daemon.intake import Intake
from agent.daemon.news import News
from agent.daemon.reconcile import Reconciler

ENDING = "*.zip"
LOOK_S = 30.0  # a stick that is mounted there, and a folder that is made later, wake nobody
TRIES = 2  # of a release: the first may have begun before the import


@dataclass(eq=False)
class Imports:
    """Takes files, one at a time; from `folder` by itself."""

    folder: str | None
    source: Source
    intake: Intake
    ledger: Ledger
    news: News
    reconcilers: Mapping[str, Reconciler]
    changed: Board[None]
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tried: set[tuple[Path, int]] = field(default_factory=set)

    async def run(self) -> None:
        """Take what lies in the folder and what comes into it, until cancelled."""
        if self.folder is None:
            return
        folder, came = Path(self.folder), asyncio.Event()
        with watched(folder.as_uri(), lambda: self.news.post(came.set), ENDING):
            while True:
                came.clear()
                for path in await asyncio.to_thread(self._untried, folder):
                    try:
                        await self.take(path)
                    except EdgeError as error:
                        self.intake.refuse(f"import of {path.name}", str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await came.wait()

    def _untried(self, folder: Path) -> list[Path]:
        """The files in the folder as they are now and were not yet; they count as tried."""
        marks = {(path, path.lstat().st_mtime_ns) for path in folder.glob(ENDING)} - self._tried
        self._tried |= marks
        return sorted(path for path, _ in marks)

    async def take(self, path: Path) -> None:
        """What the file says and holds; returns when everything that is wanted lies here.

        Raises:
            EdgeError: why not.
        """
        async with self._one:
            known = self.intake.store
            self.source.carried = await asyncio.to_thread(ArchiveStore, path)
            try:
                await self.intake.poll()
                for reconciler in self.reconcilers.values():
                    reconciler.retry()
                self.intake.publish(self.ledger.all("slot", SlotRecord))
                await self._fetched()
            except EdgeError:
                self.intake.store = known  # what a file says does not worsen what is known of the store
                raise
            finally:
                self.source.carried = None
            self.news.tell("imported", reason=str(path))

    async def _fetched(self) -> None:
        """Return when no slot waits for a release any more; raises TransferError when one cannot be had."""
        async for _ in self.changed.changes():
            wanted = {slot: one.desired for slot, one in self.ledger.all("slot", SlotRecord).items() if one.desired}
            missing = {slot: ref for slot, ref in wanted.items() if not self._is_here(ref.digest)}
            if not missing:
                return
            for slot, ref in missing.items():
                reconciler = self.reconcilers.get(slot)
                if reconciler is not None and reconciler.tries[ref] >= TRIES:
                    raise TransferError(f"{ref.name}: {reconciler.view.reason}")

    def _is_here(self, digest: str) -> bool:
        get = self.ledger.get
        return bool(get("release", digest, ReleaseRecord) or get("rejection", digest, Rejection))
