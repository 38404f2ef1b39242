"""S3, and what speaks like it.

The SDK signs, finds credentials and parses; it does not retry, does not add checksums that other servers refuse,
and does not read ahead. Bytes are taken as they arrive (`read1`), so that a server which drips one byte at a time
cannot hold a worker thread inside one call: every HEARTBEAT_S at the latest the caller gets what there is.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as SdkConnectionError
from urllib3.exceptions import HTTPError

from agent.adapters.store import CHUNK_BYTES, Changed, Denied, Download, Missing, StoreSettings, check_key, read_limited
from agent.core.errors import InputError, TransferError

CONNECT_S = 10.0  # a handshake over a satellite takes 3
READ_S = 20.0  # silence that counts as a dead connection
HEARTBEAT_S = 1.0
RECEIVE_BYTES = 256 * 1024  # what one receive may bring
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
ADVICE = {
    "SignatureDoesNotMatch": "the secret key is wrong: correct it in agent.yaml or the environment",
    "InvalidAccessKeyId": "the access key is unknown there: correct it in agent.yaml or the environment",
    "RequestTimeTooSkewed": "this clock and the server's differ: set the clock",
    "NoSuchBucket": "there is no such bucket: correct the URL or create it",
    "ExpiredToken": "the credentials have expired: renew them",
}


class S3Store:
    """One bucket, below one prefix."""

    def __init__(self, settings: StoreSettings, bucket: str, prefix: str) -> None:
        """Raises InputError where the SDK cannot use the settings."""
        self.bucket = bucket
        self.prefix = f"{check_key(prefix)}/" if prefix else ""
        endpoint = settings.endpoint
        config = Config(
            s3={"addressing_style": "path" if endpoint else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
            connect_timeout=CONNECT_S,
            read_timeout=READ_S,
            tcp_keepalive=True,
        )
        region = settings.region or ("us-east-1" if endpoint else None)
        try:
            session = boto3.Session(settings.access_key, settings.secret_key, region_name=region)
            self.client = session.client("s3", endpoint_url=endpoint, verify=settings.ca, config=config)
        except (BotoCoreError, ValueError, OSError) as error:
            raise InputError(f"s3://{bucket}: {error}: correct the store's settings in agent.yaml") from error

    def read(self, key: str, limit: int) -> bytes:
        """As `Store.read`."""
        return read_limited(self.stream(key), self._where(key), limit)

    def stream(self, key: str, start: int = 0, etag: str | None = None) -> Download:
        """As `Store.stream`."""
        where = self._where(key)
        asked: dict[str, Any] = {"Range": f"bytes={start}-"} if start else {}
        if etag is not None:
            asked["IfMatch"] = etag
        with translated(where):
            answer = self.client.get_object(Bucket=self.bucket, Key=self._key(key), **asked)
        body = answer["Body"]
        try:
            begins, size = _extent(answer, start, where)
            if etag not in {None, answer.get("ETag")}:
                raise Changed(f"{where}: it is not the object it was: it is fetched from its beginning")
        except TransferError:
            body.close()
            raise
        return Download(answer.get("ETag", ""), size, begins, _pieces(body, where), body.close)

    def _key(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _where(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"


def _extent(answer: Any, start: int, where: str) -> tuple[int, int]:
    """Where the bytes of an answer begin, and the size of the whole object."""
    length, said = answer.get("ContentLength"), answer.get("ContentRange")
    if length is None:
        raise TransferError(f"{where}: the server does not say how long it is: use a server that sends Content-Length")
    if said is None and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:  # noqa: PLR2004  HTTP's own number
        return 0, length
    match = RANGE.fullmatch(said or "")
    if match is None or match[1] != str(start) or (int(match[3]) - start, int(match[2]) + 1) != (length, int(match[3])):
        raise Changed(f"{where}: asked from byte {start}, the server answers {said!r}: fetched from the beginning")
    return start, int(match[3])


def _pieces(body: Any, where: str) -> Iterator[bytes]:
    """What arrives, in pieces: as soon as CHUNK_BYTES or HEARTBEAT_S are full."""
    raw = body._raw_stream  # noqa: SLF001  the SDK's own read() waits until its whole chunk is there
    gathered, due = bytearray(), time.monotonic() + HEARTBEAT_S
    while True:
        try:
            with translated(where):
                arrived = raw.read1(min(RECEIVE_BYTES, CHUNK_BYTES - len(gathered)), decode_content=False)
        except TransferError:
            yield bytes(gathered)  # on a network that cuts early and often, these bytes are all the progress there is
            raise
        gathered += arrived
        if gathered and (not arrived or len(gathered) == CHUNK_BYTES or time.monotonic() >= due):
            yield bytes(gathered)
            gathered, due = bytearray(), time.monotonic() + HEARTBEAT_S
        if not arrived:
            return


@contextmanager
def translated(where: str) -> Iterator[None]:
    """The SDK's errors as ours, with what, where and what to do."""
    try:
        yield
    except ClientError as error:
        raise _answered(error, where) from error
    except (SdkConnectionError, HTTPClientError, HTTPError, OSError) as error:
        raise TransferError(
            f"{where}: no connection ({_short(error)}): check the network; it is tried again"
        ) from error
    except BotoCoreError as error:
        raise TransferError(f"{where}: {_short(error)}: check the store's settings in agent.yaml") from error


def _answered(error: ClientError, where: str) -> TransferError | InputError:
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    code = error.response["Error"].get("Code", "")
    if code in ADVICE:
        return TransferError(f"{where}: {ADVICE[code]}")
    match status:
        case 404:
            return Missing(f"{where}: there is nothing under this key")
        case 403:
            return Denied(f"{where}: access denied: give these credentials the right, or correct them")
        case 412 | 416:
            return Changed(f"{where}: it is not the object it was: it is fetched from its beginning")
    return TransferError(f"{where}: the server answers {status} {code}: it is tried again")


def _short(error: Exception) -> str:
    return str(error).replace("\n", " ")[:200]
