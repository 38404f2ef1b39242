"""For camera applications: frames to the models of this device, through shared memory.

    with Client("unix:/run/edge-runner/door.sock") as client:
        answer = client.infer("face_detection", frame)

Imports numpy and what the packets are made of; no inference library. Read docs/guides/clients.md.
"""

from client.answer import Answer, ClientError, ModelError, RequestError, UnavailableError
from client.blocking import Client
from client.looped import AsyncClient

__all__ = ["Answer", "AsyncClient", "Client", "ClientError", "ModelError", "RequestError", "UnavailableError"]
