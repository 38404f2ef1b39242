"""The door speaks the Open Inference Protocol, and says what it wants of whoever does not."""

import asyncio
import gzip
import json
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.http as triton

from agent.core.messages import Unload
from agent.runner.lanes import LANES
from tests.runner.conftest import PATIENCE_S, SHAPE, binary, descriptors_of, eventually, http, release

JSON_REQUEST = {"inputs": [{"name": "x", "shape": SHAPE, "datatype": "FP32", "data": np.ones(SHAPE).tolist()}]}


async def test_a_camera_gets_what_the_model_computes(camera, served, x):
    """The answer is the model's, and names slot, version, release and candidate."""
    answer = await camera.infer(served, x)
    np.testing.assert_array_equal(answer.y(), x * 2)
    assert (answer.json["model_name"], answer.json["model_version"]) == (served, "20250601")
    assert answer.json["parameters"] == {"release": "defect_detection_ssd_plates_20250601", "candidate": "cpu/fp32/1t"}


async def test_numbers_in_json(camera, served):
    """A client without binary tensors sends and gets numbers; its id comes back."""
    body = json.dumps({"id": "frame 7", **JSON_REQUEST}).encode()
    answer = await camera.ask("POST", f"/v2/models/{served}/infer", body)
    assert answer.json["id"] == "frame 7"
    assert answer.json["outputs"][0] == {"name": "y", "datatype": "FP32", "shape": list(SHAPE), "data": [2.0] * 192}


async def test_tritonclient_works_unmodified(shared, served, x):
    """NVIDIA's client asks for metadata, configuration, statistics and inference, with and without gzip."""

    def talk():
        client = triton.InferenceServerClient(shared.tcp)
        assert client.is_server_live()
        assert client.is_model_ready(served)
        metadata = client.get_model_metadata(served)
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": list(SHAPE)}]
        assert client.get_model_config(served)["input"][0]["data_type"] == "TYPE_FP32"
        given = triton.InferInput("x", x.shape, "FP32")
        given.set_data_from_numpy(x)
        named = triton.InferRequestedOutput("y", binary_data=True)
        for outputs in (None, [named], [triton.InferRequestedOutput("y", binary_data=False)]):
            for packing in (None, "gzip", "deflate"):
                terms = {"priority": 1, "timeout": 30_000_000}
                result = client.infer(served, [given], outputs=outputs, request_compression_algorithm=packing, **terms)
                np.testing.assert_allclose(result.as_numpy("y"), x * 2)
        stats = client.get_inference_statistics(served)["model_stats"][0]
        assert stats["inference_count"] == 9
        assert served in {model["name"] for model in client.get_model_repository_index()}
        client.close()

    await asyncio.to_thread(talk)


async def test_requests_sent_ahead_are_answered_in_order(camera, served, x):
    """A client that does not wait for its answers gets each, in the order it asked."""
    frames = [x + number for number in range(5)]
    for frame in frames:
        body, headers = binary(frame)
        camera.writer.write(http("POST", f"/v2/models/{served}/infer", body, **headers))
    for frame in frames:
        np.testing.assert_array_equal((await camera.answer()).y(), frame * 2)


async def test_a_request_in_small_pieces(camera, served, x):
    """Where the network cuts a request makes no difference."""
    body, headers = binary(x)
    request = http("POST", f"/v2/models/{served}/infer", body, **headers)
    for start in range(0, len(request), 7):
        camera.writer.write(request[start : start + 7])
        await camera.writer.drain()
        await asyncio.sleep(0)
    np.testing.assert_array_equal((await camera.answer()).y(), x * 2)


async def test_a_client_that_waits_for_our_word(camera, served, x):
    """Expect: 100-continue, as curl sends it with large bodies."""
    body, headers = binary(x, Expect="100-continue")
    request = http("POST", f"/v2/models/{served}/infer", body, **headers)
    camera.writer.write(request[: -len(body)])
    assert await camera.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    camera.writer.write(body)
    np.testing.assert_array_equal((await camera.answer()).y(), x * 2)


async def test_cameras_that_leave_in_the_middle_take_no_lane_along(shared, served, x):
    """More clients than lanes stop in the middle of a body; the next one is served."""
    body, headers = binary(x)
    for _ in range(LANES + 8):
        camera = await shared.camera()
        camera.writer.write(http("POST", f"/v2/models/{served}/infer", body, **headers)[:-9])
        with suppress(OSError):  # refused: the door has not seen yet that the others left
            await camera.writer.drain()
        camera.writer.close()
    async with asyncio.timeout(PATIENCE_S):
        while not await is_served(shared, served, x):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def is_served(shared, slot, x) -> bool:
    """Whether a new camera gets an answer; it is turned away while the door has not seen that others left."""
    camera = await shared.camera()
    try:
        return (await camera.infer(slot, x)).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False
    finally:
        camera.writer.close()


async def test_many_cameras_at_once(shared, served, x):
    """Forty cameras wait for each other, and each gets its own answer."""
    cameras = [await shared.camera() for _ in range(40)]
    frames = [x + number for number in range(40)]
    answers = await asyncio.gather(*(one.infer(served, frame) for one, frame in zip(cameras, frames, strict=True)))
    for answer, frame in zip(answers, frames, strict=True):
        np.testing.assert_array_equal(answer.y(), frame * 2)


async def test_any_number_of_rows(agent, camera, slot):
    """A shape of -1 takes what comes; large and small requests share a connection."""
    await agent.serve(slot, release(1, kind="batch"))
    for rows in (1, 7, 3000, 2):
        frames = np.random.default_rng(rows).random((rows, *SHAPE[1:]), np.float32)
        np.testing.assert_array_equal((await camera.infer(slot, frames)).y(), frames * 2)


async def test_a_camera_frame_is_normalised_as_the_config_says(agent, camera, slot):
    """uint8 NHWC RGB pixels become the float NCHW BGR tensor of the signed config."""
    how = {"layout": "NCHW", "colour": "BGR", "scale": 1 / 255, "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0]}
    await agent.serve(slot, release(1, preprocessing=how))
    frame = np.random.default_rng(3).integers(0, 256, (1, 8, 8, 3), np.uint8)
    answer = await camera.infer(slot, frame, datatype="UINT8")
    wanted = ((frame[..., ::-1] / 255 - how["mean"]) / how["std"]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(answer.y(), wanted * 2, rtol=1e-5, atol=1e-6)


def changed(**fields) -> bytes:
    return json.dumps({"inputs": [JSON_REQUEST["inputs"][0] | fields]}).encode()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "JSON"),
        (b"[]", "JSON"),
        (b"\xff{", "JSON"),
        (changed(name="image"), "['x']"),
        (changed(shape=[1, 3, 8, 9]), "216 elements"),
        (changed(shape=[3, 8, 8]), "[1, 3, 8, 8]"),
        (changed(shape=[-1, 3, 8, 8]), "JSON"),
        (changed(shape=[2**40] * 4), "elements"),
        (changed(datatype="FP64"), "FP32 [1, 3, 8, 8]"),
        (changed(datatype="STRING"), "FP32"),
        (changed(data=["a"] * 192), "numbers"),
        (changed(data=[[1, 2], [3]]), "regular"),
        (changed(data={"a": 1}), "numbers"),
        (changed(data=None), "binary_data_size"),
        (changed(data=None, parameters={"binary_data_size": 12}), "768"),
        (changed(data=None, parameters={"binary_data_size": 768}), "768"),
        (changed(parameters={"shared_memory_region": "r"}), "shared_memory_byte_size"),
        (json.dumps({"inputs": JSON_REQUEST["inputs"] * 2}).encode(), "twice"),
        (json.dumps({"inputs": []}).encode(), "['x']"),
        (json.dumps({**JSON_REQUEST, "outputs": [{"name": "boxes"}]}).encode(), "['y']"),
        (json.dumps(JSON_REQUEST).encode() + b" " * 9, ""),
    ],
)
async def test_a_wrong_request_is_told_what_would_be_right(camera, served, x, body, says):
    """400 with a sentence; the connection and the model go on."""
    answer = await camera.ask("POST", f"/v2/models/{served}/infer", body)
    assert answer.status == (400 if says else 200)
    assert not says or says in answer.json["error"]
    assert (await camera.infer(served, x)).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (http("POST", "/v2/models/nothing/infer", b"{}"), 404),
        (http("GET", "/v2/models/nothing"), 404),
        (http("GET", "/etc/passwd"), 404),
        (http("GET", "/v2/models/{slot}/infer"), 405),
        (http("POST", "/v2/models/{slot}", b"{}"), 405),
        (http("GET", "/v2/models/{slot}/versions/20200101"), 404),
        (http("POST", "/v2/models/{slot}/versions/20200101/infer", json.dumps(JSON_REQUEST).encode()), 404),
        (http("POST", "/v2/models/{slot}/infer", Content_Length="999999999"), 413),
        (http("POST", "/v2/models/{slot}/infer", b"{}", Inference_Header_Content_Length="3"), 400),
        (http("POST", "/v2/models/{slot}/infer", b"{}", Inference_Header_Content_Length="-1"), 400),
        (http("POST", "/v2/models/{slot}/infer", b"{}", Content_Encoding="gzip"), 400),
        (http("POST", "/v2/models/{slot}/infer", gzip.compress(bytes(200_000_000), 1), Content_Encoding="gzip"), 400),
        (http("POST", "/v2/models/{slot}/infer", b"0\r\n\r\n", Transfer_Encoding="chunked", Content_Length=""), 400),
        (b"POST /v2/models/{slot}/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /v2/models/{slot}/infer HTTP/1.1\r\nHost: a\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    ],
    ids=range(18),
)
async def test_a_request_that_is_none_is_refused(camera, served, request_bytes, status):
    """Each with its status and a sentence; never a reset connection in place of an answer."""
    camera.writer.write(request_bytes.replace(b"{slot}", served.encode()))
    answer = await camera.answer()
    assert answer.status == status
    assert answer.json["error"]


async def test_bad_requests_leave_nothing_behind(shared, served, x):
    """After hundreds of them, of each kind, the runner has as many descriptors and as much memory as before."""
    good, headers = binary(x)
    bad = [
        http("POST", f"/v2/models/{served}/infer", changed(shape=[1, 3, 8, 9])),
        http("POST", f"/v2/models/{served}/infer", changed(datatype="FP64")),
        http("POST", f"/v2/models/{served}/infer", changed(name="image")),
        http("POST", f"/v2/models/{served}/infer", changed(data=None, parameters={"binary_data_size": 12})),
        http("POST", f"/v2/models/{served}/infer", changed(data=None, parameters={"shared_memory_region": "r"})),
        http("POST", f"/v2/models/{served}/infer", gzip.compress(bytes(3_000_000)), Content_Encoding="gzip"),
        http("POST", f"/v2/models/{served}/infer", bytes(4_000_000)),
        http("POST", f"/v2/models/{served}/infer", good, **headers)[:-9],  # truncated
        http("POST", f"/v2/models/{served}/infer", b"{", Content_Length="100000000"),
        http("POST", "/v2/models/nothing/infer", good, **headers),
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"\r\n" * 4000,
    ]

    async def knock(request: bytes) -> None:
        camera = await shared.camera()
        camera.writer.write(request)
        camera.writer.write_eof()
        await camera.reader.read()
        camera.writer.close()

    async def all_of_them(times: int) -> tuple[int, int]:
        for _ in range(times):
            await asyncio.gather(*(knock(request) for request in bad))
        return descriptors_of(shared), psutil.Process(shared.process.pid).memory_info().rss

    files, memory = await all_of_them(5)
    _, now = await all_of_them(25)
    await eventually(lambda: descriptors_of(shared) <= files)
    assert now < memory + 32_000_000  # one body that is kept in each round would be a hundred


async def test_numbers_that_do_not_fit_their_type_are_refused(agent, camera, slot):
    """-1 is no UINT8, and a fraction is no integer: nothing is cut silently."""
    await agent.serve(slot, release(1, preprocessing={"layout": "NHWC"}))
    for value in (-1, 256, 0.5, True):
        tensor = {"name": "x", "shape": SHAPE, "datatype": "UINT8", "data": [value] * 192}
        answer = await camera.ask("POST", f"/v2/models/{slot}/infer", json.dumps({"inputs": [tensor]}).encode())
        assert answer.status == (200 if value is True else 400), value


async def test_a_slot_without_a_model_says_when_to_ask_again(agent, camera, slot, x):
    """503 with Retry-After, at once when nothing is on its way."""
    one = release(1)
    await agent.load(slot, one)
    answer = await camera.infer(slot, x)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert (await camera.ask("GET", f"/v2/models/{slot}/ready")).status == 503


async def test_figures_for_people(camera, served, x):
    """Index, statistics and Prometheus text tell of the same requests; no client makes a probe of his own."""
    for _ in range(2):
        await camera.infer(served, x)
    await camera.infer(served, x, edge_probe="1")
    index = (await camera.ask("POST", "/v2/repository/index")).json
    assert {"name": served, "version": "20250601", "state": "READY", "reason": ""} in index
    stats = (await camera.ask("GET", f"/v2/models/{served}/stats")).json["model_stats"][0]
    assert stats["inference_stats"]["success"]["count"] == 3
    assert stats in (await camera.ask("GET", "/v2/models/stats")).json["model_stats"]
    text = (await camera.ask("GET", "/metrics")).body.decode()
    label = f'model="{served}",version="20250601"'
    assert f"nv_inference_request_success{{{label}}} 3.0" in text
    failed = f'nv_inference_request_failure{{model="{served}",reason="BACKEND",version="20250601"}} 0.0'
    assert failed in text
    spent = {name: float(value) for name, value in re.findall(rf"nv_inference_(\w+)_duration_us{{{label}}} (.*)", text)}
    assert spent["request"] == pytest.approx(spent["queue"] + spent["compute_input"] + spent["compute_infer"])
    assert f"nv_inference_pending_request_count{{{label}}} 0.0" in text
    assert f'edge_slot_requests_total{{release="defect_detection_ssd_plates_20250601",slot="{served}"}} 3.0' in text


async def test_statistics_are_of_each_version(agent, camera, slot, x):
    """A version's counts go on over swaps as long as it is loaded; one that left has none."""
    one, two, three = release(1), release(2), release(3)
    await agent.serve(slot, one)
    await camera.infer(slot, x)
    await agent.serve(slot, two, fallback=one)
    for _ in range(2):
        await camera.infer(slot, x)
    await agent.promote(slot, one, fallback=two)
    await camera.infer(slot, x)
    assert await answered(camera, slot) == {"20250601": 2, "20250602": 2}
    await agent.ask(Unload(slot=slot, place=two.place))
    await agent.serve(slot, three, fallback=one)
    assert await answered(camera, slot) == {"20250601": 2, "20250603": 0}
    assert (await camera.ask("GET", f"/v2/models/{slot}/versions/20250602/stats")).status == 404


async def answered(camera, slot) -> dict[str, int]:
    told = (await camera.ask("GET", f"/v2/models/{slot}/stats")).json["model_stats"]
    return {one["version"]: one["inference_stats"]["success"]["count"] for one in told}


async def test_a_client_that_closes_after_its_question(camera, served, x):
    """Connection: close, and HTTP/1.0, end the connection behind the answer."""
    body, headers = binary(x, Connection="close")
    camera.writer.write(http("POST", f"/v2/models/{served}/infer", body, **headers))
    assert (await camera.answer()).headers["connection"] == "close"
    assert await camera.reader.read() == b""


async def test_what_a_large_request_took_is_given_back(shared, agent, camera, slot):
    """Neither runner nor seat keeps the memory of a request beyond what a lane may hold."""
    loaded = await agent.serve(slot, release(1, kind="batch"))
    many = np.ones((16_000, *SHAPE[1:]), np.float32)  # 12 MB, and 12 of the answer
    assert (await camera.infer(slot, many)).status == 200

    def mapped(pid):
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
        spans = (line.split()[0].split("-") for line in lines if "request-" in line or "answer-" in line)
        return max((int(end, 16) - int(start, 16) for start, end in spans), default=0)

    await eventually(lambda: max(mapped(shared.process.pid), mapped(loaded.pid)) < many.nbytes)
