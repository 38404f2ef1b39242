"""The commands of `edge-fleet` that say what should run, and who may say so: rollout, wave, sign, withdraw, policy."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.adapters.broker import group_topic
from agent.core.documents import from_json
from agent.core.errors import InputError, TransferError, TrustError
from agent.core.intent import Policy, Rollout, WaveAction
from fleet import terminal
from fleet.broker import Broker
from fleet.deploy import SOAK_S, first_share, propose, put_out, steer, users_of
from fleet.keyring import Keyring, read
from fleet.options import add_broker, add_repository, broker, repository
from fleet.pending import Pending, read_pending, write_pending
from fleet.policy import current_policy, is_current, propose_withdrawal, put_withdrawal, set_policy
from fleet.repository import Repository
from fleet.signing import signed, words

BOTH = ("operators", "operators-critical")


def add_intent(commands: Any) -> None:
    """Adds the commands."""
    add_rollout(commands.add_parser("rollout", help="move a slot of a group to a release"))

    one = commands.add_parser("wave", help="widen, pause, halt or revert the rollout that stands")
    one.add_argument("action", choices=[action.value for action in WaveAction])
    one.add_argument("--group", required=True)
    one.add_argument("--share", type=float, help="one of the rollout's shares; default: as it is")
    add_repository(one)
    add_broker(one, required=False)
    one.set_defaults(act=run_wave)

    one = commands.add_parser("sign", help="show a pending rollout or withdrawal in words, and sign it")
    one.add_argument("file", type=Path, help="what --pending wrote")
    one.add_argument("--role", choices=BOTH, default=BOTH[0], help="whose keys sign (default operators)")
    one.add_argument("--keys", type=Path, required=True, help="folder with the keys of this desk")
    one.set_defaults(act=run_sign)

    add_withdraw(commands.add_parser("withdraw", help="take a release back for ever, on every device"))

    one = commands.add_parser("policy", help="who may do what: set it from a file, or show it")
    one.add_argument("verb", choices=("set", "show"))
    one.add_argument("file", type=Path, nargs="?", help="set: YAML or JSON, as models/schemas/policy.schema.json says")
    add_repository(one)
    one.set_defaults(act=run_policy)


def add_rollout(parser: ArgumentParser) -> None:
    """The options of `rollout`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--release")
    what.add_argument("--from", dest="signed", type=Path, metavar="FILE", help="publish what `sign` has signed")
    parser.add_argument("--group", help="with --release")
    parser.add_argument("--slot", help="default: the release's task")
    parser.add_argument("--share", type=float, default=1.0, help="part of the group that begins, 0 to 1 (default 1)")
    parser.add_argument("--soak", type=float, default=SOAK_S, metavar="SECONDS", help="watched so long (default 600)")
    parser.add_argument(
        "--critical", action="store_true", help="to a release from before what stands: operators-critical sign, too"
    )
    add_pending(parser)
    add_repository(parser)
    add_broker(parser, required=False)
    parser.set_defaults(act=run_rollout)


def add_withdraw(parser: ArgumentParser) -> None:
    """The options of `withdraw`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("release", nargs="?")
    what.add_argument("--from", dest="signed", type=Path, metavar="FILE", help="publish what `sign` has signed")
    parser.add_argument("--reason", help="why; devices show it")
    parser.add_argument("--force", action="store_true", help="though a group is to run it: its slot may go dark")
    add_pending(parser)
    add_repository(parser)
    parser.set_defaults(act=run_withdraw)


def add_pending(parser: ArgumentParser) -> None:
    """The option of commands that take signatures of several desks."""
    parser.add_argument("--pending", type=Path, metavar="FILE", help="write it there to be signed; publish nothing")


def run_rollout(options: Namespace) -> None:
    """`rollout`."""
    link = broker_of(options)
    found = repository(options)
    rollout = read_signed(options) if options.signed else sign_rollout(found, options)
    if options.pending:
        leave(options.pending, rollout, "rollout")
        return
    with telling_who_signs(options.signed):
        pair = put_out(found, found.keyring, rollout, terminal.now())
    said = from_json(Rollout, rollout.payload, "rollout")
    announce(link, said.group, pair)
    moving = {slot: move.goal for slot, move in said.slots.items() if move.goal != move.start}
    for slot, goal in moving.items():
        terminal.say(f"{said.group}: {slot} moves to {goal}, share {first_share(said):g}")
    if not moving:
        terminal.say(f"{said.group}: nothing moves: all are to run this already, and `wave revert` goes back to it now")


def sign_rollout(found: Repository, options: Namespace) -> Pending:
    """A new rollout with the signatures of this desk."""
    if options.group is None:
        raise InputError("rollout: say which group with --group")
    slot = options.slot or task_of(found, options.release)
    rollout = propose(
        found, options.group, slot, options.release, options.share, soak_s=options.soak, now=terminal.now()
    )
    return sign_here(rollout, found, options, BOTH if options.critical else BOTH[:1])


def sign_here(pending: Pending, found: Repository, options: Namespace, roles: Iterable[str]) -> Pending:
    """What this desk can sign of it; what is left pending may lack its keys."""
    for role in roles:
        if found.keyring.holds(role) or not options.pending:
            pending = signed(pending, found.keyring, role)
    return pending


def run_wave(options: Namespace) -> None:
    """`wave`."""
    link = broker_of(options)
    found = repository(options)
    pair = steer(found, found.keyring, options.group, WaveAction(options.action), options.share, now=terminal.now())
    announce(link, options.group, pair)
    terminal.say(f"{options.group}: {options.action}")


def task_of(found: Repository, release: str) -> str:
    """The slot that a release is made for."""
    found.ref(release)
    target = found.find(f"releases/{release}.sealed")
    return str(target.custom["task"]) if target is not None and target.custom else ""


def broker_of(options: Namespace) -> Broker | None:
    """The broker, where one is named. Asked for before anything is signed: a wrong address changes nothing."""
    return broker(options) if options.broker is not None else None


def announce(link: Broker | None, group: str, pair: bytes) -> None:
    """Tells devices at once what stands; without a broker they find it at their next poll.

    Raises:
        TransferError: the broker takes nothing; says that it stands all the same.
    """
    if link is None:
        return
    try:
        with link:
            link.publish(group_topic(group, "deployment"), pair, retain=True)
    except TransferError as error:
        advice = "it stands in the store all the same, and devices find it at their next poll: do not repeat it"
        raise TransferError(f"{error}; {advice}") from error


def run_sign(options: Namespace) -> None:
    """`sign`."""
    pending = read_pending(options.file)
    for line in words(pending):
        terminal.say(line)
    after = signed(pending, Keyring(options.keys), options.role)
    write_pending(options.file, after)
    new = {one.keyid for one in after.signatures} - {one.keyid for one in pending.signatures}
    terminal.say(f"signed now by {', '.join(key[:16] for key in sorted(new)) or 'nobody new'} ({options.role})")


def run_withdraw(options: Namespace) -> None:
    """`withdraw`."""
    found = repository(options)
    listed = read_signed(options) if options.signed else sign_withdrawal(found, options)
    if options.pending:
        leave(options.pending, listed, "withdraw")
        return
    with telling_who_signs(options.signed):
        new = put_withdrawal(found, listed, terminal.now())
    for one in new:
        terminal.say(f"withdrawn {one.release}: no device chooses it again once it has asked the store")


def sign_withdrawal(found: Repository, options: Namespace) -> Pending:
    """A new withdrawal with the signatures of this desk."""
    if not options.reason:
        raise InputError("withdraw: say why with --reason; devices show it")
    listed = propose_withdrawal(found, options.release, options.reason, terminal.now())
    users = users_of(found, found.ref(options.release), terminal.now())
    if users and not options.force:
        raise InputError(
            f"release {options.release}: {', '.join(users)} is to run it; roll out another release there first, "
            "or --force, and a device without another good one goes dark"
        )
    return sign_here(listed, found, options, BOTH[1:])


def read_signed(options: Namespace) -> Pending:
    """What `sign` has signed."""
    if options.pending:
        raise InputError("--from publishes and --pending does not; choose one")
    return read_pending(options.signed)


def leave(file: Path, pending: Pending, what: str) -> None:
    """Writes what is to be signed elsewhere."""
    write_pending(file, pending)
    terminal.say(f"{file}: signatures so far: {len(pending.signatures)}; nothing is published")
    terminal.say(f"next: `edge-fleet sign {file}` at the desks of others, then `edge-fleet {what} --from {file}`")


@contextmanager
def telling_who_signs(file: Path | None) -> Iterator[None]:
    """What is missing, and how to get it."""
    try:
        yield
    except TrustError as error:
        role = " --role operators-critical" if "operators-critical" in str(error) else ""
        here = "--critical where this desk has the keys, or " if role else ""
        first = "" if file else f"{here}leave it with --pending FILE, then "
        raise InputError(f"{error}. Have it signed: {first}`edge-fleet sign {file or 'FILE'}{role}`") from error


def run_policy(options: Namespace) -> None:
    """`policy`."""
    if (options.verb == "set") != (options.file is not None):
        raise InputError("policy: write `policy set FILE` or `policy show`")
    found = repository(options)
    if options.verb == "set":
        content = read(options.file, "name the file that holds the policy")
        set_policy(found, content, str(options.file), terminal.now())
    show_policy(current_policy(found), found.targets.signed.get_delegated_role("operators").keyids)


def show_policy(policy: Policy | None, keys: Iterable[str]) -> None:
    """Who may do what, for people; `keys` are those of the role operators today."""
    if policy is None:
        terminal.say("no policy: every key of operators may do everything, in every group")
        return
    table = terminal.table("name", "key", "verbs", "groups", "until")
    for one in policy.operators:
        until = f"{one.expires:%Y-%m-%d %H:%M} UTC" if one.expires else ""
        ended = "" if is_current(one, terminal.now()) else " (over)"
        table.add_row(one.name, one.key[:16], " ".join(one.verbs), " ".join(one.groups), until + ended)
    terminal.out.print(table)
    named = {one.key for one in policy.operators}
    for key in sorted(named.symmetric_difference(keys)):
        what = "is no key of operators any more" if key in named else "is a key of operators, and may do nothing here"
        terminal.say(f"{key[:16]} {what}: set the policy anew")
    for quorum in policy.signatures:
        terminal.say(f"{', '.join(quorum.verbs)} on {', '.join(quorum.groups)}: {quorum.count} must sign")
