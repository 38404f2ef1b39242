"""The gRPC door, asked by NVIDIA's client, unmodified, and by clients that send nonsense."""

import asyncio
import os
import random
import signal
import sys
from functools import partial
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as looped
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException, shared_memory

from agent.core.messages import Done, Look, Unload
from agent.runner import grpc_messages, main
from agent.runner.door import Door
from tests.fakes.ports import free_ports
from tests.runner.conftest import SHAPE, release, runner_in


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(tmp_path_factory):
    """A runner with doors for gRPC on a loopback port and on a unix socket."""
    folder, (port,) = tmp_path_factory.mktemp("grpc"), free_ports(1)
    words = ("--grpc", f"127.0.0.1:{port}", "--grpc", f"unix:{folder / 'grpc.sock'}")
    async with runner_in(folder, "", *words) as running:
        running.tcp = f"127.0.0.1:{port}"
        yield running


@pytest.fixture
def client(shared):
    one = triton.InferenceServerClient(shared.tcp)
    yield one
    one.close()


def given(x, name="x", datatype="FP32"):
    tensor = triton.InferInput(name, x.shape, datatype)
    tensor.set_data_from_numpy(x)
    return [tensor]


async def refused(call, *words, **more):
    """The status and sentence of a call that fails."""
    with pytest.raises(InferenceServerException) as told:
        await asyncio.to_thread(partial(call, *words, **more))
    return told.value.status().removeprefix("StatusCode."), told.value.message()


async def test_tritonclient_works_unmodified(client, served, x):
    """NVIDIA's client asks for health, metadata, configuration, statistics, index and inference."""

    def talk():
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(served)
        assert not client.is_model_ready("nothing")
        assert "system_shared_memory" in client.get_server_metadata().extensions
        metadata = client.get_model_metadata(served, as_json=True)
        assert metadata["versions"] == ["20250601"]
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [str(one) for one in SHAPE]}]
        config = client.get_model_config(served).config
        assert (config.input[0].data_type, list(config.input[0].dims)) == (model_config_pb2.TYPE_FP32, list(SHAPE))
        for outputs in (None, [triton.InferRequestedOutput("y")]):
            answer = client.infer(served, given(x), outputs=outputs, request_id="frame 7")
            np.testing.assert_array_equal(answer.as_numpy("y"), x * 2)
        said = answer.get_response()
        assert (said.id, said.model_name, said.model_version) == ("frame 7", served, "20250601")
        assert said.parameters["release"].string_param == "defect_detection_ssd_plates_20250601"
        assert said.parameters["candidate"].string_param == "cpu/fp32/1t"
        for name in (served, ""):
            stats = {one.name: one for one in client.get_inference_statistics(name).model_stats}
            assert stats[served].inference_stats.success.count == 2
        index = {one.name: one for one in client.get_model_repository_index().models}
        assert (index[served].state, index[served].version) == ("READY", "20250601")

    await asyncio.to_thread(talk)


async def test_on_a_unix_socket_and_in_a_loop(shared, served, x):
    """The asyncio client, at the unix socket; many requests at once."""
    async with looped.InferenceServerClient(f"unix:{shared.folder / 'grpc.sock'}") as client:
        answers = await asyncio.gather(*(client.infer(served, given(x + number)) for number in range(20)))
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.as_numpy("y"), (x + number) * 2)


async def test_a_stream_is_answered_in_order(client, served, x):
    """A stream of requests; one that is wrong has its sentence, and the others go on."""
    answers = asyncio.Queue()
    loop = asyncio.get_running_loop()
    client.start_stream(lambda result, error: loop.call_soon_threadsafe(answers.put_nowait, (result, error)))
    for frame in (x, x[:, :, :4], x + 1):
        client.async_stream_infer(served, given(frame))
    (one, _), (_, error), (other, _) = [await asyncio.wait_for(answers.get(), 30) for _ in range(3)]
    np.testing.assert_array_equal(one.as_numpy("y"), x * 2)
    assert "[1, 3, 8, 8]" in str(error)
    np.testing.assert_array_equal(other.as_numpy("y"), (x + 1) * 2)
    await asyncio.to_thread(client.stop_stream)


async def test_shared_memory_regions(client, served, x):
    """Frames and answers pass in regions; the same ones are seen by HTTP."""

    def talk():
        region = shared_memory.create_shared_memory_region("frames", f"/edge_grpc_{os.getpid()}", 2 * x.nbytes)
        try:
            shared_memory.set_shared_memory_region(region, [x])
            client.register_system_shared_memory("frames", f"/edge_grpc_{os.getpid()}", 2 * x.nbytes)
            assert client.get_system_shared_memory_status().regions["frames"].byte_size == 2 * x.nbytes
            tensor = triton.InferInput("x", x.shape, "FP32")
            tensor.set_shared_memory("frames", x.nbytes)
            output = triton.InferRequestedOutput("y")
            output.set_shared_memory("frames", x.nbytes, offset=x.nbytes)
            answer = client.infer(served, [tensor], outputs=[output])
            assert list(answer.get_output("y").shape) == list(x.shape)
            y = shared_memory.get_contents_as_numpy(region, np.float32, x.shape, offset=x.nbytes)
            np.testing.assert_array_equal(y, x * 2)
            client.unregister_system_shared_memory("frames")
            assert not client.get_system_shared_memory_status().regions
        finally:
            shared_memory.destroy_shared_memory_region(region)

    await asyncio.to_thread(talk)
    assert (await refused(client.get_system_shared_memory_status, "frames"))[0] == "INVALID_ARGUMENT"
    assert (await refused(client.register_system_shared_memory, "a", "/../etc/passwd", 10))[0] == "INVALID_ARGUMENT"


async def typed(shared, served, **fields):
    """What a request written by hand is answered."""
    request = service_pb2.ModelInferRequest(model_name=served)
    json_format.ParseDict({"inputs": [{"name": "x", "shape": list(SHAPE), "datatype": "FP32"} | fields]}, request)
    async with grpc.aio.insecure_channel(shared.tcp) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        return await ask(request)


async def test_typed_contents(shared, served, x):
    """Numbers in the message, as clients without raw contents send them."""
    answer = await typed(shared, served, contents={"fp32_contents": x.ravel().tolist()})
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], np.float32), x.ravel() * 2)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "neither data"),
        ({"contents": {"fp32_contents": [1.0]}}, "192"),
        ({"contents": {"bytes_contents": ["AAAA"]}, "datatype": "BYTES"}, "BYTES"),
        ({"contents": {"fp32_contents": [1.0] * 192}, "name": "image"}, "['x']"),
        ({"contents": {"fp32_contents": [1.0] * 192}, "shape": [-1, 3, 8, 8]}, "shape"),
        ({"contents": {"fp32_contents": [1.0] * 192}, "datatype": "FP65"}, "FP65"),
        ({"parameters": {"binary_data_size": {"int64_param": 768}}}, "0 came"),
        ({"parameters": {"shared_memory_region": {"string_param": "none"}}}, "shared_memory"),
    ],
)
async def test_a_wrong_request_is_told_what_would_be_right(shared, served, fields, says):
    """INVALID_ARGUMENT with the sentence that HTTP has."""
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await typed(shared, served, **fields)
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in told.value.details()


async def test_statuses_say_who_must_act(agent, client, slot, x):
    """Unknown is NOT_FOUND, too early UNAVAILABLE, wrong INVALID_ARGUMENT, another version NOT_FOUND."""
    one = release(1)
    assert await refused(client.infer, "nothing", given(x)) == ("NOT_FOUND", partial_of("unknown model 'nothing'"))
    await agent.load(slot, one)
    assert (await refused(client.infer, slot, given(x)))[0] == "UNAVAILABLE"
    assert (await refused(client.get_model_metadata, slot))[0] == "UNAVAILABLE"
    await agent.promote(slot, one)
    assert (await refused(client.infer, slot, given(x[:, :, :4])))[0] == "INVALID_ARGUMENT"
    assert (await refused(client.infer, slot, given(x), model_version="20200101"))[0] == "NOT_FOUND"
    assert (await refused(client.get_model_config, slot, "20200101"))[0] == "NOT_FOUND"
    assert not client.is_model_ready(slot, "20200101")
    assert (await refused(client.load_model, slot))[0] == "UNIMPLEMENTED"


class partial_of(str):  # noqa: N801 - reads as what it is
    """Equal to every text that holds it."""

    __slots__ = ()

    def __eq__(self, other):
        return str(self) in other

    __hash__ = str.__hash__


async def test_a_message_that_is_too_long(client, served):
    """Beyond the limit it is refused before it is in memory, also one that was packed small; the connection goes on."""
    large = np.zeros((44_000, *SHAPE[1:]), np.float32)
    for packing in (None, "gzip"):
        call = partial(client.infer, served, given(large), compression_algorithm=packing)
        assert (await refused(call))[0] == "RESOURCE_EXHAUSTED"
    assert client.is_server_live()


async def test_nonsense_is_refused(shared, served, client):
    """Bytes that are no message end in a status, and the server goes on."""
    async with grpc.aio.insecure_channel(shared.tcp) as channel:
        for method, content, status in (
            ("ModelInfer", b"\xff" * 100, "INVALID_ARGUMENT"),
            ("ModelReady", b"\x0a\x02\xff\xfe", "INVALID_ARGUMENT"),
            ("Nothing", b"", "UNIMPLEMENTED"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(content)
            assert told.value.code().name == status
    _, writer = await asyncio.open_connection(*shared.tcp.split(":"))
    writer.write(b"GET / HTTP/1.1\r\n\r\n" * 1000)
    writer.close()
    assert client.is_model_ready(served)


def broken(seed, x, served):
    """Requests like those of clients, each with a few bytes changed, left out or doubled."""
    chance = random.Random(seed)
    whole = service_pb2.ModelInferRequest(model_name=served, id="7", raw_input_contents=[x.tobytes()])
    region = {"shared_memory_region": {"string_param": "r"}, "shared_memory_byte_size": {"int64_param": 768}}
    tensor = {"name": "x", "shape": list(SHAPE), "datatype": "FP32"}
    outputs, waits = (
        [{"name": "y", "parameters": region}],
        {"priority": {"uint64_param": 1}, "timeout": {"int64_param": 9}},
    )
    typed = {"contents": {"fp32_contents": x.ravel().tolist()}}
    for more in (
        {},
        {"outputs": outputs},
        {"parameters": waits},
        {"inputs": [tensor | typed]},
        {"inputs": [tensor | {"parameters": region}]},
    ):
        request = service_pb2.ModelInferRequest()
        request.CopyFrom(whole)
        json_format.ParseDict({"inputs": [tensor]} | more, request)
        if more.get("inputs"):
            del request.raw_input_contents[:]
        for _ in range(150):
            content = bytearray(request.SerializeToString())
            for _ in range(chance.randint(0, 3)):
                place = min(int(chance.expovariate(1 / 60)), len(content) - 1)  # most of a message is pixels
                match chance.randrange(3):
                    case 0:
                        content[place] = chance.randrange(256)
                    case 1:
                        del content[place : place + chance.randint(1, 9)]
                    case 2:
                        content[place:place] = content[place : place + chance.randint(1, 9)]
            yield bytes(content)


async def test_whatever_chance_makes_of_a_request_has_an_answer(agent, shared, x):
    """A thousand broken requests: each has a status that says who must act, and none takes a lane or the seat along."""
    served = "like_no_other"  # no broken name is that of a slot without a model
    await agent.serve(served, release(1))
    (seat,) = (await agent.ask(Look())).slots[served].seats
    statuses = {}
    async with grpc.aio.insecure_channel(shared.tcp) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for content in broken(1, x, served):
            answered = call(content)
            statuses[await answered.code()] = content
    foreseen = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"}
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= {status.name for status in statuses} <= foreseen, statuses
    facts = (await agent.ask(Look())).slots[served]
    assert ([one.pid for one in facts.seats], facts.counters.errors) == ([seat.pid], 0)


async def test_more_connections_than_are_taken(client, served, shared):
    """Those too many are closed; when they are gone there is room again."""
    lines = [await asyncio.open_connection(*shared.tcp.split(":")) for _ in range(300)]
    read = [asyncio.create_task(reader.read()) for reader, _ in lines]
    done, _ = await asyncio.wait(read, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    assert done.pop().result() == b""
    for task, (_, writer) in zip(read, lines, strict=True):
        task.cancel()
        writer.close()
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(ready, client, served):
            pass


def ready(client, served):
    try:
        return client.is_model_ready(served, client_timeout=5)
    except InferenceServerException:
        return False


async def test_deadlines(agent, client, slot, x):
    """A request's own timeout passes while it waits, or its caller's: DEADLINE_EXCEEDED, and its place is free."""
    one = release(1)
    await agent.serve(slot, one, hold_s=20.0)
    await agent.ask(Unload(slot=slot, place=one.place))
    status, reason = await refused(client.infer, slot, given(x), timeout=50_000)
    assert (status, "timeout" in reason) == ("DEADLINE_EXCEEDED", True)
    for _ in range(70):  # more than there are lanes
        assert (await refused(client.infer, slot, given(x), client_timeout=0.01))[0] == "DEADLINE_EXCEEDED"
    await agent.serve(slot, one)
    np.testing.assert_array_equal((await asyncio.to_thread(client.infer, slot, given(x))).as_numpy("y"), x * 2)


async def test_a_rollout_under_load_loses_nothing(shared, agent, slot, x):
    """Two versions swap back and forth; each answer is right for the version that it names."""
    old, new = release(1), release(2, factor=3.0)
    await agent.serve(slot, old)
    stop, answers = asyncio.Event(), []

    async def watch(client):
        while not stop.is_set():
            answers.append(await client.infer(slot, given(x)))

    async with looped.InferenceServerClient(shared.tcp) as client:
        watching = [asyncio.create_task(watch(client)) for _ in range(4)]
        for one, other in ((new, old), (old, new)):
            loaded = await agent.serve(slot, one, fallback=other)
            assert await agent.ask(Unload(slot=slot, place=other.place)) == Done()
        await agent.load(slot, new)
        await agent.promote(slot, old, fallback=new)
        os.kill(loaded.pid, signal.SIGKILL)
        await agent.until(slot, lambda facts: facts.serving == new.place)
        stop.set()
        await asyncio.gather(*watching)
    for answer in answers:
        factor = {"20250601": 2.0, "20250602": 3.0}[answer.get_response().model_version]
        np.testing.assert_array_equal(answer.as_numpy("y"), x * np.float32(factor))
    assert {answer.get_response().model_version for answer in answers} == {"20250601", "20250602"}


OTHER_NAMES = {
    "Named": ("ModelReadyRequest", "ModelMetadataRequest", "ModelConfigRequest", "ModelStatisticsRequest"),
    "TensorMetadata": ("ModelMetadataResponse.TensorMetadata",),
    "Value": ("InferParameter",),
    "Parameter": ("ModelInferRequest.ParametersEntry", "ModelInferResponse.ParametersEntry"),
    "Contents": ("InferTensorContents",),
    "Input": ("ModelInferRequest.InferInputTensor",),
    "Output": ("ModelInferRequest.InferRequestedOutputTensor",),
    "InferOutput": ("ModelInferResponse.InferOutputTensor",),
    "ConfigInput": ("ModelInput",),
    "ConfigOutput": ("ModelOutput",),
    "Duration": ("StatisticDuration",),
    "Statistics": ("InferStatistics",),
    "BatchStatistics": ("InferBatchStatistics",),
    "ModelIndex": ("RepositoryIndexResponse.ModelIndex",),
    "Region": ("SystemSharedMemoryStatusResponse.RegionStatus", "SystemSharedMemoryRegisterRequest"),
    "RegionEntry": ("SystemSharedMemoryStatusResponse.RegionsEntry",),
    "Empty": ("ServerLiveRequest", "SystemSharedMemoryRegisterResponse", "SystemSharedMemoryUnregisterResponse"),
}


@pytest.mark.parametrize("line", grpc_messages.TABLE.strip().splitlines(), ids=lambda line: line.partition(":")[0])
def test_the_transcription_is_tritons(line):
    """Each field of our table has the number and type that NVIDIA's client was generated with."""
    name, ours = line.partition(":")[0], grpc_messages.message(line.partition(":")[0]).DESCRIPTOR
    for full in OTHER_NAMES.get(name, (name,)):
        home = (
            model_config_pb2 if full.startswith(("ModelInput", "ModelOutput")) or full == "ModelConfig" else service_pb2
        )
        first, *nested = full.split(".")
        theirs = home.DESCRIPTOR.message_types_by_name[first]
        for one in nested:
            theirs = theirs.nested_types_by_name[one]
        numbers = {field.number: field for field in theirs.fields}
        for field in ours.fields:
            other = numbers[field.number]
            assert (field.name, field.type, field.is_repeated) == (other.name, other.type, other.is_repeated)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "10.0.0.1:8001", "8001", "localhost:x", "unix-abstract:door"])
async def test_an_address_of_the_network_is_refused(address):
    """The door knows no users: it is on this machine alone."""
    with pytest.raises(SystemExit, match="loopback"):
        await main.grpc_door(None, [address])


@pytest.mark.parametrize("name", ["127.0.0.1:{port}", "localhost:{port}", "unix:{folder}/s", "unix:{folder}", "unix:"])
async def test_an_address_that_is_taken_is_told(tmp_path, monkeypatch, name):
    """Two runners never share an address, each with half of the clients; nor is anything made of a folder."""
    monkeypatch.chdir(tmp_path)
    port = free_ports(1)[0]
    taken = [f"127.0.0.1:{port}", f"unix:{tmp_path}/s"]
    (first,) = await main.grpc_door(SimpleNamespace(door=Door({}, None)), taken)
    mode = tmp_path.stat().st_mode
    with pytest.raises(SystemExit, match=r"taken|another process listens|no socket can be made|another file"):
        await main.grpc_door(SimpleNamespace(door=Door({}, None)), [name.format(port=port, folder=tmp_path)])
    assert tmp_path.stat().st_mode == mode
    async with grpc.aio.insecure_channel(taken[1]) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
    await first.stop(None)


async def test_without_the_extra_it_says_what_to_install(monkeypatch):
    """Who asks for the door and has no grpcio is told its name."""
    monkeypatch.delitem(sys.modules, "agent.runner.grpc_door")
    monkeypatch.delattr("agent.runner.grpc_door")
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(SystemExit, match=r"edge-model-agent\[grpc\]"):
        await main.grpc_door(None, ["127.0.0.1:8001"])
