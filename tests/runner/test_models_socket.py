"""What passes between agent and runner, and what the death of either costs."""

import asyncio
import fcntl
import hashlib
import json
import os
import resource
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from agent.adapters import memory_file
from agent.adapters.channel import Channel, connect
from agent.adapters.packets import close_all
from agent.adapters.runner_client import RunnerClient
from agent.core.errors import InputError, TransferError
from agent.core.messages import (
    Answer,
    Ask,
    Done,
    Hello,
    LaneOpen,
    Load,
    Look,
    Offer,
    Place,
    Prove,
    Refused,
    Seal,
    Stop,
    ToSeat,
    Trial,
    Unload,
)
from tests.fakes.descriptors import held
from tests.runner.conftest import CPU, PATIENCE_S, SHAPE, Running, alive, altered, eventually, release, runner_in


async def offered(agent, one):
    reply, descriptors = await agent.client.ask(Offer(ref=one.ref, parts=one.announced))
    assert isinstance(reply, Done), reply
    return descriptors


async def test_a_part_with_another_digest_is_refused(agent, slot):
    """One changed byte in the weights: nothing of the release is held, and it may be handed over again."""
    one = release(1, factor=7.0)
    descriptors = await offered(agent, one)
    for number, content in zip(descriptors, one.parts.values(), strict=True):
        memory_file.write(number, content[:-1] + bytes([content[-1] ^ 1]))
    reply = await agent.ask(Seal(ref=one.ref))
    close_all(descriptors)
    assert isinstance(reply, Refused)
    assert not reply.failure.kind.is_final
    assert one.ref not in (await agent.ask(Look())).held
    assert isinstance(await agent.ask(Load(slot=slot, place=one.place)), Refused)
    assert await agent.hand_over(one) == Done()


@pytest.mark.parametrize("place", [0, -1], ids=["no model", "another model"])
async def test_weights_with_another_digest_are_refused_when_they_are_loaded(agent, slot, place):
    """Their digest is taken beside the load; whatever the seat makes of them, the release may be handed over again."""
    one = release(1, factor=7.25 + place)
    heavy = altered(one, "model.onnx", one.parts["model.onnx"] + padding(64_000_000))
    descriptors = await offered(agent, heavy)
    for part, number in zip(heavy.announced, descriptors, strict=True):
        content = bytearray(heavy.parts[part.name])
        content[place] ^= part.name == "model.onnx"
        memory_file.write(number, content)
    close_all(descriptors)
    assert await agent.ask(Seal(ref=heavy.ref)) == Done()
    reply = await agent.ask(Load(slot=slot, place=heavy.place))
    assert isinstance(reply, Refused)
    assert not reply.failure.kind.is_final
    assert heavy.ref not in (await agent.ask(Look())).held
    await agent.serve(slot, heavy)


def padding(size):
    """A field of a protobuf that nobody knows: it makes a file long, and its digest slow."""
    length = b"".join(bytes([size >> shift & 0x7F | 0x80]) for shift in range(0, 28, 7)) + bytes([size >> 28])
    return b"\xc2\x3e" + length + bytes(size)


async def test_an_offer_that_another_replaced_says_nothing_against_the_release(agent):
    """Two slots hand over the same release at once: one of them loses, and tries again."""
    one = release(1, factor=7.5)
    first, second = await offered(agent, one), await offered(agent, one)
    for number, content in zip(first, one.parts.values(), strict=True):
        memory_file.write(number, content)
    for _ in range(2):  # what the second has not written yet; then nothing
        reply = await agent.ask(Seal(ref=one.ref))
        assert isinstance(reply, Refused)
        assert not reply.failure.kind.is_final
    close_all([*first, *second])
    assert await agent.hand_over(one) == Done()


async def test_a_look_is_answered_once(shared, agent):
    """Whoever looks is told; those who listen are not: two that look at what they are told would never end."""
    listening = await shared.agent()
    await agent.ask(Look())
    listening.news.clear()
    for _ in range(10):
        await agent.ask(Look())
    await listening.ask(Look())  # its answer comes behind all that was told before
    assert not listening.news.is_set()
    await listening.client.close()


async def test_a_runner_without_descriptors_refuses_and_serves_on(tmp_path, x):
    """Orders and agents that come while no descriptor is left wait or are refused; then all goes on."""
    async with runner_in(tmp_path, stderr=asyncio.subprocess.PIPE) as running:
        agent, camera = await running.agent(), await running.camera()
        one, two = release(1), release(2)
        await agent.serve("a", one)
        await agent.load("c", two)  # no spare is left
        assert (await camera.infer("a", x)).status == 200
        limits = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        for order in (Load(slot="b", place=two.place), Offer(ref=one.ref, parts=one.announced)):
            reply = await agent.ask(order)
            assert isinstance(reply, Refused)
            assert not reply.failure.kind.is_final
        late = asyncio.create_task(running.agent())
        await asyncio.wait_for(running.process.stderr.readuntil(b"step=accept outcome=waiting"), PATIENCE_S)
        assert (await camera.infer("a", x)).status == 200
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, limits)
        await (await late).client.close()
        await agent.serve("b", two)
        assert running.process.returncode is None


async def test_nobody_changes_a_part_after_its_seal(agent):
    """Descriptors that the agent kept cannot be written, grown or cut any more."""
    one = release(1, factor=8.0)
    descriptors = await offered(agent, one)
    for number, content in zip(descriptors, one.parts.values(), strict=True):
        memory_file.write(number, content)
    assert await agent.ask(Seal(ref=one.ref)) == Done()
    for number in descriptors:
        assert fcntl.fcntl(number, fcntl.F_GET_SEALS) & memory_file.FROZEN == memory_file.FROZEN
        with pytest.raises(PermissionError):
            os.pwrite(number, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(number, 1)
    close_all(descriptors)


async def test_a_part_that_is_mapped_for_writing_cannot_be_sealed(agent):
    """A mapping that could change the bytes after their digest was taken is a refusal."""
    one = release(1, factor=9.0)
    descriptors = await offered(agent, one)
    mapping = memory_file.map_shared(descriptors[0])
    assert isinstance(await agent.ask(Seal(ref=one.ref)), Refused)
    mapping.close()
    close_all(descriptors)


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("metadata.json", b"{}"),
        ("config.yaml", b"gates: {min_fpss: 3}"),
        ("config.yaml", b"[unclosed"),
        ("config.yaml", b"input_size: [8, 8]\nconfidence_threshold: 0.5\ngates: {max_memory_mb: .inf}"),
        ("config.yaml", b"input_size: [8, 8]\nconfidence_threshold: 0.5\noptimization: {cpu: %s}" % (b"a" * 2**17)),
    ],
    ids=["metadata", "gate", "yaml", "infinite", "long"],
)
async def test_documents_that_break_their_form_are_refused(agent, part, content):
    """Metadata or config that cannot be read is a refusal of the kind structure."""
    reply = await agent.hand_over(altered(release(1), part, content))
    assert isinstance(reply, Refused)
    assert reply.failure.kind == "structure"


async def test_metadata_of_another_release_is_refused(agent):
    """A release that says it is another one is none."""
    other = json.loads(release(1).parts["metadata.json"]) | {"name": "pose_yolov8n_coco_20250101"}
    reply = await agent.hand_over(altered(release(1), "metadata.json", json.dumps(other).encode()))
    assert isinstance(reply, Refused)


async def test_each_precision_loads_its_own_weights(agent, slot):
    """A release may hold its weights twice: the candidate's precision says which are loaded."""
    one = altered(release(1, factor=2.0, variants=["int8"]), "model.onnx", release(1, factor=3.0).parts["model.onnx"])
    one = altered(one, "model.int8.onnx", release(1, factor=2.0).parts["model.onnx"])
    assert await agent.hand_over(one) == Done()
    for precision, is_right in (("int8", True), ("fp32", False)):
        place = Place(ref=one.ref, candidate=replace(CPU, precision=precision))
        await agent.ask(Load(slot=slot, place=place))
        assert (await agent.ask(Prove(slot=slot, place=place)) == Done()) is is_right
        await agent.ask(Unload(slot=slot, place=place))


@pytest.mark.parametrize("variants", [[], ["fp16"], ["fp16", "int8"]])
async def test_weights_that_the_config_does_not_name_are_refused(agent, variants):
    """Parts and config name the same precisions, or it is no release."""
    one = altered(release(1, variants=variants), "model.int8.onnx", release(1).parts["model.onnx"])
    reply = await agent.hand_over(one)
    assert isinstance(reply, Refused)
    assert reply.failure.kind == "structure"
    assert "model.int8.onnx" in reply.failure.reason


async def test_parts_that_are_no_release_are_refused(agent):
    """A missing part, and one of a size that nothing has, are refused before memory is taken."""
    one = release(1)
    short = await agent.ask(Offer(ref=one.ref, parts=one.announced[:2]))
    assert isinstance(short, Refused)
    assert "golden.npz" in short.failure.reason


async def test_memory_is_given_back_when_nothing_needs_a_release(agent, slot):
    """A release that served and was unloaded is held no more; the serving one and the fall-back are."""
    old, new = release(1, factor=4.0), release(2, factor=5.0)
    await agent.serve(slot, old)
    await agent.serve(slot, new, fallback=old)
    assert {old.ref, new.ref} <= set((await agent.ask(Look())).held)
    await agent.ask(Unload(slot=slot, place=old.place))
    held = set((await agent.ask(Look())).held)
    assert (old.ref in held, new.ref in held) == (False, True)


async def test_a_runner_goes_on_without_its_agent(shared, camera, slot, x):
    """The agent's end changes nothing for cameras; the next one finds all facts."""
    first = await shared.agent()
    one = release(1)
    await first.serve(slot, one)
    await first.client.close()
    assert (await camera.infer(slot, x)).status == 200
    second = await shared.agent()
    facts = await second.until(slot, lambda facts: facts.serving == one.place)
    assert facts.counters.requests == 1
    await second.client.close()


async def test_load_twice_is_one_seat(agent, slot):
    """An agent that asks again what its predecessor asked gets the same seat."""
    one = release(1)
    await agent.hand_over(one)
    first, second = await asyncio.gather(*(agent.ask(Load(slot=slot, place=one.place)) for _ in range(2)))
    assert first == second


async def test_the_death_of_the_runner_fails_what_waits(tmp_path):
    """An order under way ends at once with TransferError, and so does the next one. Its seats die with it."""
    async with runner_in(tmp_path) as running:
        agent = await running.agent()
        one = release(1)
        loaded = await agent.load("a", one)
        trial = asyncio.create_task(agent.ask(Trial(slot="a", place=one.place, key="k", runs=10_000_000)))
        await asyncio.sleep(0)
        running.process.kill()
        with pytest.raises(TransferError):
            await trial
        with pytest.raises(TransferError):
            await agent.ask(Look())
        await eventually(lambda: not alive(loaded.pid))


def mappings(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def test_the_runner_loads_no_inference_library(shared, agent, slot):
    """Only seats do: no mapping of the runner's process is one of theirs."""
    await agent.serve(slot, release(1))
    maps = mappings(shared.process.pid)
    assert "onnxruntime" not in maps
    assert "openvino" not in maps


async def test_sigterm_answers_what_is_inside(tmp_path):
    """Requests that were taken are answered before the runner leaves; seats and sockets go with it."""
    async with runner_in(tmp_path) as running:
        agent = await running.agent()
        one = release(1, kind="loop", gates={"max_latency_p95_ms": 6000.0})  # slow is not hung
        loaded = await agent.serve("a", one)
        camera = await running.camera()
        frame = np.full(SHAPE, 300_000, np.float32)
        asked = asyncio.create_task(camera.infer("a", frame))
        await agent.until_asked()
        running.process.send_signal(signal.SIGTERM)
        assert (await asked).status == 200
        assert await running.process.wait() == 0
        assert not alive(loaded.pid)
        assert not running.door.exists()


async def test_stop_ends_the_runner(tmp_path):
    """The agent's Stop is answered, then the runner leaves in good order."""
    async with runner_in(tmp_path) as running:
        agent = await running.agent()
        await agent.load("a", release(1))
        assert await agent.ask(Stop()) == Done()
        assert await running.process.wait() == 0


async def test_another_user_is_not_heard(tmp_path, monkeypatch):
    """A process of a user other than the agent's is cut off before it is answered."""
    plain = Running.command
    monkeypatch.setattr(Running, "command", lambda self: [*plain(self), "--agent-uid", "12345"])
    running = Running(tmp_path)
    running.process = await asyncio.create_subprocess_exec(*running.command())
    await eventually(running.models.exists)
    with pytest.raises(TransferError):
        await RunnerClient(running.models).connect()
    running.process.terminate()
    await running.process.wait()


async def test_an_unknown_protocol_is_refused(shared):
    """A runner says which protocols it speaks, and hangs up."""
    channel = connect(shared.models, Answer)
    channel.send(Ask(id=1, order=Hello(protocol=99)))
    answer, _ = await channel.receive()
    assert "protocol 1" in answer.reply.failure.reason
    assert await channel.receive() is None
    channel.close()


async def test_nonsense_ends_the_connection_and_nothing_else(shared, agent):
    """Bytes that are no message cost their sender its connection."""
    channel = connect(shared.models, Answer)
    channel.sock.send(b"{}")
    assert await channel.receive() is None
    channel.close()
    assert await agent.ask(Look())


def pair(receives) -> tuple[Channel, Channel]:
    return tuple(Channel(one, receives) for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))


async def test_descriptors_of_a_refused_packet_are_closed():
    """A packet that is no message, or has too many descriptors, leaks none of them."""
    ours, theirs = pair(ToSeat)
    number = memory_file.arena("refused", 10)
    for packet, count in ((b"{}", 3), (b'{"type":"LaneOpen","lane":1}', 40), (b"x" * 200_000, 2)):
        socket.send_fds(ours.sock, [packet], [number] * count)
        with pytest.raises(InputError):
            await theirs.receive()
        assert held(os.getpid(), "memfd:refused") == 1
    ours.send(LaneOpen(lane=3), [number, number])
    message, received = await theirs.receive()
    assert (message, len(received)) == (LaneOpen(lane=3), 2)
    assert not any(os.get_inheritable(one) for one in received)
    close_all([*received, number])
    ours.close()
    assert await theirs.receive() is None
    theirs.close()


async def test_a_peer_that_does_not_read_is_gone():
    """Sending never waits: a full socket is an error."""
    ours, theirs = pair(ToSeat)
    with pytest.raises(TransferError, match="does not read"):  # noqa: PT012
        while True:
            ours.send(LaneOpen(lane=1))
    ours.close()
    theirs.close()


def test_a_memory_file_keeps_what_was_written():
    """Reserve, write, seal, digest and read agree; an empty file is one too."""
    for content in (b"", b"weights" * 10_000):
        number = memory_file.reserve("part", len(content))
        memory_file.write(number, content)
        memory_file.seal(number)
        assert memory_file.read(number) == content
        assert memory_file.digest(number) == hashlib.sha256(content).hexdigest()
        os.close(number)


def test_an_arena_never_shrinks():
    """A peer can grow it, and cannot make us fault on memory that we map."""
    number = memory_file.arena("lane", 4096)
    memory_file.grow(number, 10_000)
    with pytest.raises(PermissionError):
        os.ftruncate(number, 100)
    os.close(number)


def test_a_place_reads_well():
    """Logs name release and candidate."""
    assert str(Place(ref=release(1).ref, candidate=CPU)) == "defect_detection_ssd_plates_20250601 on cpu/fp32/1t"


def test_a_full_backlog_is_told_at_once(tmp_path):
    """Nobody takes a connection that only waits for one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "full"))
        listening.listen(0)
        one = connect(tmp_path / "full", Answer)
        with pytest.raises(TransferError, match="full"):
            connect(tmp_path / "full", Answer)
        assert one.sock.getpeername() == str(tmp_path / "full")
        one.close()
