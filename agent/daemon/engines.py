"""Engines: what a backend built of a release for this device, kept so that it need not be built at every start.

1. An engine holds the weights. On the disk it lies sealed as a whole, as a release does, under a key that this device
   alone has; the context binds it to release, candidate and evidence key, so that none is opened for another.
2. It is a cache. What does not open, changed or sealed under another evidence key, is removed; where the disk or a
   quota has no room none is kept; nothing that goes wrong here is more than a line in the log.
3. Engines make room for releases, and go with their own.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.adapters import files
from agent.adapters.fetch import require_room
from agent.adapters.packets import close_all
from agent.core.errors import BackendError, EdgeError, TransferError, TrustError
from agent.core.messages import Load, Offer, Place, Seal, engine_of
from agent.core.records import Device
from agent.daemon.keyring import Keyring, pieces
from agent.daemon.runner_link import RunnerLink, announced, pour
from agent.trust.sealing import Opener, SealedPart, seal

log = logging.getLogger("edge-agent")


@dataclass(eq=False)
class Engines:
    """The engines on this disk."""

    folder: Path
    keyring: Keyring
    runner: RunnerLink

    async def load(self, order: Load, device: Device) -> str:
        """Load a place whose release is held, with its engine where one is kept; what was done, in words."""
        is_lent = await self._lend(order.place, device)
        try:
            await self.runner.ask(order)
        except BackendError as error:  # a seat builds anew what it cannot take; here the engine may have ended the seat
            if not is_lent:
                raise
            self.give_up(order.place, str(error))
            await self.runner.ask(order)
        return "its engine was kept here" if is_lent else ""

    async def _lend(self, place: Place, device: Device) -> bool:
        """Hand the engine of a place over, where one is kept for this device as it is."""
        try:
            opener = await asyncio.to_thread(self._opener, place, device)
            if opener is None:
                return False
            _, received = await self.runner.ask(Offer(ref=place.ref, parts=announced(opener)))
            await asyncio.to_thread(pour, opener, received)
            await self.runner.ask(Seal(ref=place.ref))
        except TrustError as error:
            self.give_up(place, str(error))
            return False
        except (BackendError, TransferError) as error:  # no memory now, or a runner that knows no engines
            log.warning("release=%s step=engine outcome=not lent reason=%s", place, error)
            return False
        return True

    def _opener(self, place: Place, device: Device) -> Opener | None:
        path = self._path(place)
        return Opener(self.keyring.engine_key(), bound(place, device), pieces(path), None) if path.is_file() else None

    def keep(self, place: Place, device: Device, built: list[int], room: float) -> None:
        """Seal what was built, where it takes no more than `room` bytes; its descriptors are closed here."""
        try:
            for number in built:
                self._keep(place, device, Path(f"/proc/self/fd/{number}"), room)
        except (EdgeError, OSError) as error:
            log.warning("release=%s step=engine outcome=not kept reason=%s", place, error)
        finally:
            close_all(built)

    def _keep(self, place: Place, device: Device, built: Path, room: float) -> None:
        path, size = self._path(place), built.stat().st_size
        if size > room:
            raise TransferError(f"quota_mb in agent.yaml leaves {room / 1e6:.1f} MB for its {size / 1e6:.1f} MB")
        self.fit(room - size)
        require_room(path, size, size)
        part = SealedPart(name=engine_of(place.candidate), size=size, sha256=files.digest_of(built))
        sealed = seal(self.keyring.engine_key(), bound(place, device), [part], [pieces(built)])
        files.write_durably(path, sealed)
        log.info("release=%s step=engine outcome=kept reason=%.1f MB", place, size / 1e6)

    def give_up(self, place: Place, reason: str) -> None:
        """Remove an engine that is of no use; it is built anew."""
        log.warning("release=%s step=engine outcome=removed reason=%s", place, reason)
        with suppress(OSError):  # a disk that can only be read: it is refused again next time
            self._path(place).unlink(missing_ok=True)

    def fit(self, room: float) -> None:
        """Keep the newest that take no more than `room` bytes."""
        with suppress(OSError):  # another slot does the same
            for path in sorted(self.folder.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True):
                room -= path.stat().st_size
                if room < 0:
                    path.unlink(missing_ok=True)

    def _path(self, place: Place) -> Path:
        return self.folder / f"{place.ref.name}.sealed.{engine_of(place.candidate)}"


def bound(place: Place, device: Device) -> str:
    """What an engine is sealed for."""
    return f"engines/{place.ref.digest}/{place.candidate}/{device.key(place.candidate)}"
