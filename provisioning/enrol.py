"""Enrolling a device: its key, its grant, and a folder that its agent starts from; or many devices at once.

1. The device's private key stays on the device. Where it made the key itself (a TPM, a token), its public half is
   enough; only otherwise a key is made here, into the enrolment folder, with mode 0600.
2. The grant goes to the store, signed: it is of no use without the device's key.
3. An enrolment folder is written once. A device that is enrolled again gets a new folder and a new grant.
4. Every device is written down by its public key (register.py): the group's next epoch is granted to it.
"""

import binascii
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from agent.core.errors import EdgeError, InputError
from agent.trust.grant import CURVE
from fleet.keyring import Keyring, check_word, public_key
from fleet.sealing import make_grant
from fleet.stores import DeskStore
from provisioning.grants import Tell, grant_each, grant_key, keep_count, next_count
from provisioning.keys import PRIVATE, PUBLIC, make_folder, private_pem, refuse_existing, write_new
from provisioning.register import Journal, enrolled, folder_of, strike_out, write_down

FILES = ("root.json", "device.key", "agent.yaml")
NO_CLOCK = datetime(1970, 1, 1, tzinfo=UTC)  # the counter of grants then goes up by one


def enrol(  # noqa: PLR0913  who joins what, where, and with which settings
    store: DeskStore,
    keyring: Keyring,
    device: str,
    group: str,
    out: Path,
    *,
    settings: Mapping[str, Any],
    key: Path | None = None,
    now: datetime = NO_CLOCK,
) -> None:
    """Writes the grant to the store; root.json, agent.yaml and, where it is made here, device.key to `out`.

    Args:
        store: the fleet's.
        keyring: with the private keys of the group and of `grants`.
        device: its name.
        group: the group it joins.
        out: the enrolment folder, made when absent.
        settings: the rest of agent.yaml: store, broker, folders.
        key: the device's own public key (PEM); None makes a key here.
        now: for the grant's counter.

    Raises:
        InputError: a name cannot be one, a key is missing, or the folder holds an enrolment.
        TransferError: something could not be written.
    """
    check_word("device", device)
    root, epochs, signers = keyring.root(), keyring.privates(group), keyring.signers("grants")
    refuse_existing(out / name for name in FILES)
    given, is_new_folder = public_key(key) if key is not None else None, not out.exists()
    make_folder(out)
    public = given or new_device_key(out / "device.key")
    is_new = device not in enrolled(keyring, group)
    write_down(keyring, group, {device: public})
    count = next_count(keyring, group, now)
    try:
        store.write(grant_key(group, device), make_grant(device, group, epochs, public, signers, count))
    except EdgeError:
        if key is None:
            (out / "device.key").unlink(missing_ok=True)  # nobody was told of it: the folder can be used again
        if is_new_folder:
            out.rmdir()
        if is_new:
            strike_out(keyring, group, device)
        raise
    keep_count(keyring, group, count)
    write_new(out / "root.json", root, PUBLIC)
    write_new(out / "agent.yaml", agent_yaml({"device": device, "group": group} | dict(settings)), PRIVATE)


def enrol_listed(store: DeskStore, keyring: Keyring, listed: Path, group: str, *, now: datetime, tell: Tell) -> int:
    """Writes down and grants every device of a list; how many they are. Cut off, it goes on where it was.

    Raises:
        InputError: a line is not a name and a public key, or a key is missing; nothing was written.
        TransferError: a grant could not be written; run it again.
    """
    devices = read_list(listed)
    epochs = keyring.privates(group)
    keyring.signers("grants")
    write_down(keyring, group, devices)
    journal = Journal(folder_of(keyring, group).with_suffix(".enrolling"), f"epochs {sorted(epochs)}")
    grant_each(store, keyring, group, devices, journal, now=now, tell=tell)
    journal.end()
    return len(devices)


def read_list(path: Path) -> Mapping[str, ec.EllipticCurvePublicKey]:
    """Device: public key, from lines of a name and the key's DER (SubjectPublicKeyInfo) in base64.

    Raises:
        InputError: the file cannot be read, or a line is none of these; says which.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', error)}; name the list of devices") from error
    found: dict[str, ec.EllipticCurvePublicKey] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        device, public = read_line(line, f"{path}, line {number}")
        if device in found:
            raise InputError(f"{path}, line {number}: {device} stands there twice; strike one out")
        found[device] = public
    if not found:
        raise InputError(f"{path}: names no device; write lines of NAME and PUBLIC-KEY")
    return found


def read_line(line: str, where: str) -> tuple[str, ec.EllipticCurvePublicKey]:
    """One device of a list; raises InputError as `read_list`."""
    name, _, encoded = line.strip().partition(" ")
    try:
        device = check_word("device", name)
        key = load_der_public_key(b64decode(encoded.strip(), validate=True))
    except (ValueError, binascii.Error, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{where}: no public key in base64 ({error}); `openssl pkey -pubout -outform DER | base64 -w0` makes it"
        ) from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError(f"{where}: not a P-256 key; make it with `openssl genpkey`, see docs/guides/operations.md")
    return device, key


def new_device_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Makes a device's private key in a file; its public half."""
    private = ec.generate_private_key(CURVE)
    write_new(path, private_pem(private), PRIVATE)
    return private.public_key()


def paths_at(folder: Path) -> dict[str, Any]:
    """The settings that point into the enrolment folder, when it lies there on the device."""
    return {"root": str(folder / "root.json"), "device_key": str(folder / "device.key")}


def folders_in(folder: Path) -> dict[str, Any]:
    """Settings for trying an agent out as an ordinary user, with everything it writes inside one folder."""
    return {
        "state_folder": str(folder / "state"),
        "run_folder": str(folder / "run"),
        "runner": {"folder": str(folder / "runner"), "tcp": None},  # two trials share no port
    }


def agent_yaml(settings: Mapping[str, Any]) -> bytes:
    """The settings file of an agent."""
    text: str = yaml.safe_dump(dict(settings), sort_keys=False)
    return b"# Written by edge-provision; docs/agent.example.yaml explains every key.\n" + text.encode()
