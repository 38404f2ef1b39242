"""MLServer as a peer: its own environment in .cache/mlserver, its own process, asked over gRPC.

Its HTTP takes no binary tensors, and its default of one worker dies with a new uvloop: it runs in one process.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from agent.backends.session import Array
from tests.fakes.ports import free_ports

HOME = Path(__file__).parents[1] / ".cache" / "mlserver"
PACKAGES = ("mlserver==1.7.1", "uvloop==0.21.0", "onnxruntime>=1.23")
START_S = 60.0
MESSAGE_BYTES = 64 * 1024**2  # its own limit of 4 MB is below one frame
NAME = "bench"

Ask = Callable[[], object]


def why_not() -> str:
    """Why there is no MLServer here; empty when there is."""
    if (HOME / "ready").exists():
        return ""
    try:
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True, capture_output=True)
        subprocess.run([str(HOME / "bin" / "pip"), "install", "-q", *PACKAGES], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        return f"not installed: {error.stderr.decode().strip().splitlines()[-1]}"
    (HOME / "ready").touch()
    return ""


@contextmanager
def serving(
    path: Path, feeds: Mapping[str, Array], folder: Path, threads: int = 1
) -> Iterator[Callable[[], object] | None]:
    """How to ask MLServer for `feeds` on the model at `path`; None where it is not to be had."""
    if why_not():
        yield None
        return
    with started(path, folder, threads, workers=0) as address, connected(address) as client:
        yield asking(client, feeds)


@contextmanager
def started(path: Path, folder: Path, threads: int, workers: int) -> Iterator[str]:
    """The gRPC address of a server that computes in so many processes beside its own; 0: in its own."""
    ports = free_ports(3)
    lay_out(path, folder, ports, threads)
    environment = {**os.environ, "MLSERVER_PARALLEL_WORKERS": str(workers), "ORT_DISABLE_TELEMETRY": "1"}
    environment.pop("PYTHONPATH", None)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([HOME / "bin" / "mlserver", "start", folder], stdout=log, stderr=log, env=environment)
    address = f"127.0.0.1:{ports[1]}"
    try:
        with connected(address) as client:
            until_ready(client, server, folder / "log")
        yield address
    finally:
        server.terminate()
        server.wait()


@contextmanager
def connected(address: str) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    """A connection that ends."""
    client = tritonclient.grpc.InferenceServerClient(address)
    try:
        yield client
    finally:
        client.close()


def asking(client: tritonclient.grpc.InferenceServerClient, feeds: Mapping[str, Array]) -> Ask:
    """How to ask over a connection."""
    inputs = [tritonclient.grpc.InferInput(name, array.shape, "FP32") for name, array in feeds.items()]

    def ask() -> None:
        for tensor, array in zip(inputs, feeds.values(), strict=True):
            tensor.set_data_from_numpy(array)
        answer = client.infer(NAME, inputs)
        answer.as_numpy(answer.get_response().outputs[0].name)

    return ask


def lay_out(path: Path, folder: Path, ports: list[int], threads: int) -> None:
    """MLServer's settings for one model."""
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("_mlserver_model.py"), folder / "edge_bench_model.py")
    http, grpc, metrics = ports
    server = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "host": "127.0.0.1", "debug": False}
    server["grpc_max_message_length"] = MESSAGE_BYTES
    parameters = {"uri": str(path), "extra": {"threads": threads}}
    model = {"name": NAME, "implementation": "edge_bench_model.OnnxModel", "parameters": parameters}
    (folder / "settings.json").write_text(json.dumps(server), encoding="utf-8")
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")


def until_ready(client: object, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return when the model can be asked.

    Raises:
        RuntimeError: it does not start; says what it printed.
    """
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(InferenceServerException):
            if client.is_model_ready(NAME):  # type: ignore[attr-defined]
                return
        time.sleep(0.1)
    raise RuntimeError(f"MLServer did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")
