"""S3, and what speaks like it.

The SDK signs, finds credentials and parses; it does not retry, does not add checksums that other servers refuse,
and does not read ahead. What an answer is worth is decided in answers.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as SdkConnectionError

from agent.adapters import answers
from agent.adapters.store import Download, Store, StoreSettings, check_key
from agent.core.errors import InputError, TransferError

ADVICE = {
    "SignatureDoesNotMatch": "the secret key is wrong: correct it in agent.yaml or the environment",
    "InvalidAccessKeyId": "the access key is unknown there: correct it in agent.yaml or the environment",
    "RequestTimeTooSkewed": "this clock and the server's differ: set the clock",
    "NoSuchBucket": "there is no such bucket: correct the URL or create it",
    "ExpiredToken": "the credentials have expired: renew them",
}


class S3Store(Store):
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
            connect_timeout=answers.CONNECT_S,
            read_timeout=answers.READ_S,
            tcp_keepalive=True,
        )
        region = settings.region or ("us-east-1" if endpoint else None)
        try:
            session = boto3.Session(settings.access_key, settings.secret_key, region_name=region)
            self.client = session.client("s3", endpoint_url=endpoint, verify=settings.ca, config=config)
        except (BotoCoreError, ValueError, OSError) as error:
            raise InputError(f"s3://{bucket}: {error}: correct the store's settings in agent.yaml") from error

    def stream(self, key: str, start: int = 0, etag: str | None = None) -> Download:
        """As `Store.stream`."""
        where = self._where(key)
        asked: dict[str, Any] = {"Range": f"bytes={start}-"} if start else {}
        if etag is not None:
            asked["IfMatch"] = etag
        with translated(where):
            answer = self.client.get_object(Bucket=self.bucket, Key=self._key(key), **asked)
        body: Any = answer["Body"]
        raw = body._raw_stream  # noqa: SLF001  body.read() waits for its whole chunk
        return answers.download(raw, start, etag, where)

    def _key(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _where(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"


@contextmanager
def translated(where: str) -> Iterator[None]:
    """The SDK's errors as ours, with what, where and what to do."""
    try:
        with answers.connected(where):
            yield
    except ClientError as error:
        raise _answered(error, where) from error
    except (SdkConnectionError, HTTPClientError) as error:
        raise answers.unreachable(error, where) from error
    except BotoCoreError as error:
        raise TransferError(f"{where}: {answers.short(error)}: check the store's settings in agent.yaml") from error


def _answered(error: ClientError, where: str) -> TransferError:
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    code = error.response["Error"].get("Code", "")
    if code in ADVICE:
        return TransferError(f"{where}: {ADVICE[code]}")
    return answers.refused(status, where, code.removeprefix(str(status)))  # the SDK puts the status where no code is
