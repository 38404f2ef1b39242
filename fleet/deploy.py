"""Deployments and commands as the desk makes them. What devices believe of them is agent/trust's business.

1. A rollout holds every slot of its group. One slot moves; the others stay where they stand: a deployment must not
   disturb a slot that it is not about.
2. Where another slot is half way, only some devices run its goal, and nothing can be written that leaves all of them
   as they are: finish it or revert it first.
3. The pair is a TUF target, so that devices without MQTT get it, and a hidden one is noticed at the timestamp's expiry.
   The same bytes go to the broker.
4. A counter is one more than the last that is known, and at least the milliseconds since 1970: a desk that lost its
   memory still counts on.
5. What is signed and what is published are two acts: signatures may be gathered at other desks in between
   (fleet/signing.py). Published is what a device of the group would take, judged by the device's own rules.
"""

from collections.abc import Container, Iterable, Mapping
from datetime import datetime, timedelta
from hashlib import sha256

from agent.core.documents import from_json, to_json
from agent.core.errors import InputError
from agent.core.intent import COMMAND_TYPE, ROLLOUT_TYPE, WAVE_TYPE, Command, Move, Rollout, Verb, Wave, WaveAction
from agent.core.release import Ref
from agent.trust.deployment import PAIR_BYTES, Deployment, Pair, Taken, believe_deployment
from agent.trust.listing import read_listing, target_path
from fleet.keyring import Keyring, check_word
from fleet.pending import Pending
from fleet.policy import current_policy, current_withdrawn
from fleet.repository import Repository, listed_bytes
from fleet.sealing import make_envelope, make_pair
from fleet.signing import enveloped, signed

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
    roles: Iterable[str] = ("operators",),
) -> bytes:
    """Moves one slot of a group to a release, in the first `share` of its devices; the pair, as it was listed.

    Each device watches the release for `soak_s` seconds before it confirms it. Every key of `roles` here signs.

    Raises:
        InputError: as `propose`, or a key is missing.
        TrustError: it takes more signatures, or others.
    """
    rollout = propose(repository, group, slot, release, share, soak_s=soak_s, now=now)
    for role in roles:
        rollout = signed(rollout, keyring, role)
    return put_out(repository, keyring, rollout, now)


def propose(
    repository: Repository, group: str, slot: str, release: str, share: float, *, soak_s: float, now: datetime
) -> Pending:
    """A rollout that nobody has signed yet; as `deploy`.

    Raises:
        InputError: the release is not listed, withdrawn, or not for this group, another slot is half way, or the share
            is none.
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
        slots=next_slots(last, slot, goal, current_withdrawn(repository)),
        shares=tuple(sorted({share, 1.0})),
        salt=f"{group}-{counter}",
        soak_s=soak_s,
    )
    return Pending(kind=ROLLOUT_TYPE, payload=to_json(rollout))


def put_out(repository: Repository, keyring: Keyring, rollout: Pending, now: datetime) -> bytes:
    """Publishes a rollout that was signed, with its first wave; the pair, as it was listed.

    Raises:
        InputError: something else was published since it was made, or a key is missing.
        TrustError: it takes more signatures, or others.
    """
    said = from_json(Rollout, rollout.payload, "rollout")
    last = current(repository, said.group, now)
    is_late = last is not None and last.rollout.counter >= said.counter
    if is_late or any(move.start not in {start_of(last, slot), None} for slot, move in said.slots.items()):
        raise InputError(f"group {said.group}: something else was deployed since this rollout was made; make it anew")
    check_way(repository, said, WaveAction.RUN)
    wave = next_wave(said.group, rollout.payload, first_share(said), WaveAction.RUN, last, now)
    return stand(repository, keyring, enveloped(rollout), wave, now, last)


def first_share(rollout: Rollout) -> float:
    """The share that a rollout begins with."""
    return min(rollout.shares, default=1.0)


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


def users_of(repository: Repository, release: Ref, now: datetime) -> tuple[str, ...]:
    """The groups that are to run a release, and in which slot; where one would revert to it, too."""
    groups = [path.removeprefix("deployments/").removesuffix(".json") for path in repository.paths("deployments/")]
    found = []
    for group in groups:
        last = current(repository, group, now)
        slots = last.rollout.slots if last is not None else {}
        found += [f"group {group} in {slot}" for slot, move in slots.items() if stands_on(last, move, release)]
    return tuple(found)


def stands_on(last: Deployment | None, move: Move, release: Ref) -> bool:
    """Whether devices of the group are to run a release now."""
    reach = last.taken.reach if last is not None else 0.0
    return (move.goal == release and reach > 0) or (move.start == release and reach < 1)


def newest_epoch(repository: Repository, group: str, now: datetime) -> int:
    """The newest epoch of a group that what is deployed there is sealed for; 0 where nothing is."""
    last = current(repository, group, now)
    epochs = [0]
    for move in last.rollout.slots.values() if last is not None else ():
        path = target_path(move.goal.name)
        target = repository.find(path)
        if target is not None:
            epochs += [wrap.epoch for wrap in read_listing(target.custom, path).wraps if wrap.group == group]
    return max(epochs)


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
    check_way(repository, last.rollout, action)
    envelope, payload = signed_rollout(repository, group)
    return stand(repository, keyring, envelope, next_wave(group, payload, wider, action, last, now), now, last)


def check_way(repository: Repository, rollout: Rollout, action: WaveAction) -> None:
    """Raises InputError where a wave would take devices to a release that was withdrawn."""
    gone = current_withdrawn(repository)
    for slot, move in rollout.slots.items():
        ref = {WaveAction.RUN: move.goal, WaveAction.REVERT: move.start}.get(action)
        if ref in gone and move.goal != move.start:
            raise InputError(f"slot {slot}: {ref} was withdrawn; begin with `edge-fleet rollout` to another release")


def signed_rollout(repository: Repository, group: str) -> tuple[bytes, bytes]:
    """The envelope of the rollout that stands, and its payload."""
    pair = from_json(Pair, repository.read(deployment_path(group), PAIR_BYTES), deployment_path(group))
    return to_json(pair.rollout), pair.rollout.payload


def stand(
    repository: Repository, keyring: Keyring, rollout: bytes, wave: Wave, now: datetime, last: Deployment | None
) -> bytes:
    """Signs the wave, lists the pair, and proves that a device which took the last one will believe it."""
    pair = make_pair(rollout, make_envelope(to_json(wave), WAVE_TYPE, keyring.signers("controller")))
    taken, policy = last.taken if last is not None else Taken(), current_policy(repository)
    believe_deployment(pair, repository.targets.signed, wave.group, taken, now, policy)
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


def next_slots(last: Deployment | None, slot: str, goal: Ref, gone: Container[Ref]) -> Mapping[str, Move]:
    """Every slot of the group, of which one moves; what was withdrawn is neither a goal nor a way back.

    Raises:
        InputError: another slot is half way, or a withdrawn release would be a goal.
    """
    slots = {name: Move(goal=ref, start=ref) for name, ref in standing(last, slot).items()}
    start = start_of(last, slot)
    slots[slot] = Move(goal=goal, start=start if start not in gone else None)
    for name, move in slots.items():
        if move.goal in gone:
            advice = "choose another release" if name == slot else "roll out another release there first"
            raise InputError(f"slot {name}: {move.goal} was withdrawn; {advice}")
    return slots


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
