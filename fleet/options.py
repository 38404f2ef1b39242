"""Options that several commands of `edge-fleet` have, and what they name."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from fleet.broker import Broker, broker_at
from fleet.keyring import Keyring
from fleet.repository import Repository
from fleet.stores import open_store

LONGEST_S = 365 * 24 * 3600.0


def seconds(text: str) -> float:
    """A time span that can be waited for."""
    span = float(text)
    if not 0 < span <= LONGEST_S:
        raise ValueError(text)
    return span


def add_repository(parser: ArgumentParser) -> None:
    """The options of commands that work on the repository."""
    parser.add_argument("--store", required=True, help="s3://bucket/prefix or file:///path")
    parser.add_argument("--endpoint", help="URL of an S3-compatible server")
    parser.add_argument("--ca", help="PEM file with the authorities to trust, for store and broker")
    parser.add_argument("--keys", type=Path, required=True, help="folder with the keys of this desk")


def add_broker(parser: ArgumentParser, *, required: bool) -> None:
    """The options of commands that speak to devices."""
    parser.add_argument("--broker", required=required, help="mqtt://host:port or mqtts://host:port")
    parser.add_argument("--cert", help="PEM file: this desk's certificate, with --key")
    parser.add_argument("--key", help="PEM file: its private key")
    if not any(action.dest == "ca" for action in parser._actions):  # noqa: SLF001  argparse has no question for it
        parser.add_argument("--ca", help="PEM file with the authorities to trust")


def repository(options: Namespace) -> Repository:
    """The repository that the options name, verified."""
    store = open_store(options.store, endpoint=options.endpoint, ca=options.ca)
    return Repository.load(store, Keyring(options.keys))


def broker(options: Namespace) -> Broker:
    """The broker that the options name."""
    return Broker(broker_at(options.broker, options.ca, options.cert, options.key))
