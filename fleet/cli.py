"""`edge-fleet`: the operator's desk on the command line."""

import sys
import uuid
from argparse import ArgumentParser, Namespace
from datetime import timedelta
from pathlib import Path

from rich.live import Live
from rich.table import Table

from agent.adapters.broker import device_topic, group_topic
from agent.core.documents import from_json
from agent.core.errors import InputError, TransferError
from agent.core.intent import Reply, Verb, WaveAction
from agent.trust.listing import delta_path, target_path
from fleet import terminal
from fleet.broker import Broker, broker_at
from fleet.deploy import LIFETIME, SOAK_S, deploy, sign_command, steer
from fleet.keyring import Keyring, check_word
from fleet.publish import Checked, Publics, newest_base, newest_publics, publish, require_fit
from fleet.repository import Repository, expiries
from fleet.stores import open_store
from fleet.watch import Fleet

LAST_WORDS = frozenset({"done", "failed", "rejected", "expired"})
REPLY_S = 60.0  # `--wait`: a sync over a bad link
PAINT_S = 0.5
LONGEST_S = 365 * 24 * 3600.0


def main(argv: list[str] | None = None) -> int:
    """The program; the exit code."""
    return terminal.run(make_parser(), argv)


def make_parser() -> ArgumentParser:
    """All commands and options."""
    parser = ArgumentParser("edge-fleet", description="Publish models, roll them out, watch, stop and take them back.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    one = commands.add_parser("publish", help="check, seal, sign and upload a release")
    one.add_argument("name", help="the release, e.g. face_detection_retinaface_widerface_20250628")
    one.add_argument("--folder", type=Path, default=Path("models"), help="with weights/, metadata/ and configs/")
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

    one = commands.add_parser("rollout", help="move a slot of a group to a release")
    one.add_argument("--group", required=True)
    one.add_argument("--slot", help="default: the release's task")
    one.add_argument("--release", required=True)
    one.add_argument("--share", type=float, default=1.0, help="part of the group that begins, 0 to 1 (default 1)")
    one.add_argument("--soak", type=float, default=SOAK_S, metavar="SECONDS", help="watched so long (default 600)")
    add_repository(one)
    add_broker(one, required=False)
    one.set_defaults(act=run_rollout)

    one = commands.add_parser("wave", help="widen, pause, halt or revert the rollout that stands")
    one.add_argument("action", choices=[action.value for action in WaveAction])
    one.add_argument("--group", required=True)
    one.add_argument("--share", type=float, help="one of the rollout's shares; default: as it is")
    add_repository(one)
    add_broker(one, required=False)
    one.set_defaults(act=run_wave)

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

    one = commands.add_parser("refresh", help="sign snapshot and timestamp anew; run it every few hours")
    add_repository(one)
    one.set_defaults(act=run_refresh)
    return parser


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


def repository(options: Namespace) -> Repository:
    """The repository that the options name, verified."""
    store = open_store(options.store, endpoint=options.endpoint, ca=options.ca)
    return Repository.load(store, Keyring(options.keys))


def broker(options: Namespace) -> Broker:
    """The broker that the options name."""
    return Broker(broker_at(options.broker, options.ca, options.cert, options.key))


def run_publish(options: Namespace) -> None:
    """`publish`."""
    from models.check import check_release  # noqa: PLC0415  brings ONNX along, which no other command needs

    if not options.folder.is_dir():
        raise InputError(f"{options.folder}: no such folder; --folder names the one with weights/, metadata/, configs/")
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
        return [check_release(options.folder, name) for name in options.delta_from]
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
    table = Table("release", "sha256", "sealed bytes")
    for ref in found.refs():
        target = found.find(f"releases/{ref.name}.sealed")
        table.add_row(ref.name, ref.digest[:16], f"{target.length:,}" if target else "")
    terminal.out.print(table)
    now = terminal.now()
    for role, expires in expiries(found):
        left = expires - now
        state = f"expires in {left.days} d {left.seconds // 3600} h" if left > timedelta(0) else "has EXPIRED"
        terminal.say(f"{role}: {state}")


def run_rollout(options: Namespace) -> None:
    """`rollout`."""
    found = repository(options)
    slot = options.slot or task_of(found, options.release)
    pair = deploy(
        found, found.keyring, options.group, slot, options.release, options.share,
        soak_s=options.soak, now=terminal.now(),
    )  # fmt: skip
    announce(options, pair)
    terminal.say(f"{options.group}: {slot} moves to {options.release}, share {options.share:g}")


def run_wave(options: Namespace) -> None:
    """`wave`."""
    found = repository(options)
    pair = steer(found, found.keyring, options.group, WaveAction(options.action), options.share, now=terminal.now())
    announce(options, pair)
    terminal.say(f"{options.group}: {options.action}")


def task_of(found: Repository, release: str) -> str:
    """The slot that a release is made for."""
    found.ref(release)
    target = found.find(f"releases/{release}.sealed")
    return str(target.custom["task"]) if target is not None and target.custom else ""


def announce(options: Namespace, pair: bytes) -> None:
    """Tells devices at once what stands; without a broker they find it at their next poll."""
    if options.broker is None:
        return
    with broker(options) as link:
        link.publish(group_topic(options.group, "deployment"), pair, retain=True)


def run_command(options: Namespace) -> None:
    """`command` and `rollback`."""
    if options.release is not None and options.verb != Verb.PIN.value:
        raise InputError(f"{options.verb}: takes no --release; only pin does")
    command_id = uuid.uuid4().hex
    kind, name = ("device", options.device) if options.device else ("group", options.group)
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
            show_replies(link, one_device=options.device is not None)


def show_replies(link: Broker, *, one_device: bool) -> None:
    """Prints replies; of one device until its last word, of a group until the time is over."""
    for topic, payload in link.messages(REPLY_S):
        reply = from_json(Reply, payload, topic)
        words = [topic.split("/")[2], reply.status, reply.reason, *(f"{k}={v}" for k, v in reply.result.items())]
        terminal.say(" ".join(word for word in words if word))
        if one_device and reply.status in LAST_WORDS:
            if reply.status != "done":
                raise TransferError(f"the command ended as {reply.status}: {reply.reason}")
            return
    if one_device:
        raise TransferError(f"no last word within {REPLY_S:.0f} s; the device may be away: watch it")


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
    """`refresh`."""
    found = repository(options)
    found.refresh(terminal.now())
    role, expires = next(iter(expiries(found)))
    terminal.say(f"refreshed; next to expire: {role}, {expires.isoformat()}")


if __name__ == "__main__":
    sys.exit(main())
