"""Deployments and commands as the desk makes them. What devices believe of them is agent/trust's business.

1. A rollout holds every slot of its group. One slot moves; the others stay where they stand: a deployment must not
   disturb a slot that it is not about.
2. Where another slot is half way, only some devices run its goal, and nothing can be written that leaves all of them
   as they are: finish it or revert it first.
3. The pair is a TUF target, so that devices without MQTT get it, and a hidden one is noticed at the timestamp's expiry.
   The same bytes go to the broker.
4. A counter is one more than the last that is known, and at least the milliseconds since 1970: a desk that lost its
   memory still counts on.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import sha256

from agent.core.documents import from_json, to_json
from agent.core.errors import InputError
from agent.core.intent import COMMAND_TYPE, ROLLOUT_TYPE, WAVE_TYPE, Command, Move, Rollout, Verb, Wave, WaveAction
from agent.core.release import Ref
from agent.trust.deployment import PAIR_BYTES, Deployment, Pair, Taken, believe_deployment
from agent.trust.listing import read_listing, target_path
from fleet.keyring import Keyring, check_word
from fleet.repository import Repository, listed_bytes
from fleet.sealing import make_envelope, make_pair

LIFETIME = timedelta(minutes=10)  # of a command: long enough for a reconnect, too short to be kept for later

SOAK_S = 600.0  # ten minutes: heat and memory show by then


def deployment_path(group: str) -> str:
    """Where TUF lists a group's deployment."""
    return f"deployments/{group}.json"


def current(repository: Repository, group: str, now: datetime) -> Deployment | None:
    """The deployment that stands for a group, believed as a device would.

    Raises:
        TrustError: what is listed is not signed by operators and controller.
    """
    path = deployment_path(check_word("group", group))
    if repository.find(path) is None:
        return None
    return believe_deployment(repository.read(path, PAIR_BYTES), repository.targets.signed, group, Taken(), now)


def deploy(  # noqa: PLR0913  what moves where, how far, and how long it is watched
    repository: Repository,
    keyring: Keyring,
    group: str,
    slot: str,
    release: str,
    share: float = 1.0,
    *,
    soak_s: float = SOAK_S,
    now: datetime,
) -> bytes:
    """Moves one slot of a group to a release, in the first `share` of its devices; the pair, as it was listed.

    Each device watches the release for `soak_s` seconds before it confirms it.

    Raises:
        InputError: the release is not listed or not for this group, another slot is half way, the share is none, or
            a key is missing.
    """
    check_word("slot", slot)
    if not 0 <= soak_s < float("inf"):
        raise InputError(f"soak {soak_s}: give seconds, 0 or more")
    if not 0 < share <= 1:
        raise InputError(f"share {share}: give a part of the group, above 0 and up to 1")
    goal = repository.ref(release)
    check_readable(repository, release, check_word("group", group))
    last = current(repository, group, now)
    counter = next_counter(last.rollout.counter if last else 0, now)
    rollout = Rollout(
        group=group,
        counter=counter,
        issued=now,
        slots=next_slots(last, slot, goal),
        shares=tuple(sorted({share, 1.0})),
        salt=f"{group}-{counter}",
        soak_s=soak_s,
    )
    payload = to_json(rollout)
    signed = make_envelope(payload, ROLLOUT_TYPE, keyring.signers("operators"))
    wave = next_wave(group, payload, share, WaveAction.RUN, last, now)
    return stand(repository, keyring, signed, wave, now)


def check_readable(repository: Repository, release: str, group: str) -> None:
    """Raises InputError where the devices of a group could not open a listed release."""
    path = target_path(release)
    target = repository.find(path)
    readers = sorted({wrap.group for wrap in read_listing(target.custom, path).wraps}) if target is not None else []
    if group not in readers:
        raise InputError(
            f"group {group}: {release} is sealed for {', '.join(readers)} alone; check the group's name, "
            "or publish a release for that group"
        )


def steer(
    repository: Repository,
    keyring: Keyring,
    group: str,
    action: WaveAction,
    share: float | None = None,
    *,
    now: datetime,
) -> bytes:
    """A new wave of the rollout that stands: widen, pause, halt or revert it; the pair, as it was listed.

    Raises:
        InputError: nothing stands, the rollout does not list the share, or a key is missing.
    """
    last = current(repository, group, now)
    if last is None:
        raise InputError(f"group {group}: nothing is deployed; begin with `edge-fleet rollout`")
    wider = last.wave.share if share is None else share
    if wider not in {0.0, *last.rollout.shares}:
        raise InputError(f"share {wider}: the rollout lists {list(last.rollout.shares)}; choose one of them")
    signed, payload = signed_rollout(repository, group)
    return stand(repository, keyring, signed, next_wave(group, payload, wider, action, last, now), now)


def signed_rollout(repository: Repository, group: str) -> tuple[bytes, bytes]:
    """The envelope of the rollout that stands, and its payload."""
    pair = from_json(Pair, repository.read(deployment_path(group), PAIR_BYTES), deployment_path(group))
    return to_json(pair.rollout), pair.rollout.payload


def stand(repository: Repository, keyring: Keyring, rollout: bytes, wave: Wave, now: datetime) -> bytes:
    """Signs the wave, lists the pair, and proves that a device will believe it."""
    pair = make_pair(rollout, make_envelope(to_json(wave), WAVE_TYPE, keyring.signers("controller")))
    believe_deployment(pair, repository.targets.signed, wave.group, Taken(), now)
    repository.add(listed_bytes(deployment_path(wave.group), pair), pair)
    repository.publish(now)
    return pair


def next_wave(
    group: str, rollout: bytes, share: float, action: WaveAction, last: Deployment | None, now: datetime
) -> Wave:
    """The wave that follows the last one."""
    counter = next_counter(last.wave.counter if last else 0, now)
    digest = sha256(rollout).hexdigest()
    return Wave(group=group, counter=counter, issued=now, rollout=digest, share=share, action=action)


def next_slots(last: Deployment | None, slot: str, goal: Ref) -> Mapping[str, Move]:
    """Every slot of the group, of which one moves."""
    slots = {name: Move(goal=ref, start=ref) for name, ref in standing(last, slot).items()}
    return slots | {slot: Move(goal=goal, start=start_of(last, slot))}


def standing(last: Deployment | None, moving: str) -> Mapping[str, Ref]:
    """Where all slots but the moving one stand.

    Raises:
        InputError: one of them is half way.
    """
    found: dict[str, Ref] = {}
    for name, move in last.rollout.slots.items() if last else ():
        if name == moving:
            continue
        if last is not None and is_half_way(last, move):
            raise InputError(
                f"slot {name}: {last.wave.share:.0%} of the group run {move.goal}, the others do not; "
                "widen it to 1 or revert it first"
            )
        ref = start_of(last, name)
        if ref is not None:
            found[name] = ref
    return found


def is_half_way(last: Deployment, move: Move) -> bool:
    """Whether devices of the group differ in this slot."""
    return move.goal != move.start and 0 < last.taken.reach < 1


def start_of(last: Deployment | None, slot: str) -> Ref | None:
    """What a slot falls back to: its goal where that reached everybody, else what it was before."""
    move = last.rollout.slots.get(slot) if last else None
    if last is None or move is None:
        return None
    return move.goal if last.taken.reach == 1 else move.start


def next_counter(last: int, now: datetime) -> int:
    """The counter after `last`."""
    return max(last + 1, int(now.timestamp() * 1000))


def sign_command(
    keyring: Keyring,
    scope: str,
    verb: Verb,
    *,
    command_id: str,
    now: datetime,
    slot: str | None = None,
    release: str | None = None,
) -> bytes:
    """A signed command for `device:NAME` or `group:NAME`, good for LIFETIME.

    Raises:
        InputError: there is no operators' key here.
    """
    command = Command(
        id=command_id,
        scope=scope,
        counter=next_counter(0, now),
        issued=now,
        expires=now + LIFETIME,
        verb=verb,
        slot=slot,
        release=release,
    )
    return make_envelope(to_json(command), COMMAND_TYPE, keyring.signers("operators"))
