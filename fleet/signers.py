"""Where a signing key is: in a PEM file, in a token, in a key service. What goes wrong there is told as ours.

1. A secret (passphrase, PIN) comes from the environment, or from the terminal, where it is asked for once for each
   file. It is never an argument: arguments are everybody's to read.
2. A key that signs elsewhere is a JSON file with the signer's URI, as securesystemslib has it, and the public key.
   Without a URI it is somebody else's key: it counts where keys are named and cannot sign here.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from getpass import getpass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import AWSSigner, CryptoSigner, HSMSigner, Key, SecretsHandler, Signature, Signer, SSlibKey

from agent.core.documents import Document, from_json
from agent.core.errors import EdgeError, InputError, TransferError

VARIABLES = {"passphrase": "EDGE_KEY_PASSPHRASE", "pin": "EDGE_KEY_PIN"}

logging.getLogger("securesystemslib").addHandler(logging.NullHandler())  # what it logs, it raises, too


class KeyFile(Document):
    """roles/{role}-{n}.json: a key that is not in this folder."""

    uri: str  # empty: it signs at another desk
    keyid: str
    key: Mapping[str, Any]  # the public key, as TUF has it


class RemoteSigner(Signer):
    """A key in a token or a service."""

    def __init__(self, path: Path, key: Key, uri: str) -> None:
        self.path = path
        self._key = key
        with told(path):
            self._signer = Signer.from_priv_key_uri(uri, key, partial(ask, path))

    @property
    def public_key(self) -> Key:
        """Its public half."""
        return self._key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "RemoteSigner":
        """Asked of every signer by its base; keys come from their files alone."""
        raise NotImplementedError

    def sign(self, payload: bytes) -> Signature:
        """Signs there; raises InputError or TransferError with what the token or service said."""
        with told(self.path):
            return self._signer.sign(payload)


def signer_at(path: Path, content: bytes) -> Signer | None:
    """What signs with the key in a file; None where it signs at another desk.

    Raises:
        InputError: it is no key, or its secret is missing or wrong.
        TransferError: the service that holds it cannot be had now.
    """
    if path.suffix != ".json":
        return CryptoSigner(unlock(path, content))
    file = from_json(KeyFile, content, str(path))
    return RemoteSigner(path, public_at(path, content), file.uri) if file.uri else None


def public_at(path: Path, content: bytes) -> Key:
    """The public key in a file; raises InputError as `signer_at`."""
    if path.suffix != ".json":
        return CryptoSigner(unlock(path, content)).public_key
    file = from_json(KeyFile, content, str(path))
    try:
        return Key.from_dict(file.keyid, dict(file.key))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no public key ({error}); add the key again") from error


def unlock(path: Path, content: bytes) -> PrivateKeyTypes:
    """The private key in a PEM file.

    Raises:
        InputError: it is none, or its passphrase is missing or wrong.
    """
    secret = ask(path, "passphrase").encode() if is_locked(content) else None
    try:
        return load_pem_private_key(content, secret)
    except (ValueError, TypeError) as error:
        what = "wrong passphrase" if is_locked(content) else f"not a private key (PKCS #8 PEM): {error}"
        raise InputError(f"{path}: {what}") from error


def is_locked(content: bytes) -> bool:
    """Whether a PEM file says that it has a passphrase."""
    return b"ENCRYPTED" in content


def ask(where: Path, what: str) -> str:
    """A secret.

    Raises:
        InputError: it is not in the environment, and there is nobody to ask.
    """
    variable = VARIABLES.get(what, f"EDGE_KEY_{what.upper()}")
    if variable in os.environ:
        return os.environ[variable]
    if not sys.stdin.isatty():
        raise InputError(f"{where}: needs its {what}; set {variable}, or run this on a terminal")
    return typed(f"{what} of {where}: ")


@cache
def typed(prompt: str) -> str:
    """What the user types, unseen."""
    return getpass(prompt)


def key_at_uri(uri: str) -> KeyFile:
    """The key that a URI leads to: `hsm:ID?label=TOKEN` (PKCS #11) or `awskms:KEY`.

    Raises:
        InputError: it leads to no key.
        TransferError: the service cannot be had now.
    """
    parts = urlsplit(uri)
    label = dict(parse_qsl(parts.query)).get("label")
    with told(uri):
        if parts.scheme == "hsm" and (parts.path or "0").isdecimal():
            number = int(parts.path) if parts.path else None
            found, key = HSMSigner.import_(number, label, partial(ask, Path(label or "the token")))
        elif parts.scheme == "awskms" and parts.path:
            found, key = AWSSigner.import_(parts.path)
        else:
            raise InputError(f"{uri}: not a key; write hsm:ID?label=TOKEN (PKCS #11) or awskms:KEY")
    return KeyFile(uri=found, keyid=key.keyid, key=key.to_dict())


def key_in_file(path: Path, content: bytes) -> KeyFile:
    """Somebody else's public key, from a PEM file.

    Raises:
        InputError: it is none.
    """
    try:
        key = SSlibKey.from_crypto(load_pem_public_key(content))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a public key (PEM): {error}; `openssl pkey -pubout` makes one") from error
    return KeyFile(uri="", keyid=key.keyid, key=key.to_dict())


@contextmanager
def told(where: object) -> Iterator[None]:
    """What a token, a service or their libraries raise, as ours."""
    try:
        yield
    except EdgeError:
        raise
    except UnsupportedLibraryError as error:
        raise InputError(f"{where}: {error}; install edge-model-agent[hsm]") from error
    except (NoRegionError, NoCredentialsError) as error:
        raise InputError(f"{where}: {error} Set AWS_DEFAULT_REGION and the SDK's usual credentials") from error
    except (BotoCoreError, ClientError) as error:
        raise TransferError(f"{where}: {error}; look at the region, the credentials and the key's policy") from error
    except Exception as error:  # each token's module raises its own, most of them without a word
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{where}: {reason}; look at PYKCS11LIB, the token's label, the key's id and the PIN"
        ) from error
