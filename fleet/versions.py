"""Metadata as it lies in a store: which versions there are, and what they are worth."""

import re
from collections.abc import Iterator
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Targets

from agent.adapters.store import Missing, Store
from agent.adapters.tuf_client import ALWAYS, METADATA, Chain, TufClient
from agent.core.errors import InputError, TrustError
from fleet.keyring import Keyring
from fleet.stores import DeskStore, Exists

METADATA_BYTES = 5_000_000  # as python-tuf's own limit for targets metadata


def sight(store: Store, keyring: Keyring) -> TufClient:
    """What a desk sees of a store, and remembers in `seen/`."""
    return TufClient(keyring.folder / "seen", store, keyring.root(), check=lambda _: None)


def see(store: Store, keyring: Keyring) -> Chain:
    """The store's metadata, verified as a device does; from now on this desk believes nothing older."""
    return sight(store, keyring).refresh(ALWAYS).chain


def has(store: Store, key: str) -> bool:
    """Whether something lies under this key."""
    try:
        store.stream(key).close()
    except Missing:
        return False
    return True


def read_page(store: Store, name: str, delegator: Targets, listed: MetaFile) -> tuple[bytes, Metadata[Targets]]:
    """The metadata of a role or bin, as bytes and verified against snapshot and delegation."""
    raw = store.read(f"{METADATA}{listed.version}.{name}.json", METADATA_BYTES)
    try:
        listed.verify_length_and_hashes(raw)
        metadata = Metadata[Targets].from_bytes(raw)
        delegator.verify_delegate(name, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"{name} metadata: {error}; look at the store") from error
    return raw, metadata


def numbers(store: DeskStore, name: str) -> Iterator[int]:
    """The version numbers of a role's metadata that are taken in the store."""
    form = re.compile(rf"{METADATA}([0-9]+)\.{re.escape(name)}\.json", re.ASCII)
    yield from (int(key[1]) for key in map(form.fullmatch, store.keys(METADATA)) if key is not None)


def upload_once(store: DeskStore, metadata: Metadata[Any], name: str) -> bytes:
    """For a number that cannot be another: it was signed elsewhere, or it is the root's, which leaves none out.

    Raises:
        InputError: other bytes lie under it.
    """
    raw = bytes(metadata.to_bytes())
    key = f"{METADATA}{metadata.signed.version}.{name}.json"
    try:
        store.write(key, raw, if_absent=True)
    except Exists as error:  # from a cut upload of the same, or not
        if store.read(key, METADATA_BYTES) != raw:
            raise InputError(f"{key}: other bytes lie there; look who wrote them, and begin again") from error
    return raw
