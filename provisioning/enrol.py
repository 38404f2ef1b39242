"""Enrolling a device: its key, its grant, and a folder that its agent starts from.

1. The device's private key stays on the device. Where it made the key itself (a TPM, a token), its public half is
   enough; only otherwise a key is made here, into the enrolment folder, with mode 0600.
2. The grant goes to the store, signed: it is of no use without the device's key.
3. An enrolment folder is written once. A device that is enrolled again gets a new folder and a new grant.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import EdgeError
from agent.trust.grant import CURVE
from fleet.keyring import Keyring, check_word, public_key
from fleet.sealing import make_grant
from fleet.stores import DeskStore
from provisioning.keys import PRIVATE, PUBLIC, make_folder, private_pem, refuse_existing, write_new

FILES = ("root.json", "device.key", "agent.yaml")


def grant_key(group: str, device: str) -> str:
    """Where a device's grant lies in the store."""
    return f"grants/{group}/{device}.json"


def enrol(
    store: DeskStore,
    keyring: Keyring,
    device: str,
    group: str,
    out: Path,
    *,
    settings: Mapping[str, Any],
    key: Path | None = None,
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

    Raises:
        InputError: a name cannot be one, a key is missing, or the folder holds an enrolment.
        TransferError: something could not be written.
    """
    check_word("device", device)
    root, epochs, signers = keyring.root(), keyring.privates(group), keyring.signers("grants")
    refuse_existing(out / name for name in FILES)
    make_folder(out)
    public = public_key(key) if key is not None else new_device_key(out / "device.key")
    try:
        store.write(grant_key(group, device), make_grant(device, group, epochs, public, signers))
    except EdgeError:
        if key is None:
            (out / "device.key").unlink(missing_ok=True)  # nobody was told of it: the folder can be used again
        raise
    write_new(out / "root.json", root, PUBLIC)
    write_new(out / "agent.yaml", agent_yaml({"device": device, "group": group} | dict(settings)), PRIVATE)


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
