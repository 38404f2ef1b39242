"""The commands of `edge-provision` for groups, and for many devices at once."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from agent.core.errors import InputError
from fleet import terminal
from fleet.keyring import Keyring
from fleet.repository import Repository
from provisioning.enrol import enrol_listed
from provisioning.grants import begun, check_keys, rotate
from provisioning.keys import init_group, new_passphrase
from provisioning.options import add_folder, add_passphrase, add_store, begun_place, repository
from provisioning.register import enrolled, strike_out


def add_group(nouns: Any) -> None:
    """The commands of the noun `group`."""
    verbs = nouns.add_parser("group", help="make a group, change its key").add_subparsers(metavar="VERB", required=True)
    one = verbs.add_parser("init", help="make the first epoch's keys of a new group")
    one.add_argument("name")
    add_passphrase(one)
    add_folder(one)
    one.set_defaults(act=run_group_init)

    one = verbs.add_parser("rotate", help="make the next epoch's keys, and grant them to every device of the group")
    one.add_argument("name")
    add_store(one)
    one.set_defaults(act=run_group_rotate)


def add_revoke(verbs: Any) -> None:
    """`device revoke`."""
    one = verbs.add_parser("revoke", help="take a device out of a group: it opens nothing published afterwards")
    one.add_argument("name")
    one.add_argument("--group", required=True)
    add_store(one)
    one.set_defaults(act=run_device_revoke)


def add_many(parser: ArgumentParser) -> None:
    """One device by its name, or a list of them."""
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("name", nargs="?")
    whom.add_argument(
        "--from", dest="listed", type=Path, metavar="LIST",
        help="grants alone, for every line of NAME and PUBLIC-KEY (DER in base64); cut off, run it again",
    )  # fmt: skip


def run_group_init(options: Namespace) -> None:
    """`group init`."""
    epoch = init_group(Keyring(options.keys), options.name, new_passphrase() if options.encrypt else None)
    terminal.say(f"group {options.name}: epoch {epoch}")
    if not options.encrypt:
        terminal.say("its private key has no passphrase: that is for trying things out; --encrypt gives it one")


def run_group_rotate(options: Namespace) -> None:
    """`group rotate`."""
    change_epoch(repository(options), options.name)


def run_device_revoke(options: Namespace) -> None:
    """`device revoke`."""
    found = repository(options)
    check_keys(found.keyring, options.group)
    if options.name in enrolled(found.keyring, options.group) or begun(found.keyring, options.group) is None:
        strike_out(found.keyring, options.group, options.name)
    change_epoch(found, options.group)
    terminal.say(
        f"{options.name} is out of {options.group}: it opens nothing that is published from now on. It keeps what it "
        "could read until today; delete its certificate at the broker and its access to the store"
    )


def change_epoch(found: Repository, group: str) -> None:
    """The next epoch, with a progress bar, and who must hear of it."""
    if (left := begun(found.keyring, group)) is not None:
        terminal.say(f"group {group}: epoch {left} was begun before; it is finished now")
    with terminal.count("grants") as tell:
        epoch = rotate(found, group, now=terminal.now(), tell=tell)
    devices = len(enrolled(found.keyring, group))
    terminal.say(f"group {group}: epoch {epoch}, granted to its devices ({devices}); nothing was encrypted again")
    terminal.say(f"copy {found.keyring.folder}/groups/{group}/{epoch}.pub to every desk that publishes")


def run_device_enrol_listed(options: Namespace) -> None:
    """`device enrol --from`."""
    unfit = [name for name in ("out", "public_key", "installed", "broker") if getattr(options, name) is not None]
    if unfit:
        raise InputError(f"device enrol --from: writes grants alone; leave out --{unfit[0].replace('_', '-')}")
    store = begun_place(options)
    with terminal.count("grants") as tell:
        made = enrol_listed(
            store, Keyring(options.keys), options.listed, options.group, now=terminal.now(), tell=tell
        )  # fmt: skip
    terminal.say(f"{made} devices of {options.group} have their grants")
