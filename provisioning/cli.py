"""`edge-provision`: keys and roles (trust_cli.py), a repository's beginning, groups, devices."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.core.documents import to_tree
from agent.core.errors import InputError
from fleet import terminal
from fleet.broker import broker_at
from fleet.keyring import Keyring
from fleet.repository import Repository
from fleet.stores import open_store
from provisioning.enrol import enrol, folders_in, paths_at
from provisioning.group_cli import add_group, add_many, add_revoke, run_device_enrol_listed
from provisioning.options import add_store, begun_place
from provisioning.trust_cli import add_keys, add_roles, add_trust

SERVICES = {"runner": {"start": "never"}}  # an installed runner is a service of its own and outlives the agent


def main(argv: list[str] | None = None) -> int:
    """The program; the exit code."""
    return terminal.run(make_parser(), argv)


def make_parser() -> ArgumentParser:
    """All commands and options."""
    parser = ArgumentParser(
        "edge-provision", description="Make and change keys, start a repository, make groups, enrol devices."
    )
    nouns = parser.add_subparsers(metavar="NOUN", required=True)

    add_keys(nouns)
    add_roles(nouns)
    add_trust(nouns)

    verbs = nouns.add_parser("store", help="start a repository").add_subparsers(metavar="VERB", required=True)
    one = verbs.add_parser("init", help="write the first signed metadata to an empty store")
    add_store(one)
    one.set_defaults(act=run_store_init)

    add_group(nouns)

    verbs = nouns.add_parser("device", help="enrol devices, take one out").add_subparsers(metavar="VERB", required=True)
    add_revoke(verbs)
    one = verbs.add_parser("enrol", help="write a device's grant and its enrolment folder, or many grants")
    add_many(one)
    one.add_argument("--group", required=True)
    one.add_argument("--out", type=Path, help="the enrolment folder; needed with NAME")
    one.add_argument("--public-key", type=Path, help="PEM file: the key the device made itself (P-256)")
    one.add_argument("--installed", type=Path, help="where the folder will lie on the device, e.g. /etc/edge-agent")
    one.add_argument("--broker", help="mqtt://host:port or mqtts://host:port")
    add_store(one)
    one.set_defaults(act=run_device_enrol)
    return parser


def run_store_init(options: Namespace) -> None:
    """`store init`."""
    store = open_store(options.store, endpoint=options.endpoint, ca=options.ca)
    repository = Repository.start(store, Keyring(options.keys), terminal.now())
    terminal.say(f"{options.store}: a repository begins; its root is pinned in {repository.keyring.root_file}")


def run_device_enrol(options: Namespace) -> None:
    """`device enrol`."""
    if options.listed is not None:
        run_device_enrol_listed(options)
        return
    if options.out is None:
        raise InputError("device enrol: say where the enrolment folder belongs with --out")
    enrol(
        begun_place(options),
        Keyring(options.keys),
        options.name,
        options.group,
        options.out,
        settings=device_settings(options),
        key=options.public_key,
        now=terminal.now(),
    )
    folder = options.installed or options.out
    terminal.say(f"{options.name} of {options.group}: start it with `edge-agent run --config {folder}/agent.yaml`")


def device_settings(options: Namespace) -> Mapping[str, Any]:
    """What agent.yaml says beside device and group."""
    folder = (options.installed or options.out).absolute()
    places = paths_at(folder) | (SERVICES if options.installed else folders_in(folder))
    store = {"url": options.store, "endpoint": options.endpoint, "ca": options.ca}
    settings = places | {"store": {key: value for key, value in store.items() if value is not None}}
    if options.broker is None:
        return settings
    said = to_tree(broker_at(options.broker))
    shown = ("host", "port", "tls", "username", "password")  # the rest are defaults
    return settings | {"broker": {key: said[key] for key in shown if said[key] is not None}}


if __name__ == "__main__":
    sys.exit(main())
