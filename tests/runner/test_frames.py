"""Clients at the frames' socket that lie, leave in the middle, or talk nonsense: their own trouble alone."""

import asyncio
import json
import os
import random
import re
import socket
from contextlib import closing

import numpy as np
import psutil
import pytest
from msgspec.structs import replace

from agent.adapters import memory_file
from agent.adapters.arena import Arena
from agent.adapters.channel import Channel
from agent.adapters.packets import close_all
from agent.core import messages
from agent.core.documents import from_json, from_yaml
from agent.core.errors import InputError
from agent.core.messages import Denied, FromRunner, Infer, Inferred, LaneOpen, SeatRun, Slice
from agent.core.release import Config, Metadata
from agent.runner import seat as seat_module
from agent.runner.open_inference import check_request
from tests.fakes.descriptors import held
from tests.runner.conftest import SHAPE, eventually, release

SIZE = 4 * 192


class Camera:
    """A client with one lane that says whatever a test wants."""

    def __init__(self, shared):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(shared.door.with_name("frames.sock")))
        self.channel = Channel(sock, FromRunner)
        self.files = memory_file.arena("guests-frame", 65536), memory_file.arena("guests-answer", 65536)

    def open(self, number=0, files=None):
        self.channel.send(LaneOpen(lane=number), self.files if files is None else files)

    async def said(self):
        async with asyncio.timeout(30):
            received = await self.channel.receive()
        return received and received[0]

    async def ask(self, slot, x=None, lane=0, **lies):
        if x is not None:
            memory_file.write(self.files[0], x.tobytes())
        told = {"name": "x", "shape": SHAPE, "dtype": "float32", "offset": 0, "size": SIZE} | lies
        self.channel.send(Infer(slot=slot, lane=lane, inputs=(Slice(**told),)))
        return await self.said()

    def y(self):
        return np.frombuffer(memory_file.read(self.files[1])[:SIZE], np.float32).reshape(SHAPE)

    def close(self):
        self.channel.close()
        close_all(self.files)


@pytest.fixture
def guest(shared):
    with closing(Camera(shared)) as one:
        yield one


async def test_a_frame_is_computed_where_it_lies(guest, served, x):
    """Input and answer pass through the client's own files."""
    guest.open()
    answer = await guest.ask(served, x)
    assert isinstance(answer, Inferred), answer
    np.testing.assert_array_equal(guest.y(), x * 2)


async def test_a_client_of_a_later_version_is_answered(guest, served, x):
    """What it says besides, in fields that this runner does not know, is left alone."""
    memory_file.write(guest.files[0], x.tobytes())
    lane = b'{"type":"LaneOpen","lane":0,"colour":"red"}'
    socket.send_fds(guest.channel.sock, [lane], list(guest.files))
    tensor = {"name": "x", "shape": SHAPE, "dtype": "float32", "offset": 0, "size": SIZE, "stride": 4}
    ask = {"type": "Infer", "slot": served, "lane": 0, "inputs": [tensor], "until": 12.5}
    guest.channel.sock.send(json.dumps(ask).encode())
    assert isinstance(await guest.said(), Inferred)
    np.testing.assert_array_equal(guest.y(), x * 2)


@pytest.mark.parametrize(
    "lies",
    [
        {"offset": 65536}, {"offset": 65536 - SIZE + 4}, {"offset": 2**39}, {"size": SIZE + 4}, {"size": 0},
        {"dtype": "float64"}, {"dtype": "object"}, {"dtype": "O8"}, {"dtype": ""}, {"shape": (1, 3, 8, 9)},
        {"shape": ()}, {"shape": (2**40,) * 4}, {"name": "y"},
    ],
)  # fmt: skip
async def test_a_lie_is_the_liars_trouble(guest, agent, served, x, lies):
    """Whatever is said of a tensor is held against the file; the seat never sees it, and the client goes on."""
    guest.open()
    answer = await guest.ask(served, x, **lies)
    assert isinstance(answer, Denied), answer
    assert (answer.blame, answer.lane) == ("client", 0)
    assert isinstance(await guest.ask(served, x, offset=4096), Inferred)  # a hole in the file is zeros
    assert np.all(guest.y() == 0)
    facts = await agent.ask(messages.Look())
    assert facts.slots[served].counters.errors == 0
    assert not facts.slots[served].incidents


async def test_an_input_without_a_name_is_told_as_the_input(guest, served, x):
    """The only input of a model needs no name, and what is wrong with it is told without one."""
    guest.open()
    for lies, said in (
        ({"size": SIZE + 4}, "the input: float32 [1, 3, 8, 8] takes"),
        ({"dtype": "O8"}, "the input: dtype"),
    ):
        assert (await guest.ask(served, x, name="", **lies)).reason.startswith(said)


def test_one_array_for_a_model_of_two_inputs_is_told_their_names():
    """Only an only input needs no name."""
    parts = release(1).parts
    metadata = from_json(Metadata, parts[messages.METADATA], "metadata")
    metadata = replace(metadata, inputs=(*metadata.inputs, replace(metadata.inputs[0], name="mask")))
    nameless = messages.Slice(name="", shape=SHAPE, dtype="float32", offset=0, size=SIZE)
    run = messages.SeatRun(lane=0, inputs=(nameless,))
    with pytest.raises(InputError, match=r"inputs are \['mask', 'x'\]; the request has one array without a name"):
        check_request(run, metadata, from_yaml(Config, parts[messages.CONFIG], "config"))


def unsealed(_):
    number = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(number, 4096)
    return number


def fixed(_):
    number = memory_file.reserve("fixed", 4096)
    memory_file.seal(number)
    return number


OTHERS = {
    "plain file": lambda folder: os.open(folder / "file", os.O_CREAT | os.O_RDWR),
    "null": lambda _: os.open("/dev/null", os.O_RDWR),
    "empty": lambda _: memory_file.arena("empty", 0),
    "for reading": lambda _: os.open(f"/proc/self/fd/{memory_file.arena('arena', 4096)}", os.O_RDONLY),
    "unsealed": unsealed,
    "fixed": fixed,
}


@pytest.mark.parametrize("kind", OTHERS)
async def test_files_that_could_hurt_a_seat_are_not_taken(shared, guest, tmp_path, kind):
    """Only memory files that may grow and can never shrink are mapped; the client is told, and cut off."""
    number = OTHERS[kind](tmp_path)
    guest.open()
    guest.open(number=1, files=(guest.files[0], number))
    denied = await guest.said()
    assert (denied.lane, denied.blame) == (-1, "client")
    assert "memory files" in denied.reason
    assert await guest.said() is None
    os.close(number)


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_lane_takes_two_files(guest, count):
    """Fewer or more are refused."""
    guest.open(files=guest.files[:1] * count)
    assert "two memory files" in (await guest.said()).reason


@pytest.mark.parametrize(
    "packet",
    [b"nonsense", b"{}", b'{"type":"Infer"}', b'{"type":"LaneOpen","lane":"x"}', b"\xff" * 1000, b"[" * 100_000, b"x" * 200_000,
     b'{"type":"Infer","slot":"a","lane":0,"inputs":[{"name":"x","shape":[-1],"dtype":"float32","offset":-4,"size":4}]}',
     b'{"type":"Infer","slot":"a","lane":7,"inputs":[]}'],
    ids=range(9),
)  # fmt: skip
async def test_nonsense_ends_the_connection_that_it_came_on(shared, guest, served, x, packet):
    """The client is told what was wrong; others do not notice."""
    guest.open()
    guest.channel.sock.send(packet)
    denied = await guest.said()
    assert (denied.lane, denied.blame) == (-1, "client")
    assert await guest.said() is None
    with closing(Camera(shared)) as other:
        other.open()
        assert isinstance(await other.ask(served, x), Inferred)


NUMBERS = (b"0", b"-1", b"7", b"65536", b"%d" % 2**40, b"%d" % 2**63, b"1e9", b"null")


def broken(seed, slot):
    """Packets like those of clients, each with a few bytes changed, left out or doubled, or a number made a large one."""
    chance = random.Random(seed)
    one = Slice(name="x", shape=SHAPE, dtype="float32", offset=64, size=SIZE)
    whole = messages.encode(Infer(slot=slot, lane=0, inputs=(one,), outputs=("y",)))
    for _ in range(600):
        content = bytearray(whole)
        for _ in range(chance.randint(0, 2)):
            place, more = chance.randrange(len(content)), chance.randint(1, 9)
            match chance.randrange(4):
                case 0:
                    content[place] = chance.randrange(256)
                case 1:
                    del content[place : place + more]
                case 2:
                    content[place:place] = content[place : place + more]
                case 3:
                    numbers = [found.span() for found in re.finditer(rb"\d+", content)]
                    start, end = chance.choice(numbers)
                    content[start:end] = chance.choice(NUMBERS)
        yield bytes(content)


async def test_whatever_chance_makes_of_a_packet_has_an_answer(shared, agent, served):
    """Six hundred broken packets: an answer, a refusal, or the end of the connection with its reason; the seat goes on."""
    (seat,) = (await agent.ask(messages.Look())).slots[served].seats
    seen, guest = set(), None
    for packet in broken(1, served):
        if guest is None:
            guest = Camera(shared)
            guest.open()
        guest.channel.sock.send(packet)
        said = await guest.said()
        seen.add((type(said).__name__, said.lane, getattr(said, "blame", "")))
        if said.lane < 0:
            assert await guest.said() is None
            guest.close()
            guest = None
    if guest is not None:
        guest.close()
    assert seen == {("Inferred", 0, ""), ("Denied", 0, "client"), ("Denied", -1, "client")}
    facts = (await agent.ask(messages.Look())).slots[served]
    assert ([one.pid for one in facts.seats], facts.counters.errors) == ([seat.pid], 0)
    await eventually(lambda: held(shared.process.pid, "memfd:guests") == held(seat.pid, "memfd:guests") == 0)


async def test_a_lane_carries_one_request_at_a_time(guest, agent, slot):
    """A second one in it before the answer is against the rules."""
    await agent.serve(slot, release(1, kind="loop"))
    guest.open()
    memory_file.write(guest.files[0], np.full(SHAPE, 200_000, np.float32).tobytes())
    one = Slice(name="x", shape=SHAPE, dtype="float32", offset=0, size=SIZE)
    for _ in range(2):
        guest.channel.send(Infer(slot=slot, lane=0, inputs=(one,)))
    denied = await guest.said()
    assert (denied.lane, "no answer yet" in denied.reason) == (-1, True)


async def test_a_client_has_four_lanes(guest):
    """A fifth is against the rules."""
    for number in range(5):
        guest.open(number)
    denied = await guest.said()
    assert (denied.lane, "lane 4" in denied.reason) == (-1, True)


async def test_a_file_that_grows_beyond_all_bounds_hurts_nobody(guest, shared, served, x):
    """A client that says its file has an exabyte is answered as before, and so are others."""
    guest.open()
    for number in guest.files:
        os.ftruncate(number, 2**60)
    assert isinstance(await guest.ask(served, x), Inferred)
    answer = await guest.ask(served, x, offset=2**30)
    assert (answer.blame, "may be used" in answer.reason) == ("client", True)
    camera = await shared.camera()
    assert (await camera.infer(served, x)).status == 200
    camera.writer.close()


async def test_clients_that_leave_in_the_middle_leave_nothing(shared, agent, slot, x):
    """Files, connections and places of clients that are gone are given back, by the runner and by the seat."""
    loaded = await agent.serve(slot, release(1))
    before = held(shared.process.pid, "socket:")
    for _ in range(100):
        with closing(Camera(shared)) as guest:
            guest.open()
            memory_file.write(guest.files[0], x.tobytes())
            one = Slice(name="x", shape=SHAPE, dtype="float32", offset=0, size=SIZE)
            guest.channel.send(Infer(slot=slot, lane=0, inputs=(one,)))
    await eventually(lambda: held(shared.process.pid, "socket:") <= before)
    await eventually(lambda: held(shared.process.pid, "memfd:guests") == held(loaded.pid, "memfd:guests") == 0)
    camera = await shared.camera()
    assert (await camera.infer(slot, x)).status == 200
    camera.writer.close()


async def test_clients_that_do_not_wait_keep_no_seat_busy(shared, agent, camera, slot):
    """Whoever asks and leaves has had one request computed at most: those after it do not pile up at the seat."""
    loaded = await agent.serve(slot, release(1, kind="loop"))
    slow = np.full(SHAPE, 20_000, np.float32)
    seat = psutil.Process(loaded.pid)
    began = busy_s(seat)
    for _ in range(3):
        assert (await camera.infer(slot, slow)).status == 200
    run_s = (busy_s(seat) - began) / 3
    for _ in range(40):
        with closing(Camera(shared)) as guest:
            guest.open()
            memory_file.write(guest.files[0], slow.tobytes())
            one = Slice(name="x", shape=SHAPE, dtype="float32", offset=0, size=SIZE)
            guest.channel.send(Infer(slot=slot, lane=0, inputs=(one,)))
            await agent.ask(messages.Look())  # so that it has come before it is gone
    began = busy_s(seat)
    assert (await camera.infer(slot, slow)).status == 200
    assert busy_s(seat) - began < 8 * run_s  # at most two before it; with all of the forty it was eighteen
    facts = await agent.ask(messages.Look())
    assert [seat.pid for seat in facts.slots[slot].seats] == [loaded.pid]


def busy_s(process):
    """What a process has computed, whatever else the machine does meanwhile."""
    spent = process.cpu_times()
    return spent.user + spent.system


async def test_more_clients_than_are_taken(shared, served, x):
    """One too many is told so; when another leaves there is room again."""
    before = held(shared.process.pid, "socket:")
    guests = [Camera(shared) for _ in range(65)]
    assert "64 clients" in (await guests[-1].said()).reason
    for guest in guests[:-1]:
        guest.open()
        assert isinstance(await guest.ask(served, x), Inferred)
    for guest in guests:
        guest.close()
    await eventually(lambda: held(shared.process.pid, "socket:") <= before)
    with closing(Camera(shared)) as last:
        last.open()
        assert isinstance(await last.ask(served, x), Inferred)


class Swayed:
    """A session whose client changes the frame while it computes."""

    def __init__(self, number):
        self._number = number

    def run(self, names, feeds):
        outputs = [np.sqrt(feeds["x"])]
        memory_file.write(self._number, np.ones(SHAPE, np.float32).tobytes())
        return outputs


def test_a_frame_that_changes_meanwhile_is_not_blamed_on_the_model():
    """NaN counts against a seat only when it comes out of a copy that held none; here the copy is of ones."""
    one = release(1)
    numbers = memory_file.arena("request", SIZE), memory_file.arena("answer", SIZE)
    memory_file.write(numbers[0], np.full(SHAPE, np.nan, np.float32).tobytes())
    metadata = seat_module.from_json(seat_module.Metadata, one.parts["metadata.json"], "metadata")
    config = from_yaml(Config, one.parts["config.yaml"], "config")
    model = seat_module.Model(one.place.candidate, Swayed(numbers[0]), metadata, config, (), 0.0)
    lane = Arena(numbers[0], memory_file.map_for_reading), Arena(numbers[1])
    tensor = Slice(name="x", shape=SHAPE, dtype="float32", offset=0, size=SIZE)
    ran = model.run(lane, SeatRun(lane=0, inputs=(tensor,)))
    assert ran.finite
    for arena in lane:
        arena.close()
