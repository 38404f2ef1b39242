"""A camera application's client: frames in shared memory, through a real runner and real seats."""

import asyncio
import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from agent.adapters.channel import listen
from agent.adapters.packets import Packets, close_all
from agent.core.messages import Denied, Inferred, LaneOpen, Look, Slice, ToRunner, Unload, encode
from client import AsyncClient, Client, ModelError, RequestError, UnavailableError
from client.lane import DEPTH
from tests.fakes.descriptors import held
from tests.fakes.waiting import reached
from tests.runner.conftest import SHAPE, release, runner_in

FACTORS = {"20250601": 2.0, "20250602": 3.0}


@pytest.fixture
def client(shared):
    with Client(f"unix:{shared.door}") as one:
        yield one


@pytest.fixture
def new_runner(tmp_path):
    """Starts something in the runner's place that answers each request with what `answer` makes of it."""
    listening = listen(tmp_path / "frames.sock")

    def start(answer):
        threading.Thread(target=attend, args=(listening, answer), daemon=True).start()
        return f"unix:{tmp_path / 'door.sock'}"

    yield start
    listening.close()


def attend(listening, answer):
    while True:
        try:
            packets = Packets(listening.accept()[0], ToRunner)
        except OSError:
            return
        while (received := packets.read()) is not None:
            close_all(received[1])
            if not isinstance(received[0], LaneOpen):
                answer(packets, received[0])


def page_faults(pid):
    """How many pages a process was given that were not on a disk."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


async def test_a_frame_is_answered_by_the_model(client, served, x):
    """The answer is the model's, and names release, version and candidate."""
    answer = await asyncio.to_thread(client.infer, served, x)
    np.testing.assert_array_equal(answer["y"], x * 2)
    assert (answer.release, answer.version) == ("defect_detection_ssd_plates_20250601", "20250601")
    assert (answer.candidate, answer.is_finite) == ("cpu/fp32/1t", True)


async def test_answers_are_the_callers_to_keep(client, served, x):
    """What came first is not overwritten by what comes later, and may be changed."""
    first, second = await asyncio.to_thread(lambda: [client.infer(served, one)["y"] for one in (x, x + 1)])
    np.testing.assert_array_equal(first, x * 2)
    second += 1


async def test_frames_in_a_row_are_answered_in_order(agent, client, slot):
    """Frames of any size, also those that outgrow the memory files, sent ahead of their answers."""
    await agent.serve(slot, release(1, kind="batch"))
    frames = [np.random.default_rng(rows).random((rows, *SHAPE[1:]), np.float32) for rows in (1, 7, 3000, 2, 4000)]
    answers = await asyncio.to_thread(lambda: list(client.stream(slot, iter(frames))))
    for frame, answer in zip(frames, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], frame * 2)


async def test_a_picture_is_normalised_as_the_config_says(agent, client, slot):
    """uint8 height x width x RGB, also a slice of a larger picture, becomes the tensor of the signed config."""
    how = {"layout": "NCHW", "colour": "BGR", "scale": 1 / 255, "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0]}
    await agent.serve(slot, release(1, preprocessing=how))
    frame = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)[::2, ::2]
    answer = await asyncio.to_thread(client.infer, slot, frame)
    wanted = ((frame[..., ::-1] / 255 - how["mean"]) / how["std"]).transpose(2, 0, 1)[np.newaxis]
    np.testing.assert_allclose(answer["y"], wanted * 2, rtol=1e-5, atol=1e-6)


async def test_a_frame_takes_no_new_memory(agent, client, slot):
    """A seat keeps what a frame took for the next one: new pages cost a small model a tenth of its time."""
    await agent.serve(slot, release(1, kind="batch"))
    (seat,) = (await agent.ask(Look())).slots[slot].seats
    pictures = np.ones((4000, 8, 8, 3), np.uint8)

    def new_pages(times):
        before = page_faults(seat.pid)
        for _ in range(times):
            client.infer(slot, pictures)
        return page_faults(seat.pid) - before

    await asyncio.to_thread(new_pages, 2)
    assert await asyncio.to_thread(new_pages, 10) < 100  # a picture's tensor alone has 750 pages


async def test_inputs_may_be_named(client, served, x):
    """A mapping goes as it is; a name that the model does not have is refused with those it has."""
    answer = await asyncio.to_thread(client.infer, served, {"x": x})
    np.testing.assert_array_equal(answer["y"], x * 2)
    with pytest.raises(RequestError, match=r"\['x'\]"):
        await asyncio.to_thread(client.infer, served, {"image": x})


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (np.zeros((1, 3, 8, 9), np.float32), "FP32 [1, 3, 8, 8]"),
        (np.zeros(SHAPE, np.float64), "FP64"),
        (np.zeros(SHAPE, np.longdouble), "float"),
        (np.array(["text"]), "give numbers"),
        (np.zeros((0, 3, 8, 8), np.float32), "[0, 3, 8, 8]"),
        ({}, "['x']"),
        ([[1.0], [1.0, 2.0]], "input frame: numpy makes no array of it"),
        ({str(number): np.float32(0) for number in range(3000)}, "give fewer inputs"),
        ({"\ud800": np.float32(0)}, "cannot be sent"),
        (np.broadcast_to(np.float32(0), (16, 1024, 1024, 3)), "a request 134217728 at most: ask with fewer images"),
    ],
)
async def test_a_wrong_frame_is_told_what_would_be_right(client, served, x, frame, says):
    """The error says what the model takes, or what a request can hold; the client goes on."""
    with pytest.raises(RequestError) as told:
        await asyncio.to_thread(client.infer, served, frame)
    assert says in str(told.value)
    np.testing.assert_array_equal((await asyncio.to_thread(client.infer, served, x))["y"], x * 2)
    async with AsyncClient(client._address) as looped:
        for _ in range(DEPTH + 1):
            with pytest.raises(RequestError, match=re.escape(str(told.value))):
                await looped.infer(served, frame)
        np.testing.assert_array_equal((await looped.infer(served, x))["y"], x * 2)


async def test_an_unknown_model_is_told_with_those_that_are_here(client, served, x):
    """A slip in a name is the caller's to mend."""
    with pytest.raises(RequestError, match=served):
        await asyncio.to_thread(client.infer, "nothing", x)
    with pytest.raises(RequestError, match="slot None: name a model"):
        await asyncio.to_thread(client.infer, None, x)


async def test_no_model_now_is_not_the_callers_fault(agent, client, slot, x):
    """A slot whose model is not there yet says: again in a moment."""
    await agent.load(slot, release(1))
    with pytest.raises(UnavailableError, match="no model serves"):
        await asyncio.to_thread(client.infer, slot, x)


def test_nobody_at_the_address(tmp_path, x):
    """Where no runner is the error says where it was looked for; an address that is none is told at once."""
    with Client(f"unix:{tmp_path}/door.sock") as client, pytest.raises(UnavailableError, match=r"frames\.sock"):
        client.infer("a", x)
    for address in ("http://127.0.0.1:8000", None):
        with pytest.raises(RequestError, match="unix:"):
            Client(address)


async def test_tasks_ask_side_by_side(shared, served, x):
    """Many tasks share a client, and each gets its own answer."""
    async with AsyncClient(f"unix:{shared.door}") as client:
        answers = await asyncio.gather(*(client.infer(served, x + number) for number in range(20)))
        with pytest.raises(RequestError):
            await client.infer(served, x[0])
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["y"], (x + number) * 2)


async def test_tasks_that_give_up_leave_the_client_whole(shared, served, x):
    """Answers that nobody waits for any more go to nobody, and their places are free again."""
    async with AsyncClient(f"unix:{shared.door}") as client:
        for _ in range(5):
            tasks = [asyncio.create_task(client.infer(served, x)) for _ in range(4)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
        np.testing.assert_array_equal((await client.infer(served, x + 1))["y"], (x + 1) * 2)


async def test_threads_ask_one_after_the_other(client, served, x):
    """Many threads share a client, and each gets its own answer."""
    answers = await asyncio.gather(*(asyncio.to_thread(client.infer, served, x + number) for number in range(20)))
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["y"], (x + number) * 2)


async def test_swaps_and_crashes_lose_no_frame(shared, agent, slot, x):
    """Releases swap, and seats are killed, under two frames each of two clients: each is answered, by the one it names."""
    old, new = release(1), release(2, factor=3.0)
    await agent.serve(slot, old)
    stop, answers = threading.Event(), [[], []]

    def frames():
        while not stop.is_set():
            yield x

    def watch(seen):
        with Client(f"unix:{shared.door}") as client:
            seen.extend(client.stream(slot, frames()))

    watching = [asyncio.create_task(asyncio.to_thread(watch, seen)) for seen in answers]
    for one, other in ((new, old), (old, new)):
        loaded = await agent.serve(slot, one, fallback=other)
        await agent.ask(Unload(slot=slot, place=other.place))
    await agent.load(slot, new)
    await agent.promote(slot, old, fallback=new)
    os.kill(loaded.pid, signal.SIGKILL)
    await agent.until(slot, lambda facts: facts.serving == new.place)
    stop.set()
    await asyncio.gather(*watching)
    for answer in answers[0] + answers[1]:
        np.testing.assert_array_equal(answer["y"], x * np.float32(FACTORS[answer.version]))
    assert all({answer.version for answer in seen} == set(FACTORS) for seen in answers)


async def test_frames_count_in_the_slots_figures(client, agent, served, x):
    """The soak judges them as it does those by HTTP, also those that the runner never saw."""
    for _ in range(5):
        await asyncio.to_thread(client.infer, served, x)
    assert (await agent.until_counted(served, 5)).run_ms.mean > 0
    assert (await agent.ask(Look())).requests >= 5


async def test_a_runner_that_starts_again_is_found_again(tmp_path, x):
    """Clients go on with the next runner at the same place; until then they say that nobody answers."""
    one = release(1)
    address = f"unix:{tmp_path}/door.sock"
    client, looped = Client(address), AsyncClient(address)
    async with looped:
        for _ in range(2):
            async with runner_in(tmp_path) as running:
                agent = await running.agent()
                await agent.serve("a", one)
                np.testing.assert_array_equal((await asyncio.to_thread(client.infer, "a", x))["y"], x * 2)
                np.testing.assert_array_equal((await looped.infer("a", x))["y"], x * 2)
                await agent.client.close()
            with pytest.raises(UnavailableError):
                client.infer("a", x)
            with pytest.raises(UnavailableError):
                await looped.infer("a", x)
    client.close()


def test_a_runner_that_does_not_answer(new_runner, x):
    """After the timeout the error says so; what comes late is no answer to the next question."""
    held = []

    def late(packets, ask):
        held.append(ask)
        if len(held) > 1:
            packets.send(Denied(lane=ask.lane, blame="model", reason=f"it failed at {ask.slot}"))

    with Client(new_runner(late), timeout_s=1.5) as client:  # the second question has an answer in that time
        with pytest.raises(UnavailableError, match=r"within 1\.5 s"):
            client.infer("a", x)
        with pytest.raises(ModelError, match="it failed at b"):
            client.infer("b", x)


def inferred(**lies):
    told = Slice(**{"name": "y", "shape": (3,), "dtype": "float32", "offset": 0, "size": 12} | lies)
    return encode(Inferred(lane=0, release="a_20250601", candidate="cpu", outputs=(told,), finite=True))


@pytest.mark.parametrize(
    "packet",
    [
        b"nonsense",
        encode(Denied(lane=7, blame="client", reason="of whom?")),
        inferred(offset=2**39),
        inferred(dtype="float99"),
        inferred(dtype="S0"),
        inferred(shape=(4,)),
    ],
)
async def test_what_is_no_runner(new_runner, x, packet):
    """A stranger in the runner's place is told as one."""
    stranger = new_runner(lambda packets, _: packets.sock.send(packet))
    with Client(stranger) as client, pytest.raises(UnavailableError, match="no edge-runner"):
        await asyncio.to_thread(client.infer, "a", x)
    async with AsyncClient(stranger) as looped:
        with pytest.raises(UnavailableError, match="no edge-runner"):
            await looped.infer("a", x)


async def test_a_runner_of_a_later_version_is_understood(new_runner, x):
    """What it says besides, in fields that this client does not know, is left alone."""

    def answer(packets, ask):
        said = Inferred(lane=ask.lane, release="a_20250601", candidate="cpu", outputs=(), finite=True)
        packets.sock.send(json.dumps({**json.loads(encode(said)), "queued_s": 0.1}).encode())

    later = new_runner(answer)
    with Client(later) as client:
        assert (await asyncio.to_thread(client.infer, "a", x)).version == "20250601"
    async with AsyncClient(later) as looped:
        assert (await looped.infer("a", x)).version == "20250601"


async def test_a_bell_that_is_no_socket_is_none(new_runner, x):
    """Who answers may send along what he likes: it is closed, and the answer is one."""

    def answer(packets, ask):
        number = os.open("/dev/null", os.O_RDONLY)
        said = Inferred(lane=ask.lane, release="a_20250601", candidate="cpu", outputs=(), finite=True)
        packets.send(said, [number])
        os.close(number)

    odd = new_runner(answer)
    with Client(odd) as client:
        for _ in range(2):
            assert (await asyncio.to_thread(client.infer, "a", x)).version == "20250601"
    async with AsyncClient(odd) as looped:
        for _ in range(2):
            assert (await looped.infer("a", x)).version == "20250601"


async def test_nothing_connects_after_close(new_runner, x):
    """What is under way when a client is closed ends with its error, as what is asked later, and no runner is asked."""
    asked = []
    address = new_runner(lambda _, ask: asked.append(ask))
    looped, client = AsyncClient(address), Client(address)
    under_way = [asyncio.create_task(looped.infer("a", x)) for _ in range(DEPTH + 1)]
    await reached(lambda: len(asked) == DEPTH)
    await looped.close()
    client.close()
    for task in [*under_way, asyncio.create_task(looped.infer("a", x))]:
        with pytest.raises(RequestError, match="is closed"):
            await task
    with pytest.raises(RequestError, match="is closed"):
        client.infer("a", x)
    assert len(asked) == DEPTH


async def test_a_process_without_descriptors_is_told(shared, served, x):
    """It is the client's error that says so, and the client goes on when there are some again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # what earlier tests left would make room in the middle
    with Client(f"unix:{shared.door}") as client:
        async with AsyncClient(f"unix:{shared.door}") as looped:
            os.close(next_free := os.dup(0))
            for more in (0, 2):  # none for a connection, or for one and not for its memory files
                resource.setrlimit(resource.RLIMIT_NOFILE, (next_free + more, hard))
                try:
                    with pytest.raises(UnavailableError, match="Too many open files; close"):
                        client.infer(served, x)
                    with pytest.raises(UnavailableError, match="Too many open files; close"):
                        await looped.infer(served, x)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            np.testing.assert_array_equal((await asyncio.to_thread(client.infer, served, x))["y"], x * 2)
            np.testing.assert_array_equal((await looped.infer(served, x))["y"], x * 2)


def test_a_runner_that_hangs_up_at_each_request(new_runner, x):
    """A request is asked twice, not for ever."""
    asked = []

    def hang_up(packets, ask):
        asked.append(ask)
        packets.hang_up()

    with Client(new_runner(hang_up)) as client, pytest.raises(UnavailableError, match="ended the connection"):
        client.infer("a", x)
    assert len(asked) == 2


async def test_clients_that_nobody_closes_leave_nothing(shared, served, x):
    """Their files and connections go with them."""
    gc.collect()  # what earlier tests left
    before = open_files()
    for _ in range(3):
        await asyncio.to_thread(Client(f"unix:{shared.door}").infer, served, x)

    def is_given_back():  # a thread lets go of its call a little after its answer is there
        gc.collect()
        return open_files() <= before

    await reached(is_given_back)


def open_files():
    """What clients have; event loops and threads of other tests may open something else meanwhile."""
    return held(os.getpid(), "memfd:") + held(os.getpid(), "socket:")


def test_the_client_is_light():
    """A camera application that imports it loads no inference library, and nothing of the agent's network."""
    heavy = {"onnxruntime", "openvino", "tensorrt", "onnx", "boto3", "tuf", "cryptography", "grpc", "psutil"}
    code = f"import client, sys; print(*({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
