"""`edge-provision keys`, `role` and `trust`: who may do what."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.core.documents import from_json
from agent.core.errors import InputError, TrustError
from fleet import terminal
from fleet.keyring import ROLES, Keyring, read
from fleet.pending import read_pending
from fleet.repository import Repository
from fleet.signers import KeyFile, public_at
from provisioning import rotation
from provisioning.keys import init_keys, name_key, new_key, new_passphrase
from provisioning.options import add_folder, add_passphrase, add_store, open_place, repository
from provisioning.standing import carry_over, leave_all
from provisioning.trust import SHOWN, burnt, signed_words, trust_table, waiting_tables, warnings


def add_keys(nouns: Any) -> None:
    """`keys`."""
    verbs = nouns.add_parser("keys", help="make, show, replace and revoke signing keys")
    add = verb_of(verbs.add_subparsers(metavar="VERB", required=True))
    one = add("init", run_init, "make every role's keys in a new folder")
    one.add_argument("folder", type=Path)
    add_passphrase(one)
    one = add("show", run_show, "which keys this folder holds")
    one.add_argument("folder", type=Path)
    one = add("add", run_add, "one more key: made here, in a token or key service, or somebody else's")
    one.add_argument("role")
    where = one.add_mutually_exclusive_group()
    where.add_argument("--uri", help="hsm:ID?label=TOKEN (PKCS #11, module in PYKCS11LIB) or awskms:KEY")
    where.add_argument("--public", type=Path, metavar="PEM", help="somebody else's public key")
    add_folder(one)
    add_passphrase(one)
    one = add("rotate", run_rotate, "replace a role's keys")
    one.add_argument("roles", nargs="+", metavar="ROLE", help="several are replaced in one step")
    one.add_argument("--old", metavar="KEYID", help="replace this one alone; default: all keys of the role")
    one.add_argument("--to", metavar="KEYID", nargs="+", default=(), help="keys from `keys add`; default: new ones")
    add_stolen(one)
    one.add_argument(
        "--recall", action="store_true", help="after a theft: go on from what this desk saw last, not from the store"
    )
    add_store(one)
    add_passphrase(one)
    one = add("revoke", run_revoke, "take a key from a role, without a new one")
    one.add_argument("role")
    one.add_argument("keyid", help="the beginning is enough; `trust show` lists them")
    add_stolen(one)
    add_store(one)
    one = add("renew", run_renew, "sign a role's metadata anew before it expires")
    one.add_argument("role")
    add_store(one)
    one = add("sign", run_sign, "add this folder's signatures to a change that waits; needs no store")
    one.add_argument("files", type=Path, nargs="+", metavar="FILE", help="from the folder pending/ of another desk")
    add_folder(one)
    one = add("finish", run_finish, "publish a change that enough have signed")
    one.add_argument("files", type=Path, nargs="+", metavar="FILE")
    one.add_argument("--recall", action="store_true", help="where the change was begun with it")
    add_stolen(one)
    add_store(one)


def add_roles(nouns: Any) -> None:
    """`role`."""
    verbs = nouns.add_parser("role", help="give a task or team its own signing keys")
    add = verb_of(verbs.add_subparsers(metavar="VERB", required=True))
    one = add("add", run_role_add, "a role that alone may list the releases of some paths")
    one.add_argument("name", help="e.g. face-team")
    one.add_argument("--paths", nargs="+", required=True, help="e.g. 'releases/face_detection_*'")
    one.add_argument("--threshold", type=int, default=1, help="how many of its keys must sign (default 1)")
    one.add_argument("--keys-count", type=int, help="how many keys to make (default: the threshold)")
    add_store(one)
    add_passphrase(one)
    one = add("remove", run_role_remove, "end a team's role; what it listed stays listed, by the general role")
    one.add_argument("name")
    add_store(one)


def add_trust(nouns: Any) -> None:
    """`trust`."""
    verbs = nouns.add_parser("trust", help="who may do what, and until when")
    one = verb_of(verbs.add_subparsers(metavar="VERB", required=True))("show", run_trust_show, "every role of a store")
    add_store(one)


def verb_of(verbs: Any) -> Callable[[str, Callable[[Namespace], None], str], ArgumentParser]:
    """Adds a verb: its name, what it does, and its line of help."""

    def add(name: str, act: Callable[[Namespace], None], text: str) -> ArgumentParser:
        one: ArgumentParser = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        one.set_defaults(act=act)
        return one

    return add


def add_stolen(parser: ArgumentParser) -> None:
    """For commands after which documents may count no more."""
    parser.add_argument(
        "--stolen", action="store_true", help="sign nothing again that the old keys signed; default: all that stands"
    )


def standing(options: Namespace) -> rotation.Stand:
    """What becomes of what the old keys signed."""
    stand = leave_all if options.stolen else carry_over

    def told(found: Repository) -> None:
        for sentence in stand(found):
            terminal.warn(sentence)

    return told


def passphrase(options: Namespace) -> str | None:
    """For new keys, where one is wanted."""
    return new_passphrase() if options.encrypt else None


def run_init(options: Namespace) -> None:
    """`keys init`."""
    keyring = init_keys(options.folder, passphrase(options))
    terminal.say(f"made {sum(keys.count for keys in ROLES.values())} keys in {keyring.folder}/roles")
    terminal.say("keep the root and targets keys apart from each other and offline; see docs/guides/keys.md")


def run_show(options: Namespace) -> None:
    """`keys show`."""
    if not options.folder.is_dir():
        raise InputError(f"{options.folder}: no such folder; make one with `edge-provision keys init`")
    keyring = Keyring(options.folder)
    if not keyring.roles() and not keyring.groups():
        raise InputError(
            f"{options.folder}: holds no keys; name the folder with roles/ and groups/, or make them with "
            "`edge-provision keys init`"
        )
    table = terminal.table("role", "file", "key", "signs")
    for role in [*ROLES, *(role for role in keyring.roles() if role not in ROLES)]:
        for path in keyring.files(role):
            table.add_row(role, path.name, *shown(path))
        if not keyring.holds(role):
            table.add_row(role, "-", "-", "at another desk")
    terminal.out.print(table)
    for group in keyring.groups():
        terminal.say(f"group {group}: epochs {', '.join(map(str, sorted(keyring.publics(group))))}")


def shown(path: Path) -> tuple[str, str]:
    """A key's id and where it signs, as far as that can be said without a secret."""
    content = read(path, "bring the key")
    if path.suffix == ".pem":
        locked = b"ENCRYPTED" in content
        return ("-", "here, passphrase") if locked else (public_at(path, content).keyid[:SHOWN], "here")
    file = from_json(KeyFile, content, str(path))
    return file.keyid[:SHOWN], file.uri or "at another desk"


def run_add(options: Namespace) -> None:
    """`keys add`."""
    keyring = Keyring(options.keys)
    if options.uri or options.public:
        keyid = name_key(keyring, options.role, uri=options.uri, public=options.public).keyid
    else:
        keyid = new_key(keyring, options.role, passphrase(options)).keyid
    terminal.say(f"{options.role}: key {keyid[:SHOWN]} is in {keyring.files(options.role)[-1]}")
    terminal.say(
        "nobody believes it yet: `keys rotate --to`, `role add` or, before the beginning, `store init` names it"
    )


def run_rotate(options: Namespace) -> None:
    """`keys rotate`."""
    made = rotation.rotate(
        repository(options), options.roles, terminal.now(), stand=standing(options),
        old=options.old, to=options.to, passphrase=passphrase(options),
    )  # fmt: skip
    for role, keyids in made.items():
        terminal.say(
            f"{role}: {', '.join(keyid[:SHOWN] for keyid in keyids)} from now on; devices follow at their next poll"
        )
    terminal.say("bring the new keys to the desks that use them, and root.json with a new root; destroy the old keys")


def run_revoke(options: Namespace) -> None:
    """`keys revoke`."""
    rotation.revoke(repository(options), options.role, options.keyid, terminal.now(), stand=standing(options))
    terminal.say(f"{options.role}: {options.keyid} counts no more; devices follow at their next poll")


def run_renew(options: Namespace) -> None:
    """`keys renew`."""
    rotation.renew(repository(options), options.role, terminal.now())
    terminal.say(f"{options.role}: signed anew")


def run_sign(options: Namespace) -> None:
    """`keys sign`."""
    for path in options.files:
        for part in waiting_tables(read_pending(path)):
            terminal.out.print(part)
        pending, new = rotation.add_signatures(path, Keyring(options.keys))
        terminal.say(f"{path}: {new} new signatures; {signed_words(pending)}")


def run_finish(options: Namespace) -> None:
    """`keys finish`."""
    try:
        found = repository(options)
    except TrustError:
        roles = rotation.mend_root(open_place(options), Keyring(options.keys), options.files)
        if not roles:
            raise
    else:
        roles = rotation.finish(found, options.files, terminal.now(), stand=standing(options))
    terminal.say(f"{' and '.join(roles)}: published; devices follow at their next poll")


def run_role_add(options: Namespace) -> None:
    """`role add`."""
    rotation.add_role(
        repository(options), options.name, options.paths, terminal.now(),
        count=options.keys_count or options.threshold, need=options.threshold, passphrase=passphrase(options),
    )  # fmt: skip
    terminal.say(f"{options.name}: alone lists {', '.join(options.paths)} from now on")
    terminal.say(f"its desk needs roles/{options.name}-*, snapshot-* and timestamp-*; see docs/guides/keys.md")


def run_role_remove(options: Namespace) -> None:
    """`role remove`."""
    rotation.remove_role(repository(options), options.name, terminal.now())
    terminal.say(f"{options.name}: ended; what it listed is listed by its successor")


def run_trust_show(options: Namespace) -> None:
    """`trust show`."""
    found = repository(options)
    for warning in burnt(found):
        terminal.warn(warning)
    terminal.out.print(trust_table(found))
    for warning in warnings(found, terminal.now()):
        terminal.warn(warning)
