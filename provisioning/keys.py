"""Making keys. None is ever overwritten: a lost key can be replaced by its role, an overwritten one by nobody.

Private keys are PKCS #8 files with mode 0600, with a passphrase where one is given, written durably before anything
that needs them. Move each to the desk that uses it: a folder that holds all of them is for trying things out.
"""

import os
import sys
from collections.abc import Iterable
from getpass import getpass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from securesystemslib.signer import Key, SSlibKey

from agent.adapters.files import write_durably
from agent.core.documents import to_json
from agent.core.errors import InputError
from agent.trust.grant import CURVE
from fleet.keyring import ROLES, Keyring, check_word, read
from fleet.signers import VARIABLES, KeyFile, key_at_uri, key_in_file

ONLINE = frozenset({"snapshot", "timestamp"})  # they sign with nobody there: a passphrase beside them protects nothing
PRIVATE = 0o600
PUBLIC = 0o644


def init_keys(folder: Path, passphrase: str | None = None) -> Keyring:
    """A new keyring with every role's keys, those that sign at a desk with the passphrase.

    Raises:
        InputError: a role has keys there already.
    """
    wanted = {
        folder / "roles" / f"{role}-{number + 1}.pem": None if role in ONLINE else passphrase
        for role, keys in ROLES.items()
        for number in range(keys.count)
    }
    refuse_existing(wanted)
    make_folder(folder / "roles")
    for path, secret in wanted.items():
        write_signing_key(path, secret)
    return Keyring(folder)


def new_key(keyring: Keyring, role: str, passphrase: str | None = None) -> Key:
    """One more key of a role, made here; its public half."""
    make_folder(keyring.folder / "roles")
    return write_signing_key(keyring.next_file(check_word("role", role), ".pem"), passphrase)


def name_key(keyring: Keyring, role: str, *, uri: str | None = None, public: Path | None = None) -> KeyFile:
    """Names a key that is elsewhere: where `uri` leads, or somebody else's in the PEM file `public`.

    Raises:
        InputError: there is no key, or it is named here already.
        TransferError: the service that holds it cannot be had now.
    """
    path = keyring.next_file(check_word("role", role), ".json")
    if public is not None:
        file = key_in_file(public, read(public, "name the file with the public key"))
    else:
        file = key_at_uri(uri or "")
    for known in keyring.roles():
        twin = [other for other in keyring.files(known) if other.suffix == ".json" and file.keyid in other.read_text()]
        if twin:
            raise InputError(f"key {file.keyid[:16]}: {twin[0]} names it already; a key answers for one role, once")
    make_folder(path.parent)
    write_new(path, to_json(file), PUBLIC)
    return file


def write_signing_key(path: Path, passphrase: str | None) -> Key:
    """Makes a signing key in a new file; its public half."""
    private = Ed25519PrivateKey.generate()
    lock = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.encode())
    write_new(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock), PRIVATE)
    return SSlibKey.from_crypto(private.public_key())


def new_passphrase() -> str:
    """A passphrase for new keys: from the environment, or typed twice.

    Raises:
        InputError: there is none, or it was typed in two ways.
    """
    variable = VARIABLES["passphrase"]
    found = os.environ.get(variable)
    if found is None and sys.stdin.isatty():
        found = getpass("passphrase for the new keys: ")
        if found != getpass("the same again: "):
            raise InputError("the two are not the same; nothing was made")
    if not found:
        raise InputError(f"a passphrase is needed: set {variable}, or run this on a terminal; nothing was made")
    return found


def init_group(keyring: Keyring, group: str, passphrase: str | None = None) -> int:
    """The first epoch of a new group: 1.

    Raises:
        InputError: the group exists, its name cannot be one, or the keyring is no folder.
    """
    if not keyring.folder.is_dir():
        raise InputError(f"{keyring.folder}: no such folder; make one with `edge-provision keys init`")
    if check_word("group", group) in keyring.groups():
        raise InputError(f"group {group}: it has keys already, and they are kept")
    return add_epoch(keyring, group, 1, passphrase)


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
