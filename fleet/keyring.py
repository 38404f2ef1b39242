"""A keyring is a folder of keys; a desk has those it needs and no others.

    root.json                    the root that everything is verified against
    roles/{role}-{n}.pem         private signing keys (PKCS #8, with a passphrase or without)
    roles/{role}-{n}.json        keys that are elsewhere: in a token, a service, at another desk (fleet/signers.py)
    groups/{group}/{epoch}.pem   private key of a group's epoch: only where grants are made, best with a passphrase
    groups/{group}/{epoch}.pub   its public half: what a publisher needs
    devices/{group}/{device}.pub public key of a device: only where grants are made (provisioning/register.py)
    seen/                        the newest metadata this desk has seen, against rollback
    pending/                     what this desk began and others must sign, too (fleet/pending.py)

A key that is needed and not here is the user's to bring: the error says which file. Keys are never overwritten
(provisioning/keys.py writes them).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.signer import Key, Signer

from agent.core.errors import InputError
from fleet.signers import ask, is_locked, public_at, signer_at, unlock

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)  # as agent.yaml and the scope of a command allow
FILE = re.compile(r"(?P<role>.+)-(?P<number>[0-9]{1,6})\.(?:pem|json)", re.ASCII)
RESERVED = frozenset({"groups"})  # a level of the MQTT topics


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """How many keys a role is made with, and how many of them must sign."""

    count: int = 1
    threshold: int = 1


ROLES: Mapping[str, RoleKeys] = {
    "root": RoleKeys(count=3, threshold=2),  # one may be lost, one may be stolen
    "targets": RoleKeys(count=3, threshold=2),
    "snapshot": RoleKeys(),
    "timestamp": RoleKeys(),
    "releases": RoleKeys(),
    "deployments": RoleKeys(),
    "operators": RoleKeys(),
    "operators-critical": RoleKeys(count=2, threshold=2),
    "controller": RoleKeys(),
    "grants": RoleKeys(),
}


class Keyring:
    """The keys in a folder, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: dict[Path, Signer | None] = {}  # a secret is asked for once

    @property
    def root_file(self) -> Path:
        """The pinned root."""
        return self.folder / "root.json"

    def root(self) -> bytes:
        """The pinned root.

        Raises:
            InputError: no repository was started with these keys.
        """
        return read(self.root_file, "start a repository with `edge-provision store init`, or copy its root.json here")

    def signers(self, role: str) -> tuple[Signer, ...]:
        """Every key of a role that can sign here, at least one.

        Raises:
            InputError: there is none, or it cannot be read.
            TransferError: the service that holds it cannot be had now.
        """
        found = [signer for path in self.files(role) if (signer := self._signer(path)) is not None]
        return tuple(found) or self.lack(role)

    def keys(self, role: str) -> Mapping[str, Key]:
        """Key id: public key of every key of a role that is named here, in the order of their files."""
        found = [public_at(path, read(path, "bring the key")) for path in self.files(role)]
        return {key.keyid: key for key in found}

    def lack(self, role: str) -> NoReturn:
        """Raises InputError: no key of a role is here."""
        raise InputError(
            f"{self.folder}: no key of the role {role} (roles/{role}-1.pem); bring it, or use another desk"
        )

    def holds(self, role: str) -> bool:
        """Whether a key of a role is here."""
        return bool(self.files(role))

    def files(self, role: str) -> list[Path]:
        """The files of a role's keys, by number."""
        found = {path: FILE.fullmatch(path.name) for path in (self.folder / "roles").glob("*")}
        mine = {path: int(name["number"]) for path, name in found.items() if name is not None and name["role"] == role}
        return sorted(mine, key=lambda path: mine[path])

    def roles(self) -> tuple[str, ...]:
        """The roles with keys here."""
        names = (FILE.fullmatch(path.name) for path in (self.folder / "roles").glob("*"))
        return tuple(sorted({name["role"] for name in names if name is not None}))

    def next_file(self, role: str, suffix: str) -> Path:
        """Where the role's next key belongs."""
        numbers = (int(path.stem.removeprefix(f"{role}-")) for path in self.files(role))
        return self.folder / "roles" / f"{role}-{max(numbers, default=0) + 1}{suffix}"

    def _signer(self, path: Path) -> Signer | None:
        if path not in self._opened:
            self._opened[path] = signer_at(path, read(path, "bring the key"))
        return self._opened[path]

    def groups(self) -> tuple[str, ...]:
        """The groups with a public key here."""
        return tuple(sorted({path.parent.name for path in (self.folder / "groups").glob("*/*.pub")}))

    def publics(self, group: str) -> Mapping[int, ec.EllipticCurvePublicKey]:
        """Epoch: public key of a group, at least one.

        Raises:
            InputError: the group is not known here.
        """
        found = {epoch: public_key(path) for epoch, path in self._epochs(group, "pub").items()}
        return found or self._unknown(group)

    def privates(self, group: str) -> Mapping[int, ec.EllipticCurvePrivateKey]:
        """Epoch: private key of a group, at least one.

        Raises:
            InputError: the group's private keys are not here.
        """
        found = {epoch: private_key(path) for epoch, path in self._epochs(group, "pem").items()}
        return found or self._unknown(group)

    def passphrase(self, group: str, epoch: int) -> str | None:
        """What locks the private key of an epoch; None where nothing does. Raises InputError where it is not given."""
        path = self._epochs(group, "pem")[epoch]
        return ask(path, "passphrase") if is_locked(read(path, "bring the key")) else None

    def _epochs(self, group: str, suffix: str) -> Mapping[int, Path]:
        folder = self.folder / "groups" / check_word("group", group)
        return {int(path.stem): path for path in sorted(folder.glob(f"*.{suffix}")) if path.stem.isdecimal()}

    def _unknown(self, group: str) -> NoReturn:
        known = ", ".join(self.groups()) or "none"
        raise InputError(
            f"{self.folder}: no keys of the group {group} (known: {known}); make it with `edge-provision group init`"
        )


def check_word(kind: str, word: str) -> str:
    """A name of a group, device or slot that topics, keys and scopes can carry.

    Raises:
        InputError: it cannot.
    """
    if not WORD.fullmatch(word) or word in RESERVED:
        raise InputError(
            f"{kind} {word!r}: use letters, digits, '_', '-', '.', at most 64, a letter or digit first; not 'groups'"
        )
    return word


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 private key in a file.

    Raises:
        InputError: it cannot be read, or is another kind of key.
    """
    key = unlock(path, read(path, "bring the key"))
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError(f"{path}: not a P-256 key; make it with edge-provision")
    return key


def public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The P-256 public key in a file; raises InputError as `private_key`."""
    try:
        key = load_pem_public_key(read(path, "bring the key"))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a public key in PEM; `openssl pkey -pubout` makes one") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError(f"{path}: not a P-256 key; make it with edge-provision")
    return key


def read(path: Path, advice: str) -> bytes:
    """A file's content; raises InputError with the advice where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {advice}") from error
