"""A server that computes nothing: it reads each request whole and sends one answer, always the same.

`python -m benchmarks._null_server PORT NAME=BYTES ...`: what a client and the loopback cost, and next to nothing else.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

LARGEST = 32 * 1024 * 1024
PATIENCE_S = 10.0


@contextmanager
def started(port: int, outputs: Mapping[str, int]) -> Iterator[str]:
    """The address of one that answers with these outputs, in bytes by name."""
    words = [f"{name}={size}" for name, size in outputs.items()]
    with subprocess.Popen([sys.executable, "-m", "benchmarks._null_server", str(port), *words]) as process:
        try:
            end = time.monotonic() + PATIENCE_S
            while not listens(port) and time.monotonic() < end:
                time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """Answer one client after the other, for ever."""
    outputs = {name: int(size) for name, _, size in (word.rpartition("=") for word in sys.argv[2:])}
    answer = answer_of(outputs)
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as door:
        while True:
            with door.accept()[0] as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                answer_all(client, answer)


def answer_of(outputs: Mapping[str, int]) -> bytes:
    """The answer with these outputs, all zero."""
    tensors = [
        {"name": name, "datatype": "FP32", "shape": [size // 4], "parameters": {"binary_data_size": size}}
        for name, size in outputs.items()
    ]
    document = json.dumps({"model_name": "null", "outputs": tensors}).encode()
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(document)}\r\n"
        f"Content-Length: {len(document) + sum(outputs.values())}\r\n\r\n"
    )
    return head.encode() + document + bytes(sum(outputs.values()))


def answer_all(client: socket.socket, answer: bytes) -> None:
    """Until the client leaves."""
    room = memoryview(bytearray(LARGEST))
    while True:
        filled = 0
        while (end := bytes(room[: min(filled, 4096)]).find(b"\r\n\r\n")) < 0:
            if not (count := client.recv_into(room[filled:])):
                return
            filled += count
        lines = bytes(room[:end]).lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        while filled < end + 4 + length:
            filled += client.recv_into(room[filled : end + 4 + length])
        client.sendall(answer)


if __name__ == "__main__":
    main()
