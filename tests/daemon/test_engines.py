"""Engines on a device's disk: sealed for it alone, never in the way, and gone when they are of no use."""

import hashlib
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.adapters import files, memory_file
from agent.core import plan
from agent.core.candidate import Backend, Candidate, Found
from agent.core.errors import BackendError, Kind, TransferError
from agent.core.messages import Done, Load, Offer, Place, Seal, engine_of
from agent.core.records import Device
from agent.core.release import Ref
from agent.daemon.engines import Engines
from agent.daemon.keyring import Keyring
from agent.daemon.steps import Success
from agent.trust.grant import CURVE
from provisioning.keys import PRIVATE, private_pem, write_new
from tests.daemon.test_deltas import shelf  # noqa: F401  a fixture
from tests.fakes.descriptors import held

GPU = Candidate(backend=Backend.TENSORRT, precision="fp16")
CPU = Candidate(backend=Backend.OPENVINO, threads=2)
MINE = "kept-engine"  # the name of memory files here, and nowhere else
ENGINE = np.random.default_rng(5).bytes(300_000)
OTHER = np.random.default_rng(6).bytes(200_000)
DEVICE = Device(
    found=tuple(Found(backend=one.backend, present=True, version="1") for one in (GPU, CPU)), cores=2, power_mode="15W"
)


def place(day=28, candidate=CPU):
    name = f"defect_detection_ssd_plates_202506{day}"
    return Place(ref=Ref(name=name, digest=hashlib.sha256(name.encode()).hexdigest()), candidate=candidate)


PLACE = place()


class Runner:
    """Takes engines, and shows which a seat would get at each Load; `refuses` says what it does not do."""

    def __init__(self):
        self.loads, self.offered, self.held = [], None, []
        self.refuses = lambda order, held: None

    async def ask(self, order):
        error = self.refuses(order, self.held)
        if isinstance(order, Load):
            self.loads.append(self.held)
            self.held = []
        if error is not None:
            raise error
        if isinstance(order, Offer):
            (part,) = order.parts
            self.offered = os.fdopen(memory_file.reserve(MINE, part.size), "rb")
            return Done(), [os.dup(self.offered.fileno())]
        if isinstance(order, Seal):
            with self.offered as file:
                self.held = [file.read()]
        return Done(), []


def memory_files():
    """How many of those that only this file and test_trials.py make this process has open."""
    return held(os.getpid(), f"memfd:{MINE}")


class Disk:
    """A device's engines."""

    def __init__(self, folder):
        self.folder, self.runner, self.room = folder / "engines", Runner(), float("inf")
        write_new(folder / "device.key", private_pem(ec.generate_private_key(CURVE)), PRIVATE)
        keyring = Keyring(folder / "device.key", "cam-7", "g1", SimpleNamespace())
        self.engines = Engines(self.folder, keyring, self.runner)

    def keep(self, where=PLACE, content=ENGINE, device=DEVICE):
        number = memory_file.reserve(MINE, len(content))
        memory_file.write(number, content)
        self.engines.keep(where, device, [number], self.room)
        assert memory_files() == 0, "descriptors are closed, whatever comes of it"

    async def lent(self, where=PLACE, device=DEVICE):
        """What comes along with each try to load a place."""
        self.runner.loads.clear()
        await self.engines.load(Load(slot="defect_detection", place=where), device)
        if self.runner.offered is not None:
            self.runner.offered.close()
        assert memory_files() == 0
        return [*self.runner.loads]

    def paths(self):
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


async def test_an_engine_comes_back_whole(disk):
    """What was kept is lent, to its own place alone; a later one takes its place."""
    disk.keep()
    assert await disk.lent() == [[ENGINE]]
    assert await disk.lent(place(candidate=GPU)) == [[]]
    assert await disk.lent(place(29)) == [[]]
    disk.keep(content=OTHER)
    assert await disk.lent() == [[OTHER]]
    assert len(disk.paths()) == 1


@pytest.mark.parametrize("device", ["GPU", "GPU.1", "NPU"])
async def test_an_engine_of_another_processor_comes_back_too(disk, device):
    """A candidate's device is part of what it is called."""
    there = place(candidate=Candidate(backend=Backend.OPENVINO, precision="fp16", device=device))
    disk.keep(there)
    assert await disk.lent() == [[]]
    assert await disk.lent(there) == [[ENGINE]]


def test_an_engine_is_sealed_on_the_disk(disk):
    """No piece of it is in any file."""
    disk.keep(content=bytes(100_000) + ENGINE)
    (path,) = disk.paths()
    found = path.read_bytes()
    assert not any(ENGINE[at : at + 32] in found for at in range(0, len(ENGINE), 32))
    assert path.stat().st_mode & 0o777 == 0o640


def flip(at):
    def spoil(path):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return spoil


SPOILT = {
    "its salt": flip(0),
    "its header": flip(60),
    "its middle": flip(150_000),
    "its end": flip(-1),
    "cut": lambda path: os.truncate(path, 150_000),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
async def test_a_changed_engine_never_reaches_a_seat(disk, spoil):
    """It is loaded without one, and the file is gone; the release is not to blame."""
    disk.keep()
    spoil(disk.paths()[0])
    assert await disk.lent() == [[]]
    assert disk.paths() == []


@pytest.mark.parametrize(
    ("where", "device"),
    [
        (PLACE, Device(found=(Found(backend=CPU.backend, present=True, version="2"),), cores=2, power_mode="15W")),
        (PLACE, Device(found=DEVICE.found, cores=2, power_mode="30W")),
        (Place(ref=Ref(name=PLACE.ref.name, digest="f" * 64), candidate=CPU), DEVICE),
    ],
    ids=["another runtime", "another power mode", "another release of that name"],
)
async def test_an_engine_of_another_key_is_never_lent(disk, where, device):
    """What was built by another runtime or driver, in another power mode, or of other bytes, is removed."""
    disk.keep()
    assert await disk.lent(where, device) == [[]]
    assert disk.paths() == []


async def test_engines_that_changed_places_are_never_lent(disk):
    """Whoever may write to the disk cannot give one candidate or release the engine of another."""
    disk.keep()
    disk.keep(place(candidate=GPU), OTHER)
    disk.keep(place(29), OTHER)
    one, two, three = disk.paths()
    for path in (two, three):
        shutil.copyfile(one, path)
    lent = [await disk.lent(where) for where in (place(candidate=GPU), place(29))]
    assert lent == [[[]], [[]]]
    assert await disk.lent() == [[ENGINE]]


async def test_another_device_cannot_open_it(disk, tmp_path):
    """Nor can this one after it was enrolled anew: the key follows from its own."""
    disk.keep()
    (tmp_path / "other").mkdir()
    other = Disk(tmp_path / "other")
    shutil.copytree(disk.folder, other.folder)
    assert await other.lent() == [[]]


# --- it is only a cache ----------------------------------------------------------------------------------------


async def test_a_full_disk_keeps_none(disk, monkeypatch):
    """Where the reserve would be touched nothing is written, and nothing fails."""
    monkeypatch.setattr(files, "free_bytes", lambda path: 64 * 1024 * 1024)
    disk.keep()
    assert disk.paths() == []
    assert await disk.lent() == [[]]


def test_a_disk_that_refuses_keeps_none(disk):
    """A folder that cannot be made is a line in the log."""
    disk.folder.write_text("in the way")
    disk.keep()


async def test_the_quota_keeps_the_newest(disk):
    """The older one goes for the newer; one that is larger than all the room leaves the others alone."""
    disk.room = len(ENGINE) + 50_000.0
    disk.keep()
    disk.keep(place(29), OTHER)
    assert (await disk.lent(), await disk.lent(place(29))) == ([[]], [[OTHER]])
    disk.keep(content=ENGINE * 2)
    assert (await disk.lent(), await disk.lent(place(29))) == ([[]], [[OTHER]])


async def test_an_engine_that_ends_its_seat_is_given_up(disk):
    """A seat that dies of it is no miss of the candidate: it is loaded again, without."""
    disk.keep()
    crash = BackendError("the seat was killed by SIGSEGV")
    disk.runner.refuses = lambda order, held: crash if isinstance(order, Load) and held else None
    assert await disk.lent() == [[ENGINE], []]
    assert disk.paths() == []


async def test_a_candidate_that_fails_without_its_engine_fails(disk):
    """The second try counts."""
    disk.keep()
    disk.runner.refuses = lambda order, held: BackendError("no") if isinstance(order, Load) else None
    with pytest.raises(BackendError, match="no"):
        await disk.engines.load(Load(slot="defect_detection", place=PLACE), DEVICE)


@pytest.mark.parametrize("error", [BackendError("its parts are ['engine']", Kind.STRUCTURE), TransferError("gone")])
async def test_a_runner_that_takes_no_engine_loads_without(disk, error):
    """One of an older version, one without memory: the engine is kept for another time."""
    disk.keep()
    disk.runner.refuses = lambda order, held: error if isinstance(order, Offer) else None
    assert await disk.lent() == [[]]
    assert len(disk.paths()) == 1


# --- with the releases -----------------------------------------------------------------------------------------


def kept(shelf, ref):  # noqa: F811
    path = shelf.folder / "models" / "engines" / f"{ref.name}.sealed.{engine_of(CPU)}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"sealed")
    return path


async def test_engines_go_with_their_release(shelf):  # noqa: F811
    """Those of a deleted release are deleted; at a start, those of a release that nobody knows."""
    mine = kept(shelf, shelf.old)
    stray = kept(shelf, Ref(name="face_detection_retinaface_widerface_20240101", digest="c" * 64))
    shelf.copies.free_of_strays()
    assert (mine.exists(), stray.exists()) == (True, False)
    assert await shelf.do(plan.Delete(shelf.old)) == Success()
    assert not mine.exists()


@pytest.mark.parametrize("tight", ["quota", "disk"])
async def test_engines_make_room_for_a_release(shelf, monkeypatch, tight):  # noqa: F811
    """A release that would not fit beside them is fetched all the same."""
    shelf.publish()
    mine = kept(shelf, shelf.old)
    if tight == "quota":
        shelf.copies.quota_mb = (shelf.path(shelf.old).stat().st_size + shelf.whole.length + 5) / 1e6
    else:
        monkeypatch.setattr(files, "free_bytes", lambda path: 64 * 1024 * 1024 + shelf.whole.length - mine.exists())
    assert isinstance(await shelf.fetch(), Success)
    assert not mine.exists()
