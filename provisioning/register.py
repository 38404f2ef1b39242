"""The devices of a group, by the public keys that they were enrolled with: what the next epoch is granted to.

1. They are in the keyring of the desk that makes grants, `devices/{group}/{device}.pub`, and not in the store: whoever
   owns the store would put his own key there, and the next epoch would be granted to him.
2. A device is written down before its grant is made, and struck out before the next epoch is: a cut in between
   leaves a device too many without a grant, never one too many with it.
3. A long command keeps a journal of what is on the disk, and its next run goes on there.
"""

import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from agent.adapters.files import read_or_none, sync_folder, write_durably
from agent.core.errors import InputError
from fleet.keyring import Keyring, check_word
from provisioning.keys import PUBLIC, make_folder, public_pem


def folder_of(keyring: Keyring, group: str) -> Path:
    """Where the devices of a group are written down."""
    return keyring.folder / "devices" / check_word("group", group)


def enrolled(keyring: Keyring, group: str) -> Mapping[str, Path]:
    """Device: the file with its public key."""
    return {path.stem: path for path in sorted(folder_of(keyring, group).glob("*.pub"))}


def write_down(keyring: Keyring, group: str, devices: Mapping[str, ec.EllipticCurvePublicKey]) -> None:
    """The devices belong to the group from now on, each with this key."""
    folder = folder_of(keyring, group)
    make_folder(folder)
    if len(devices) == 1:
        for device, public in devices.items():
            write_durably(folder / f"{device}.pub", public_pem(public), PUBLIC)
        return
    for device, public in devices.items():
        (folder / f"{device}.pub").write_bytes(public_pem(public))
    os.sync()  # one for all: a hundred thousand of them would take an hour


def strike_out(keyring: Keyring, group: str, device: str) -> None:
    """The device does not belong to the group any more; raises InputError where it did not."""
    path = folder_of(keyring, group) / f"{check_word('device', device)}.pub"
    if not path.is_file():
        raise InputError(
            f"{device}: not enrolled in {group} at this desk ({path}); use the desk that enrolled it, "
            "or `edge-provision group rotate` where all others are known here"
        )
    path.unlink()
    sync_folder(path.parent)


class Journal:
    """What a long command has done; its next run goes on there, if it is about the same."""

    def __init__(self, path: Path, about: str) -> None:
        self._path = path
        kept = lines_of(path)
        self.done = set(kept[1:]) if kept[:1] == [about] else set()
        if not self.done:
            make_folder(path.parent)
            write_durably(path, f"{about}\n".encode(), PUBLIC)

    def note(self, entries: Iterable[str]) -> None:
        """These are done, and where they belong."""
        with self._path.open("a") as file:
            file.writelines(f"{entry}\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())

    def end(self) -> None:
        """All is done."""
        self._path.unlink()


def lines_of(path: Path) -> list[str]:
    """The lines of a file; none where there is no file."""
    return (read_or_none(path) or b"").decode(errors="replace").splitlines()


def entry_of(device: str, public: bytes) -> str:
    """A device and its key, as a journal names them."""
    return f"{device} {sha256(public).hexdigest()[:16]}"
