"""What this device can open: its own key, the epoch keys that grants brought it, and what it sealed for itself.

A grant is believed once, when it comes, and kept as it was believed: still sealed to this device's key. So a
sealed release opens without a network, and no epoch key ever lies on the disk in clear. Epochs are only added: an old
grant that somebody serves again is noticed by its counter, and takes nothing away.
"""

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec.structs import replace
from tuf.api.metadata import Targets

from agent.adapters import files
from agent.adapters.ledger import Ledger
from agent.core.errors import InputError, TransferError, TrustError
from agent.trust.grant import Grant, believe_grant, open_granted, unwrap_key
from agent.trust.listing import Listing, target_path
from agent.trust.sealing import KEY_BYTES, Opener, bind

PIECE_BYTES = 1024 * 1024
SCALAR_BYTES = 32  # of a P-256 private key
ENGINE_DOMAIN = "edge-model-agent/engines/v1"


class Keyring:
    """The device's key and its grants."""

    def __init__(self, key_file: Path, device: str, group: str, ledger: Ledger) -> None:
        """Raises InputError where the key is missing, readable by everybody, or no P-256 key."""
        self.device = device
        self.group = group
        self._ledger = ledger
        self._private = read_key(key_file)

    def take(self, raw: bytes, targets: Targets) -> None:
        """Believe a grant and keep it.

        Raises:
            TrustError: it is not for this device, not signed by `grants`, older than the last one, or does not open.
        """
        grant = believe_grant(raw, targets, self.device, self.group)
        known = self._grant()
        if known is not None and grant.counter < known.counter:
            raise TrustError(
                f"grant {grant.counter}: older than {known.counter}, which this device has: somebody serves an old one"
            )
        for one in grant.keys:
            open_granted(one, self.device, self.group, self._private)
        epochs = {one.epoch: one for one in (*(known.keys if known is not None else ()), *grant.keys)}
        merged = replace(grant, keys=tuple(epochs[epoch] for epoch in sorted(epochs)))
        if known is None or known.counter != grant.counter or {one.epoch for one in known.keys} != set(epochs):
            self._ledger.put_all([("grant", self.group, merged)], precious=True)

    def open(self, name: str, listing: Listing, sealed: Path) -> Opener:
        """The sealed release in a file, ready to be read; raises as `key`, or TransferError where it cannot be read."""
        return Opener(self.key(name, listing), target_path(name), pieces(sealed), listing.size)

    def key(self, name: str, listing: Listing) -> bytes:
        """The content key of a release.

        Raises:
            TrustError: it was changed.
            TransferError: no grant for its epoch has come yet.
        """
        try:
            epochs = self._epochs()
            wrap = listing.wrap(self.group, epochs)
        except TrustError as error:  # of what this device was granted, not of the release
            raise TransferError(f"{name}: {error}") from error
        return unwrap_key(wrap.key, epochs[wrap.epoch], target_path(name), wrap.group, wrap.epoch)

    def engine_key(self) -> bytes:
        """What seals engines on this disk. It follows from the device's own key: nobody else in the fleet has it."""
        secret = self._private.private_numbers().private_value.to_bytes(SCALAR_BYTES, "big")
        return HKDF(SHA256(), KEY_BYTES, None, bind(ENGINE_DOMAIN, self.device)).derive(secret)

    def _epochs(self) -> Mapping[int, ec.EllipticCurvePrivateKey]:
        grant = self._grant()
        if grant is None:
            raise TransferError(
                f"no grant for device {self.device} of group {self.group} has come yet: enrol it "
                "(`edge-provision device enrol`), or wait for the store"
            )
        return {one.epoch: open_granted(one, self.device, self.group, self._private) for one in grant.keys}

    def _grant(self) -> Grant | None:
        return self._ledger.get("grant", self.group, Grant)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The device's private key.

    Raises:
        InputError: it is missing, readable by everybody, or no P-256 key in PEM.
    """
    content = files.read_needed(path, "enrol the device with `edge-provision device enrol`")
    mode = path.stat().st_mode
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise InputError(f"{path}: others may read or change the device's key (mode {mode & 0o777:o}); chmod 600 it")
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: this is no private key in PEM: {error}; enrol the device anew") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError(f"{path}: this is no P-256 key; enrol the device anew")
    return key


def pieces(path: Path) -> Iterator[bytes]:
    """The content of a file, piece by piece."""
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    except OSError as error:
        raise TransferError(f"{path}: {error.strerror or error}; the release is fetched again") from error
