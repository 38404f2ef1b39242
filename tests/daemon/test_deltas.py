"""A device that holds the release before takes the next one by delta; and whole, whatever is wrong with the delta."""

import asyncio
import hashlib
import operator
import threading
from dataclasses import replace

import numpy as np
import pytest

import fleet.publish
from agent.adapters import files
from agent.adapters.ledger import Ledger
from agent.adapters.source import Source
from agent.adapters.store import Download, FileStore
from agent.core import plan
from agent.core.candidate import Backend, Found
from agent.core.errors import TransferError
from agent.core.records import Device, ReleaseRecord
from agent.core.slot import SlotRecord
from agent.daemon import copies, deltas
from agent.daemon.copies import Copies
from agent.daemon.engines import Engines
from agent.daemon.keyring import Keyring
from agent.daemon.steps import Later, Steps, Success
from agent.trust.listing import delta_path
from fleet.publish import describe, newest_publics, publish
from provisioning.enrol import enrol, grant_key
from tests.fakes.waiting import until
from tests.fleet.desk import NEW, NOW, OLD, Desk, checked
from tests.fleet.test_delta import model, noise

STEP = 5_000  # bytes that the line brings at a time
SLOT = "face_detection"
DEVICE = Device(found=(Found(backend=Backend.CPU, present=True, version="1"),), cores=2, power_mode="")
OLDER = {f"layer{index}": np.random.default_rng(index).normal(size=20_000).astype("<f4") for index in range(10)}
NEWER = OLDER | {"layer9": noise(OLDER["layer9"])}


def sound(name, weights):
    """A release whose documents a device believes."""
    plain = checked(name, weights=weights)
    return replace(plain, metadata=plain.metadata.replace(b'"1.0"', f'"{name[-8:]}"'.encode()))


class Line(FileStore):
    """A folder that counts what is taken from it, and is cut after `limit` bytes."""

    taken, limit = 0, 1 << 40

    def stream(self, key, start=0, etag=None):
        found = super().stream(key, start, etag)
        return replace(found, pieces=self._counted(found)) if isinstance(found, Download) else found

    def _counted(self, found):
        for piece in found.pieces:
            for at in range(0, len(piece), STEP):
                if self.limit <= 0:
                    raise TransferError("the line was cut: wait")
                step = piece[at : at + STEP]
                self.taken += len(step)
                self.limit -= len(step)
                yield step


class Shelf:
    """The part of a device that stores releases, and has stored and verified the older one."""

    def __init__(self, desk, tmp_path):
        self.desk, self.folder = desk, tmp_path / "device"
        publics = newest_publics(desk.keyring, ["g1"])
        self.older = sound(OLD, model(OLDER))
        self.old = publish(desk.repository, self.older, publics, now=NOW)
        self.publics = publics
        enrol(desk.store, desk.keyring, "cam-7", "g1", tmp_path / "enrolled", settings={})
        self.ledger = Ledger(self.folder / "ledger.db")
        self.keyring = Keyring(tmp_path / "enrolled" / "device.key", "cam-7", "g1", self.ledger)
        self.line = Line(desk.store.root)
        self.start()

    def start(self):
        """An agent begins its life."""
        files.remove_temps(self.folder)
        self.trusted = self.desk.device()
        self.keyring.take(self.desk.store.read(grant_key("g1", "cam-7"), 1 << 16), self.trusted.targets)
        engines = Engines(self.folder / "models" / "engines", self.keyring, None)
        source = Source(self.line, None, {}, self.ledger)
        self.copies = Copies(self.folder / "models", source, self.ledger, self.keyring, engines, lambda: self.trusted)
        self.steps = Steps(self.copies, engines, self.ledger, None, lambda _: 1.0, threading.Lock())

    def publish(self, weights=None):
        """The newer release, with its delta; the device has seen the listing."""
        newer = sound(NEW, weights or model(NEWER))
        self.new = publish(self.desk.repository, newer, self.publics, bases=[self.older], now=NOW)
        self.trusted = self.desk.device()
        self.whole = self.trusted.find(f"releases/{NEW}.sealed")
        self.delta = self.trusted.find(delta_path(NEW, self.old.digest))
        self.line.taken = 0
        self.ledger.put("slot", SLOT, SlotRecord(slot=SLOT, deployed=self.new))

    async def do(self, step):
        return await self.steps.act(SLOT, step, DEVICE)

    async def fetch(self, ref=None):
        return await self.do(plan.Fetch(ref or self.new))

    def path(self, ref):
        return self.copies.path(ref)

    def names(self):
        return sorted(path.name for path in (self.folder / "models" / "weights").iterdir())

    async def holds_new(self):
        """Whether the newer release is here, whole and verified, and nothing else beside the older one."""
        verified = await self.do(plan.Verify(self.new))
        record = self.ledger.get("release", self.new.digest, ReleaseRecord)
        assert hashlib.sha256(self.path(self.new).read_bytes()).hexdigest() == self.new.digest
        return verified == Success() and record.verified and self.names() == [f"{OLD}.sealed", f"{NEW}.sealed"]


@pytest.fixture
async def shelf(tmp_path):
    one = Shelf(Desk(tmp_path), tmp_path)
    assert await one.fetch(one.old) == Success()
    assert await one.do(plan.Verify(one.old)) == Success()
    yield one
    one.ledger.close()


async def test_a_release_is_rebuilt_from_the_one_that_is_here(shelf):
    """A tenth of the bytes came, what was saved is told, and nothing is left beside it."""
    shelf.publish()
    outcome = await shelf.fetch()
    assert shelf.line.taken == shelf.delta.length < 0.1 * shelf.whole.length
    assert outcome.reason == (
        f"by delta from {OLD}: {shelf.delta.length:,} of {shelf.whole.length:,} bytes, "
        f"{shelf.whole.length - shelf.delta.length:,} saved"
    )
    assert await shelf.holds_new()


async def test_a_release_without_a_delta_comes_whole(shelf):
    """As ever, and without a word."""
    shelf.publish(weights=model({name: noise(array, 10) for name, array in OLDER.items()}))
    assert shelf.delta is None
    assert await shelf.fetch() == Success()
    assert shelf.line.taken == shelf.whole.length


@pytest.mark.parametrize("last", ["fetch", "Copies._record"])
async def test_what_comes_too_late_is_removed(shelf, monkeypatch, last):
    """The last byte came or is written down, and another release is wanted by then: neither file nor record stays."""
    came, gone = threading.Event(), threading.Event()
    work = operator.attrgetter(last)(copies)

    def late(*args, **named):
        work(*args, **named)
        came.set()
        gone.wait(10)

    monkeypatch.setattr(f"agent.daemon.copies.{last}", late)
    shelf.publish(weights=model({name: noise(array, 10) for name, array in OLDER.items()}))
    fetching = asyncio.create_task(shelf.fetch())
    await asyncio.to_thread(came.wait, 10)
    assert f"{NEW}.sealed" in shelf.names()
    shelf.ledger.put("slot", SLOT, SlotRecord(slot=SLOT, deployed=shelf.old))
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    gone.set()
    await asyncio.to_thread(until, lambda: shelf.names() == [f"{OLD}.sealed"], 10)
    assert shelf.ledger.get("release", shelf.new.digest, ReleaseRecord) is None


async def test_a_device_without_the_base_takes_it_whole(shelf):
    """A delta from what is not here, or was never verified, is of no use."""
    record = shelf.ledger.get("release", shelf.old.digest, ReleaseRecord)
    shelf.ledger.put("release", shelf.old.digest, ReleaseRecord(ref=shelf.old, listing=record.listing))
    shelf.publish()
    assert await shelf.fetch() == Success()
    assert shelf.line.taken == shelf.whole.length


async def test_a_base_whose_file_is_gone_is_noticed_and_the_release_comes_whole(shelf):
    """At the next look: the ledger knows better then."""
    shelf.publish()
    shelf.path(shelf.old).unlink()
    assert isinstance(await shelf.fetch(), Later)
    assert await shelf.fetch() == Success()
    assert shelf.line.taken == shelf.delta.length + shelf.whole.length
    assert shelf.names() == [f"{NEW}.sealed"]


# --- what is wrong with a delta --------------------------------------------------------------------------------


def lost(shelf):
    (shelf.desk.store.root / shelf.delta.key).unlink()


def spoilt(shelf):
    path = shelf.desk.store.root / shelf.delta.key
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def base_damaged(shelf):
    path = shelf.path(shelf.old)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_format(shelf):
    listed = shelf.desk.repository.find(shelf.delta.path)
    listed.unrecognized_fields["custom"]["fmt"] = "cob256+zstd+delta/v9"
    shelf.desk.repository.relist(listed)
    shelf.desk.repository.publish(NOW)
    shelf.trusted = shelf.desk.device()


def of_another_zstd(shelf):
    listed = shelf.desk.repository.find(shelf.delta.path)
    listed.unrecognized_fields["custom"]["zstd"] = "9.9.9"
    shelf.desk.repository.relist(listed)
    shelf.desk.repository.publish(NOW)
    shelf.trusted = shelf.desk.device()
    shelf.delta = shelf.trusted.find(shelf.delta.path)


def listed_without_digest(shelf):
    listed = shelf.desk.repository.find(shelf.delta.path)
    listed.hashes["sha512"] = listed.hashes.pop("sha256")
    shelf.desk.repository.relist(listed)
    shelf.desk.repository.publish(NOW)
    shelf.trusted = shelf.desk.device()


FAULTS = {
    "lost in the store": (lost, "no such file"),
    "changed in the store": (spoilt, "is signed: look at the store"),
    "of another format": (of_another_format, "Invalid enum value"),
    "made with another zstd": (of_another_zstd, "made with zstd 9.9.9"),
    "listed without a digest": (listed_without_digest, "listed without a SHA-256"),
    "with a base that was damaged here": (base_damaged, "does not open"),
}


@pytest.mark.parametrize("case", FAULTS)
async def test_a_delta_that_fails_is_told_and_the_release_comes_whole(shelf, case):
    """At once; nothing of the delta stays."""
    spoil, words = FAULTS[case]
    shelf.publish()
    spoil(shelf)
    outcome = await shelf.fetch()
    assert isinstance(outcome, Success)
    assert outcome.reason.startswith("whole, because its delta failed: ")
    assert words in outcome.reason
    assert await shelf.holds_new()


def with_other(new=None, old=None, residual=None):
    """`make` of an insider who lies of what leads where."""
    make = fleet.publish.make

    def lying(mine, base, *rest):
        made = make(other(mine, new or {}), other(base, old or {}), *rest)
        if residual:
            made["model.onnx"].write_bytes(residual(made["model.onnx"].read_bytes()))
        return made

    return lying


def other(release, contents):
    """The same release with other octets of the same number in some parts."""
    contents = {name: contents.get(name, lambda same: same)(content) for name, content in release.contents.items()}
    return replace(release, contents=contents, parts=[describe(name, content) for name, content in contents.items()])


LIES = {
    "another base": ({"old": {"model.onnx": lambda whole: whole[:-1] + b"x"}}, "made from another base"),
    "another result": ({"residual": lambda whole: whole[:-1] + b"x"}, "is not what it declares"),
    "other documents": (
        {"new": {"metadata.json": lambda whole: whole.replace(b"20250628", b"20250627")}},
        "not the release that was signed",
    ),
    "more than was signed": ({"new": {"config.yaml": lambda whole: whole + b"#"}}, "signed listing says"),
}


@pytest.mark.parametrize("case", LIES)
async def test_a_delta_that_was_signed_and_lies_is_no_reason_to_reject_the_release(shelf, monkeypatch, case):
    """An insider's delta costs its bytes and nothing else."""
    lie, words = LIES[case]
    monkeypatch.setattr(fleet.publish, "make", with_other(**lie))
    shelf.publish()
    outcome = await shelf.fetch()
    assert words in outcome.reason
    assert shelf.line.taken == shelf.delta.length + shelf.whole.length
    assert await shelf.holds_new()


# --- the line and the disk -------------------------------------------------------------------------------------


async def test_a_cut_line_is_no_fault_of_the_delta(shelf):
    """It goes on where it stopped, also in the next life of the agent."""
    shelf.publish()
    shelf.line.limit = shelf.delta.length // 2
    assert isinstance(await shelf.fetch(), Later)
    shelf.line.limit = 1 << 40
    shelf.start()
    assert "by delta" in (await shelf.fetch()).reason
    assert shelf.line.taken <= shelf.delta.length + STEP
    assert await shelf.holds_new()


async def test_a_delta_that_failed_is_not_fetched_again(shelf):
    """The line is cut while the release comes whole: that goes on, and the reason is not forgotten."""
    shelf.publish()
    spoilt(shelf)
    shelf.line.limit = shelf.delta.length + shelf.whole.length // 2
    assert isinstance(await shelf.fetch(), Later)
    shelf.line.limit = 1 << 40
    assert "whole, because its delta failed" in (await shelf.fetch()).reason
    assert shelf.line.taken <= shelf.delta.length + shelf.whole.length + STEP


async def test_without_room_for_delta_and_result_it_comes_whole(shelf, monkeypatch):
    """The numbers are told before the first byte of the delta."""
    shelf.publish()
    free = shelf.whole.length + 64 * 1024 * 1024
    monkeypatch.setattr(files, "free_bytes", lambda _: free)
    outcome = await shelf.fetch()
    assert "stay in reserve" in outcome.reason
    assert shelf.line.taken == shelf.whole.length
    assert await shelf.holds_new()


@pytest.mark.parametrize("moment", ["while it is rebuilt", "before it has its name", "before it is known"])
async def test_a_kill_leaves_nothing_that_is_taken_for_the_release(shelf, monkeypatch, moment):
    """The next life of the agent rebuilds it, out of the delta that came."""
    shelf.publish()
    with monkeypatch.context() as patch:
        kill_at(patch, moment)
        with pytest.raises(Killed):
            await shelf.fetch()
    assert shelf.ledger.get("release", shelf.new.digest, ReleaseRecord) is None
    shelf.start()
    assert "by delta" in (await shelf.fetch()).reason
    assert await shelf.holds_new()


class Killed(BaseException):
    """The process ends here."""


def kill_at(patch, moment):
    rebuild = deltas.rebuild

    def killed(*_, **__):
        raise Killed

    def half(*given):
        yield next(rebuild(*given))
        raise Killed

    places = {
        "while it is rebuilt": (deltas, "rebuild", half),
        "before it has its name": (files, "sync_folder", killed),
        "before it is known": (Copies, "_record", killed),
    }
    patch.setattr(*places[moment])
