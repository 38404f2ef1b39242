"""`edge-fleet`: the operator's desk on the command line. What should run, and who says so: intent_cli.py."""

import os
import sys
import uuid
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from rich.live import Live
from rich.table import Column

from agent.adapters.broker import device_topic, group_topic
from agent.core.documents import from_json
from agent.core.errors import InputError, TransferError, TrustError
from agent.core.intent import Reply, Verb, Withdrawal
from agent.core.release import Ref
from agent.trust.expiry import expiring
from agent.trust.listing import delta_path, target_path
from fleet import terminal
from fleet.broker import Broker
from fleet.deploy import LIFETIME, sign_command
from fleet.export import export
from fleet.intent_cli import add_intent
from fleet.keyring import Keyring, check_word
from fleet.options import add_broker, add_repository, broker, repository, seconds
from fleet.policy import current_withdrawn
from fleet.publish import Checked, Publics, newest_base, newest_publics, publish, require_fit
from fleet.repository import Overtaken, Repository, expiries
from fleet.watch import Fleet

LAST_WORDS = frozenset({"done", "failed", "rejected", "expired"})
REPLY_S = 60.0  # `--wait`: a sync over a bad link
PAINT_S = 0.5
REFRESHES = 3  # tries, where another desk publishes at the same moment


def main(argv: list[str] | None = None) -> int:
    """The program; the exit code."""
    return terminal.run(make_parser(), argv)


def make_parser() -> ArgumentParser:
    """All commands and options."""
    parser = ArgumentParser("edge-fleet", description="Publish models, roll them out, watch, stop and take them back.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    one = commands.add_parser("publish", help="check, seal, sign and upload a release")
    one.add_argument("name", help="the release, e.g. face_detection_retinaface_widerface_20250628")
    one.add_argument(
        "--folder", type=Path, default=Path(os.environ.get("EDGE_MODELS") or "models"),
        help="with weights/, metadata/ and configs/; default: EDGE_MODELS, else models",
    )  # fmt: skip
    one.add_argument("--group", action="append", help="who may read it; repeat; default: every group known here")
    deltas = one.add_mutually_exclusive_group()
    deltas.add_argument(
        "--delta-from", action="append", metavar="NAME",
        help="a published release of the same model that devices have; repeat; default: the newest in the folder",
    )  # fmt: skip
    deltas.add_argument("--no-delta", action="store_true", help="devices take the release whole")
    add_repository(one)
    one.set_defaults(act=run_publish)

    one = commands.add_parser("list", help="what is published, and what expires when")
    add_repository(one)
    one.set_defaults(act=run_list)

    one = commands.add_parser("export", help="one file with what a group's devices read, for a site without a network")
    one.add_argument("--group", required=True)
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="for `edge-agent import`, e.g. site.zip")
    one.add_argument("--release", action="append", default=[], help="beside what is deployed there; repeat")
    add_repository(one)
    one.set_defaults(act=run_export)

    add_intent(commands)

    one = commands.add_parser("command", help="ask a device or a group for something, once")
    one.add_argument("verb", choices=[verb.value for verb in Verb])
    add_command(one)

    one = commands.add_parser("rollback", help="short for `command rollback`")
    add_command(one)
    one.set_defaults(verb=Verb.ROLLBACK.value)

    one = commands.add_parser("watch", help="what every device runs, live")
    one.add_argument("--for", dest="seconds", type=seconds, help="stop after so many seconds")
    add_broker(one, required=True)
    one.set_defaults(act=run_watch)

    one = commands.add_parser(
        "refresh", help="sign snapshot and timestamp anew: for cron, every few hours; silent where all is well"
    )
    add_repository(one)
    one.set_defaults(act=run_refresh)
    return parser


def add_command(parser: ArgumentParser) -> None:
    """The options of commands to devices."""
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--device")
    whom.add_argument("--group")
    parser.add_argument("--slot", help="default: every slot")
    parser.add_argument("--release", help="pin: the release; without it, the pin is lifted")
    parser.add_argument("--wait", action="store_true", help="show replies until the last word")
    parser.add_argument("--keys", type=Path, required=True, help="folder with the operators' key")
    add_broker(parser, required=True)
    parser.set_defaults(act=run_command)


def run_publish(options: Namespace) -> None:
    """`publish`."""
    from models.check import check_release  # noqa: PLC0415  brings ONNX along, which no other command needs

    if not options.folder.is_dir():
        raise InputError(
            f"{options.folder}: no such folder; --folder or EDGE_MODELS names the one with weights/ and the rest"
        )
    found = repository(options)
    checked = check_release(options.folder, options.name)
    for note in checked.notes:
        terminal.say(f"{options.name}: {note}")
    groups = newest_publics(found.keyring, options.group or found.keyring.groups())
    bases = [] if options.no_delta else bases_of(found, options, groups)
    with terminal.bars() as tell:
        ref = publish(found, checked, groups, bases=bases, now=terminal.now(), tell=tell)
    named = ", ".join(f"{group} (epoch {epoch})" for group, epoch in sorted(groups))
    terminal.say(f"published {ref} for {named}: sha256 {ref.digest}")
    for base in bases:
        terminal.say(worth(found, ref.name, base.name))


def bases_of(found: Repository, options: Namespace, groups: Publics) -> list[Checked]:
    """The releases that deltas are made from; one that nobody named is left out, with a word, where it does not fit."""
    from models.check import check_release  # noqa: PLC0415  as in `run_publish`
    from models.folder import open_folder  # noqa: PLC0415

    if options.delta_from:
        return [base_of(found, options.folder, name) for name in options.delta_from]
    name = newest_base(found, options.name, open_folder(options.folder).releases())
    if name is None:
        return []
    try:
        base = check_release(options.folder, name)
        require_fit(found, options.name, base, groups)
    except InputError as error:
        terminal.say(f"no delta from {name}: {error}")
        return []
    return [base]


def base_of(found: Repository, folder: Path, name: str) -> Checked:
    """A published release that a delta is made from; raises InputError where it is none, or its files are not here."""
    from models.check import check_release  # noqa: PLC0415  as in `run_publish`

    try:
        return check_release(folder, name)
    except InputError as error:
        found.ref(name)  # that nobody published it says more than which files of it are missing
        raise InputError(f"--delta-from {name}: its files are needed here as they were published. {error}") from error


def worth(found: Repository, name: str, base: str) -> str:
    """What a delta saves, in a sentence."""
    whole, delta = found.find(target_path(name)), found.find(delta_path(name, found.ref(base).digest))
    if whole is None or delta is None:
        return f"delta from {base}: it would save too little, so devices take the release whole"
    saved = 1 - delta.length / whole.length
    return f"delta from {base}: {delta.length:,} of {whole.length:,} bytes, {saved:.0%} saved"


def run_list(options: Namespace) -> None:
    """`list`."""
    found = repository(options)
    gone = withdrawn(found)
    table = terminal.table("release", "sha256", Column("sealed bytes", justify="right"))
    for ref in found.refs():
        target = found.find(target_path(ref.name))
        table.add_row(ref.name, ref.digest[:16], "withdrawn" if ref in gone else f"{target.length:,}" if target else "")
    terminal.out.print(table)
    for ref, one in gone.items():
        terminal.say(f"{ref}: withdrawn {one.at:%Y-%m-%d}: {one.reason}; no device chooses it")
    now = terminal.now()
    for role, expires in expiries(found):
        left = expires - now
        state = f"expires in {left.days} d {left.seconds // 3600} h" if left > timedelta(0) else "has EXPIRED"
        terminal.say(f"{role}: {state}")


def withdrawn(found: Repository) -> Mapping[Ref, Withdrawal]:
    """What was withdrawn; a list that devices do not believe is told, and hides nothing else."""
    try:
        return current_withdrawn(found)
    except TrustError as error:
        terminal.warn(f"which releases were withdrawn cannot be told: {error}")
        return {}


def run_export(options: Namespace) -> None:
    """`export`."""
    found = repository(options)
    with terminal.bars() as tell:
        names = export(found, options.group, options.release, options.out, now=terminal.now(), tell=tell)
    expires = found.timestamp.signed.expires
    terminal.say(f"{options.out}: {', '.join(names)} for {options.group}")
    for name in sorted({ref.name for ref in withdrawn(found)}.intersection(names)):
        terminal.say(f"{name}: was withdrawn; it is in the file, and no device chooses it")
    terminal.say(f"devices take it until {expires.isoformat()}; later, `edge-fleet refresh` and export again")


def run_command(options: Namespace) -> None:
    """`command` and `rollback`."""
    if options.release is not None and options.verb != Verb.PIN.value:
        raise InputError(f"{options.verb}: takes no --release; only pin does")
    command_id = uuid.uuid4().hex
    kind, name = ("device", options.device) if options.device is not None else ("group", options.group)
    scope = f"{kind}:{check_word(kind, name)}"
    topic = (device_topic if kind == "device" else group_topic)(name, "cmd", command_id, "req")
    signed = sign_command(
        Keyring(options.keys),
        scope,
        Verb(options.verb),
        command_id=command_id,
        now=terminal.now(),
        slot=options.slot,
        release=options.release,
    )
    with broker(options) as link:
        if options.wait:
            link.subscribe(device_topic(options.device or "+", "cmd", command_id, "res"))
        link.publish(topic, signed, expiry_s=int(LIFETIME.total_seconds()))
        terminal.say(f"{scope}: {options.verb} sent as {command_id}")
        if options.wait:
            terminal.say(f"waiting {REPLY_S:.0f} s at most for {'its last word' if options.device else 'answers'}")
            show_replies(link, scope, one_device=options.device is not None)


def show_replies(link: Broker, scope: str, *, one_device: bool) -> None:
    """Prints replies; of one device until its last word, of a group until the time is over."""
    is_heard = False
    for topic, payload in link.messages(REPLY_S):
        is_heard = True
        reply = from_json(Reply, payload, topic)
        words = [topic.split("/")[2], reply.status, reply.reason, *(f"{k}={v}" for k, v in reply.result.items())]
        terminal.say(" ".join(word for word in words if word))
        if one_device and reply.status in LAST_WORDS:
            if reply.status != "done":
                raise TransferError(f"the command ended as {reply.status}: {reply.reason}")
            return
    if not is_heard:
        raise TransferError(
            f"{scope}: nobody answered within {REPLY_S:.0f} s: away, or unknown at this broker; `edge-fleet watch` "
            f"lists whom it knows. Who comes within {LIFETIME.total_seconds() / 60:.0f} min still takes the command"
        )
    if one_device:
        raise TransferError(f"{scope}: no last word within {REPLY_S:.0f} s; `edge-fleet watch` shows what it does")


def run_watch(options: Namespace) -> None:
    """`watch`."""
    fleet = Fleet()
    end = terminal.now() + timedelta(seconds=options.seconds) if options.seconds else None
    with broker(options) as link, Live(fleet.table(), console=terminal.out, auto_refresh=False) as live:
        link.subscribe(device_topic("+", "state"), device_topic("+", "reported"))
        while end is None or terminal.now() < end:
            for topic, payload in link.messages(PAINT_S):
                fleet.hear(topic, payload)
            live.update(fleet.table(), refresh=True)
    if not terminal.out.is_terminal:
        terminal.out.line()  # a live table leaves its last line open there


def run_refresh(options: Namespace) -> None:
    """`refresh`: silent where all is well, so that cron sends no mail."""
    for tries_left in range(REFRESHES)[::-1]:
        found = repository(options)
        try:
            found.refresh(terminal.now())
        except Overtaken:
            if not tries_left:
                raise
            continue
        for warning in expiring(dict(expiries(found)), terminal.now()):
            terminal.warn(warning)
        return


if __name__ == "__main__":
    sys.exit(main())
