"""Shared memory regions: what clients may do with theirs, and what nobody can do to the runner with one."""

import asyncio
import json
import os
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton
from tritonclient import utils
from tritonclient.http import aio
from tritonclient.utils import shared_memory

from agent.core.errors import InputError
from agent.core.messages import Unload
from agent.runner import regions
from agent.runner.regions import Regions, Registered, Span
from tests.runner.conftest import SHAPE, Camera, descriptors_of, eventually, release

BYTES = 768  # of one frame
FOLDER = Path("/dev/shm")
_numbers = count()


@pytest.fixture
def key():
    """The name of a file in /dev/shm with a frame of ones and room for an answer; it is gone after the test."""
    key = f"edge-test-{os.getpid()}-{next(_numbers)}"
    (FOLDER / key).write_bytes(np.ones(SHAPE, np.float32).tobytes() + bytes(BYTES))
    yield key
    (FOLDER / key).unlink(missing_ok=True)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(shared):
    """A slot that serves twice what it is given; one for all, since a region that harms it fails every test."""
    agent = await shared.agent()
    await agent.serve("regions", release(1))
    yield "regions"
    await agent.ask(Unload(slot="regions", place=release(1).place))
    await agent.client.close()


async def register(camera: Camera, name: str, file: str, **fields):
    body = json.dumps({"key": file, "offset": 0, "byte_size": 2 * BYTES} | fields).encode()
    return await camera.ask("POST", f"/v2/systemsharedmemory/region/{name}/register", body)


async def unregister(camera: Camera, name: str):
    return await camera.ask("POST", f"/v2/systemsharedmemory/region/{name}/unregister")


@pytest.fixture
async def region(camera, key):
    """The key's file, registered under its own name."""
    answer = await register(camera, key, key)
    assert answer.status == 200, answer.json
    yield key
    await unregister(camera, key)


def placed(name: str, size: int = BYTES, offset: int = 0) -> dict[str, object]:
    return {"shared_memory_region": name, "shared_memory_byte_size": size, "shared_memory_offset": offset}


async def infer(camera: Camera, slot: str, given: dict[str, object], wanted: dict[str, object] | None):
    tensor = {"name": "x", "datatype": "FP32", "shape": SHAPE, "parameters": given}
    outputs = [{"name": "y", "parameters": wanted}] if wanted is not None else []
    body = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    return await camera.ask("POST", f"/v2/models/{slot}/infer", body)


def written(key: str) -> np.ndarray:
    return np.fromfile(FOLDER / key, np.float32, offset=BYTES, count=BYTES // 4).reshape(SHAPE)


async def test_a_frame_and_its_answer_pass_in_a_region(camera, served, region):
    """The answer lies in the region, and the response tells its form without a word of where."""
    answer = await infer(camera, served, placed(region), placed(region, offset=BYTES))
    assert answer.json["outputs"] == [{"name": "y", "datatype": "FP32", "shape": list(SHAPE)}]
    np.testing.assert_array_equal(written(region), np.full(SHAPE, 2, np.float32))


async def test_a_region_for_one_way_alone(camera, served, region, x):
    """An input from a region is answered in JSON; a binary input's answer goes to one."""
    answer = await infer(camera, served, placed(region), None)
    assert answer.json["outputs"][0]["data"] == [2.0] * 192
    tensor = {"name": "x", "datatype": "FP32", "shape": SHAPE, "parameters": {"binary_data_size": BYTES}}
    output = {"name": "y", "parameters": placed(region, offset=BYTES)}
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    await camera.ask(
        "POST",
        f"/v2/models/{served}/infer",
        head + x.tobytes(),
        Inference_Header_Content_Length=str(len(head)),
    )
    np.testing.assert_array_equal(written(region), x * 2)


async def test_regions_outlive_a_swap(agent, camera, slot, region):
    """What was registered under one release serves the next."""
    one, two = release(1), release(2, factor=3.0)
    await agent.serve(slot, one)
    await infer(camera, slot, placed(region), placed(region, offset=BYTES))
    await agent.serve(slot, two, fallback=one)
    answer = await infer(camera, slot, placed(region), placed(region, offset=BYTES))
    assert answer.json["model_version"] == "20250602"
    np.testing.assert_array_equal(written(region), np.full(SHAPE, 3, np.float32))


async def test_frames_too_large_to_be_copied_at_once(agent, camera, slot, key):
    """A batch of several megabytes passes both ways."""
    await agent.serve(slot, release(1, kind="batch"))
    frames = np.random.default_rng(5).random((4000, *SHAPE[1:]), np.float32)
    size = frames.nbytes
    assert size > 2 * regions.AT_ONCE
    (FOLDER / key).write_bytes(frames.tobytes() + bytes(size))
    assert (await register(camera, key, f"/{key}", byte_size=2 * size)).status == 200
    tensor = {"name": "x", "datatype": "FP32", "shape": frames.shape, "parameters": placed(key, size)}
    output = {"name": "y", "parameters": placed(key, size, size)}
    body = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    assert (await camera.ask("POST", f"/v2/models/{slot}/infer", body)).status == 200
    np.testing.assert_array_equal(np.fromfile(FOLDER / key, np.float32, offset=size).reshape(frames.shape), frames * 2)
    await unregister(camera, key)


async def test_a_region_has_a_name(camera, key):
    """Without one there is nothing to register."""
    body = json.dumps({"key": key, "byte_size": BYTES}).encode()
    answer = await camera.ask("POST", "/v2/systemsharedmemory/register", body)
    assert (answer.status, "give it one" in answer.json["error"]) == (400, True)


async def test_status_tells_what_is_registered(camera, region):
    """One region by name, or all; none of that name is an error."""
    told = {"name": region, "key": region, "offset": 0, "byte_size": 2 * BYTES}
    assert (await camera.ask("GET", f"/v2/systemsharedmemory/region/{region}/status")).json == [told]
    assert told in (await camera.ask("GET", "/v2/systemsharedmemory/status")).json
    await unregister(camera, region)
    answer = await camera.ask("GET", f"/v2/systemsharedmemory/region/{region}/status")
    assert (answer.status, "unknown" in answer.json["error"]) == (400, True)


async def test_one_client_ends_what_another_began(shared, camera, served, region):
    """A region is known by its name on every connection, until any client unregisters it."""
    other = await shared.camera()
    assert (await infer(other, served, placed(region), None)).status == 200
    assert (await register(other, region, region)).status == 400
    await unregister(other, region)
    answer = await infer(camera, served, placed(region), None)
    assert (answer.status, "unknown" in answer.json["error"]) == (400, True)
    assert (await unregister(camera, region)).status == 200
    assert (await register(camera, region, region)).status == 200


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"key": ""}, "is not a name"),
        ({"key": "/"}, "is not a name"),
        ({"key": "/../etc/passwd"}, "is not a name"),
        ({"key": ".."}, "is not a name"),
        ({"key": "a\0b"}, "is not a name"),
        ({"key": "a" * 300}, "cannot be opened"),
        ({"key": "edge-test-nothing"}, "No such file"),
        ({"byte_size": 0}, "do not lie within"),
        ({"byte_size": 2 * BYTES + 1}, "do not lie within"),
        ({"offset": BYTES + 1, "byte_size": BYTES}, "do not lie within"),
        ({"offset": -1}, "offset"),
        ({"byte_size": 2**63}, "byte_size"),
        ({"byte_size": "all"}, "byte_size"),
        ({"key": None}, "key"),
    ],
)
async def test_a_region_that_cannot_be(camera, key, fields, says):
    """400 and why, and nothing is registered."""
    answer = await register(camera, "wrong", key, **fields)
    assert (answer.status, says in answer.json["error"]) == (400, True), answer.json
    assert (await camera.ask("GET", "/v2/systemsharedmemory/region/wrong/status")).status == 400


@pytest.mark.parametrize(
    ("given", "wanted", "says"),
    [
        ({"size": BYTES - 4}, None, "takes 768 bytes"),
        ({"offset": BYTES + 1}, None, "do not lie within"),
        ({"offset": 2**40}, None, "do not lie within"),
        ({"offset": -1}, None, "offset"),
        ({"name": "nothing"}, None, "unknown shared memory region 'nothing'"),
        ({}, {"offset": BYTES + 1}, "do not lie within"),
        ({}, {"size": BYTES - 4}, "764 bytes were given for an output of 768"),
        ({}, {"name": "nothing"}, "unknown shared memory region 'nothing'"),
    ],
)
async def test_a_place_that_does_not_fit(camera, served, region, given, wanted, says):
    """400 and why; the next request is served."""
    places = [None if one is None else placed(**({"name": region} | one)) for one in (given, wanted)]
    answer = await infer(camera, served, *places)
    assert (answer.status, says in answer.json["error"]) == (400, True), answer.json
    assert (await infer(camera, served, placed(region), placed(region, offset=BYTES))).status == 200


async def test_half_a_place_is_none(camera, served, region):
    """A region without a size, or a size without a region, is refused as such."""
    for left_out in ("shared_memory_region", "shared_memory_byte_size"):
        place = {name: value for name, value in placed(region).items() if name != left_out}
        answer = await infer(camera, served, place, None)
        assert (answer.status, left_out in answer.json["error"]) == (400, True)


async def test_a_file_that_its_client_cuts_short_kills_nobody(agent, camera, served, region):
    """Reading and writing behind the file's new end are refused; the seat lives, and the file stays short."""
    (seat,) = (await agent.until(served, lambda facts: facts.serving)).seats
    os.truncate(FOLDER / region, BYTES // 2)
    for places in ((placed(region), None), (placed(region, offset=BYTES), None)):
        assert "cut short" in (await infer(camera, served, *places)).json["error"]
    os.truncate(FOLDER / region, BYTES)
    answer = await infer(camera, served, placed(region), placed(region, offset=BYTES))
    assert (answer.status, "cut short" in answer.json["error"]) == (400, True)
    assert (FOLDER / region).stat().st_size == BYTES
    assert (await infer(camera, served, placed(region), None)).status == 200
    assert [one.pid for one in (await agent.until(served, lambda facts: facts.serving)).seats] == [seat.pid]


async def test_a_removed_file_serves_who_registered_it(camera, served, region):
    """As with shm_unlink: the region stays; its name may be registered for a new file."""
    (FOLDER / region).unlink()
    assert (await infer(camera, served, placed(region), None)).json["outputs"][0]["data"] == [2.0] * 192
    (FOLDER / region).write_bytes(np.full(SHAPE, 4, np.float32).tobytes())
    assert (await register(camera, region, region, byte_size=BYTES)).status == 200
    assert (await infer(camera, served, placed(region), None)).json["outputs"][0]["data"] == [8.0] * 192


async def test_regions_leave_nothing_behind(shared, camera, served, key):
    """After hundreds that were registered, refused, used and unregistered no descriptor is left."""
    await infer(camera, served, placed("nothing"), None)  # the slot has its first lane
    before = descriptors_of(shared)
    for number in range(100):
        await register(camera, f"r{number}", key)
        await register(camera, f"r{number}", key)
        await register(camera, f"s{number}", key, byte_size=3 * BYTES)
        await infer(camera, served, placed(f"r{number}"), placed(f"r{number}", offset=BYTES))
        if number % 2:
            await unregister(camera, f"r{number}")
    await camera.ask("POST", "/v2/systemsharedmemory/unregister")
    assert (await camera.ask("GET", "/v2/systemsharedmemory/status")).json == []
    await eventually(lambda: descriptors_of(shared) <= before)  # a region that was used is let go a moment later


@pytest.fixture
def client(shared):
    """NVIDIA's client, and the region it makes."""
    client = triton.InferenceServerClient(shared.tcp)
    yield client
    client.close()
    with triton.InferenceServerClient(shared.tcp) as another:  # a connection stays with the thread that made it
        another.unregister_system_shared_memory()


@pytest.fixture
def handle():
    key = f"/edge-test-{os.getpid()}-{next(_numbers)}"
    handle = shared_memory.create_shared_memory_region("frames", key, 2 * BYTES)
    yield handle, key
    shared_memory.destroy_shared_memory_region(handle)


def tensors(module):
    given = module.InferInput("x", SHAPE, "FP32")
    given.set_shared_memory("frames", BYTES)
    wanted = module.InferRequestedOutput("y")
    wanted.set_shared_memory("frames", BYTES, offset=BYTES)
    return [given], [wanted]


async def test_tritonclient_with_shared_memory(served, client, handle, x):
    """NVIDIA's client, unmodified: its regions are registered, told, used and unregistered."""
    memory, key = handle

    def talk():
        assert "system_shared_memory" in client.get_server_metadata()["extensions"]
        shared_memory.set_shared_memory_region(memory, [x])
        client.register_system_shared_memory("frames", key, 2 * BYTES)
        assert [one["key"] for one in client.get_system_shared_memory_status()] == [key]
        with pytest.raises(utils.InferenceServerException, match="registered already"):
            client.register_system_shared_memory("frames", key, 2 * BYTES)
        given, wanted = tensors(triton)
        result = client.infer(served, given, outputs=wanted)
        assert result.get_output("y") == {"name": "y", "datatype": "FP32", "shape": list(SHAPE)}
        got = shared_memory.get_contents_as_numpy(memory, np.float32, SHAPE, offset=BYTES)
        np.testing.assert_array_equal(got, x * 2)
        client.unregister_system_shared_memory("frames")
        assert client.get_system_shared_memory_status() == []

    await asyncio.to_thread(talk)


async def test_tritonclient_aio_with_shared_memory(shared, served, client, handle, x):
    """Its asyncio variant too, with many requests at once."""
    memory, key = handle
    shared_memory.set_shared_memory_region(memory, [x])
    async with aio.InferenceServerClient(shared.tcp) as camera:
        await camera.register_system_shared_memory("frames", key, 2 * BYTES)
        given, wanted = tensors(aio)
        await asyncio.gather(*(camera.infer(served, given, outputs=wanted) for _ in range(20)))
    got = shared_memory.get_contents_as_numpy(memory, np.float32, SHAPE, offset=BYTES)
    np.testing.assert_array_equal(got, x * 2)


async def test_what_is_no_shared_memory_is_not_opened(tmp_path):
    """Links, pipes, folders and devices in the folder are refused, and none of them holds the runner up."""
    (tmp_path / "secret").write_bytes(bytes(BYTES))
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    known = Regions(tmp_path)
    for key in ("link", "folder", "pipe"):
        with pytest.raises(InputError, match=r"cannot be opened|file of another kind"):
            known.register(Registered(key=key, byte_size=1, name=key))
    assert known.status(None) == []


async def test_an_output_that_finds_no_room(tmp_path, monkeypatch):
    """Where /dev/shm is full in the middle of an output, the client is told, and does not read half of one."""
    (tmp_path / "f").write_bytes(b"frame")
    known = Regions(tmp_path)
    known.register(Registered(key="f", byte_size=5, name="r"))
    monkeypatch.setattr(os, "pwrite", lambda *_: 4)  # as the kernel tells it
    with pytest.raises(InputError, match="No space left"):
        await known.write(Span("r", 5), memoryview(b"12345"))


async def test_too_many_regions(tmp_path, monkeypatch):
    """One too many is refused; those whose files are gone make room."""
    monkeypatch.setattr(regions, "REGIONS", 2)
    known = Regions(tmp_path)
    for number in range(3):
        (tmp_path / f"f{number}").write_bytes(b"frame")
    for number in range(2):
        known.register(Registered(key=f"f{number}", byte_size=5, name=f"f{number}"))
    third = Registered(key="f2", byte_size=5, name="f2")
    with pytest.raises(InputError, match="2 shared memory regions are registered"):
        known.register(third)
    (tmp_path / "f0").unlink()
    known.register(third)
    assert {one.name for one in known.status(None)} == {"f1", "f2"}


async def test_a_copy_outlasts_its_region(tmp_path, monkeypatch):
    """A region that is unregistered while it is copied is copied to its end, from the same file."""
    monkeypatch.setattr(regions, "AT_ONCE", 0)
    (tmp_path / "f").write_bytes(b"frame")
    known = Regions(tmp_path)
    known.register(Registered(key="f", byte_size=5, name="f"))
    target = bytearray(5)
    copying = asyncio.ensure_future(known.read(Span("f", 5), memoryview(target)))
    await asyncio.sleep(0)  # the copy is on its way to a thread
    known.unregister("f")
    await copying
    assert target == b"frame"


async def test_a_copy_that_nobody_waits_for_still_holds_its_lane(tmp_path, monkeypatch):
    """Whoever gives up while a frame is copied leaves when it is copied: the lane's next request is not written over."""
    monkeypatch.setattr(regions, "AT_ONCE", 0)
    (tmp_path / "f").write_bytes(b"frame")
    known = Regions(tmp_path)
    known.register(Registered(key="f", byte_size=5, name="f"))
    began, may_end, target = Event(), Event(), bytearray(5)

    def slowly(number, targets, place, copy=os.preadv):
        began.set()
        assert may_end.wait(30)
        return copy(number, targets, place)

    monkeypatch.setattr(os, "preadv", slowly)
    copying = asyncio.ensure_future(known.read(Span("f", 5), memoryview(target)))
    await asyncio.to_thread(began.wait, 30)
    copying.cancel()
    for _ in range(3):  # turns of the loop, in which it could leave
        await asyncio.sleep(0)
    assert not copying.done()
    may_end.set()
    await asyncio.wait([copying])
    assert copying.cancelled()
    assert target == b"frame"


@contextmanager
def nobody():
    """What runs inside is not root."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user for a while")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_file_that_may_only_be_read_holds_inputs_alone(key):
    """An output for it is refused with what to do."""
    known, target = Regions(), bytearray(4)
    (FOLDER / key).chmod(0o644)
    with nobody():
        known.register(Registered(key=key, byte_size=4, name="r"))
    await known.read(Span("r", 4), memoryview(target))
    assert bytes(target) == np.float32(1).tobytes()
    with pytest.raises(InputError, match="writable by the group edge-clients"):
        await known.write(Span("r", 4), memoryview(b"1234"))


async def test_a_file_that_the_runner_may_not_read(key):
    """The refusal says whose file it is, and what to do."""
    (FOLDER / key).chmod(0o600)
    with nobody(), pytest.raises(InputError, match=f"of user 0 with mode 0600.* chgrp edge-clients /dev/shm/{key}"):
        Regions().register(Registered(key=key, byte_size=4, name="r"))
