"""Making keys. None is ever overwritten: a lost key can be replaced by its role, an overwritten one by nobody.

Private keys are PKCS #8 files with mode 0600, written durably before anything that needs them. Move each to the
desk that uses it: a folder that holds all of them is for trying things out.
"""

import os
import sys
from collections.abc import Iterable
from getpass import getpass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from securesystemslib.signer import CryptoSigner

from agent.adapters.files import write_durably
from agent.core.errors import InputError
from agent.trust.grant import CURVE
from fleet.keyring import ROLES, Keyring, check_word

PRIVATE = 0o600
PUBLIC = 0o644


def init_keys(folder: Path) -> Keyring:
    """A new keyring with every role's keys.

    Raises:
        InputError: a role has keys there already.
    """
    wanted = [
        folder / "roles" / f"{role}-{number + 1}.pem" for role, keys in ROLES.items() for number in range(keys.count)
    ]
    refuse_existing(wanted)
    make_folder(folder / "roles")
    for path in wanted:
        write_new(path, CryptoSigner.generate_ed25519().private_bytes, PRIVATE)
    return Keyring(folder)


def init_group(keyring: Keyring, group: str, passphrase: str | None = None) -> int:
    """The first epoch of a new group: 1.

    Raises:
        InputError: the group exists, or its name cannot be one.
    """
    if check_word("group", group) in keyring.groups():
        raise InputError(f"group {group}: it has keys already, and they are kept")
    return add_epoch(keyring, group, 1, passphrase)


def new_passphrase() -> str:
    """A passphrase for new keys: from the environment, or typed twice.

    Raises:
        InputError: there is none, or it was typed in two ways.
    """
    variable = "EDGE_KEY_PASSPHRASE"
    found = os.environ.get(variable)
    if found is None and sys.stdin.isatty():
        found = getpass("passphrase for the new keys: ")
        if found != getpass("the same again: "):
            raise InputError("the two are not the same; nothing was made")
    if not found:
        raise InputError(f"a passphrase is needed: set {variable}, or run this on a terminal; nothing was made")
    return found


def add_epoch(keyring: Keyring, group: str, epoch: int, passphrase: str | None = None) -> int:
    """Writes the keys of one epoch of a group, the private one locked where a passphrase is given."""
    folder = keyring.folder / "groups" / group
    private, public = folder / f"{epoch}.pem", folder / f"{epoch}.pub"
    refuse_existing([private, public])
    make_folder(folder)
    key = ec.generate_private_key(CURVE)
    write_new(private, private_pem(key, passphrase), PRIVATE)
    write_new(public, public_pem(key.public_key()), PUBLIC)
    return epoch


def private_pem(key: ec.EllipticCurvePrivateKey, passphrase: str | None = None) -> bytes:
    """The key as PKCS #8."""
    lock = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key as SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def refuse_existing(paths: Iterable[Path]) -> None:
    """Raises InputError where one of the files exists."""
    for path in paths:
        if path.exists():
            raise InputError(f"{path}: exists, and keys are never overwritten; choose another folder")


def make_folder(folder: Path) -> None:
    """A folder for keys, for its owner alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; choose another folder") from error


def write_new(path: Path, content: bytes, mode: int) -> None:
    """A new file, durably."""
    refuse_existing([path])
    write_durably(path, content, mode)
