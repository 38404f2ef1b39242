"""Options that several commands of `edge-provision` have."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from agent.adapters.store import Missing
from agent.adapters.tuf_client import METADATA
from agent.core.errors import TransferError
from fleet.keyring import Keyring
from fleet.repository import Repository
from fleet.stores import DeskStore, open_store
from fleet.versions import METADATA_BYTES


def add_store(parser: ArgumentParser) -> None:
    """The options of commands that write to the store."""
    parser.add_argument("--store", required=True, help="s3://bucket/prefix or file:///path")
    parser.add_argument("--endpoint", help="URL of an S3-compatible server")
    parser.add_argument("--ca", help="PEM file with the authorities to trust")
    add_folder(parser)


def add_folder(parser: ArgumentParser) -> None:
    """Where this desk's keys are."""
    parser.add_argument("--keys", type=Path, required=True, metavar="FOLDER", help="folder with the keys of this desk")


def add_passphrase(parser: ArgumentParser) -> None:
    """For commands that make signing keys."""
    parser.add_argument(
        "--encrypt", action="store_true", help="new keys get a passphrase: asked for, or from EDGE_KEY_PASSPHRASE"
    )


def open_place(options: Namespace) -> DeskStore:
    """The store that the options name."""
    return open_store(options.store, endpoint=options.endpoint, ca=options.ca)


def begun_place(options: Namespace) -> DeskStore:
    """The store that the options name, where a repository lies; raises TransferError where none does."""
    store = open_place(options)
    try:
        store.read(f"{METADATA}timestamp.json", METADATA_BYTES)
    except Missing as error:
        raise TransferError(f"{options.store}: no repository lies there ({error}); check the store's URL") from error
    return store


def repository(options: Namespace) -> Repository:
    """The repository that the options name, verified."""
    store, keyring = open_place(options), Keyring(options.keys)
    return Repository.recall(store, keyring) if getattr(options, "recall", False) else Repository.load(store, keyring)
