"""A deployment is believed as a pair: what operators allow, and how far the controller goes inside it.

1. Each half has its own role: the rollout is signed by `operators`, the wave by `controller`.
2. The wave names this rollout by digest, this group, and a share the rollout lists. It can never name a release.
3. Counters only rise: (rollout, wave) is above the last pair taken, or the very same pair. One rollout counter
   belongs to one rollout for ever.
4. What was taken counts while the signatures that made it would still be believed. Revoking a stolen key so also
   voids a counter that the thief used up; adding a key voids nothing.
5. A rollout stops widening at its expiry. Narrowing, pausing, halting and reverting never expire.
6. The policy is asked about a rollout once: one that was taken stands, whatever its signers may do later.
7. A release that is older than what stood, and was no part of the last rollout, takes `operators-critical` as well.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from msgspec import field
from tuf.api.metadata import Targets

from agent.core.documents import Document
from agent.core.errors import InputError, TrustError
from agent.core.intent import ROLLOUT_TYPE, WAVE_TYPE, Move, Policy, Rollout, SlotName, Wave, WaveAction
from agent.core.names import age_of, check_form
from agent.core.release import Share
from agent.trust.envelope import Envelope, Opened, parse_bounded, parse_signed, still_believed, verify
from agent.trust.policy import check_act

PAIR_BYTES = 192 * 1024  # 400 slots in base64; stays below what a broker's packet may hold
AHEAD = timedelta(days=1)  # a device without a clock lives on the time of its last refresh, up to a day old


class Replayed(TrustError):  # noqa: N818  an answer, named as it reads
    """It is older than what was taken."""


class Pair(Document):
    """A deployment on the wire."""

    rollout: Envelope
    wave: Envelope


class Taken(Document):
    """What a device remembers of the last pair that it took. The device keeps it; a new device has none."""

    rollout: int = 0
    wave: int = 0
    rollout_digest: str = ""
    wave_digest: str = ""
    rollout_signers: tuple[str, ...] = ()
    wave_signers: tuple[str, ...] = ()
    reach: Share = 0.0  # share of the group that runs the goals under this pair
    slots: Mapping[SlotName, Move] = field(default_factory=dict)
    at: datetime | None = None

    @property
    def signers(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Whose signatures made it count."""
        return self.rollout_signers, self.wave_signers


class Deployment(Document):
    """A pair that was believed, and what to remember of it."""

    rollout: Rollout
    wave: Wave
    taken: Taken
    same: bool  # it is the pair that was taken last, whoever signed it: new keys move nobody


def believe_deployment(
    raw: bytes, targets: Targets, group: str, last: Taken, now: datetime, policy: Policy | None = None
) -> Deployment:
    """The pair that `raw` holds, for a device of `group` that took `last` before.

    Raises:
        TrustError: any rule of this file is broken; says which.
    """
    pair = parse_bounded(Pair, raw, PAIR_BYTES, "deployment")
    opened = verify(pair.rollout, ROLLOUT_TYPE, "operators", targets)
    rollout = parse_signed(Rollout, opened.payload, "rollout")
    opened_wave = verify(pair.wave, WAVE_TYPE, "controller", targets)
    wave = parse_signed(Wave, opened_wave.payload, "wave")
    check_halves(rollout, wave, group, now)
    check_match(rollout, opened.digest, wave)
    check_names(rollout)
    floor = standing(last, targets)
    taken = remember(rollout, opened, wave, opened_wave, now, last)
    same = (taken.rollout_digest, taken.wave_digest) == (last.rollout_digest, last.wave_digest)
    if not same:
        check_counters(taken, floor)
        check_reach(rollout, wave, floor if floor.rollout_digest == opened.digest else None)
    if last.rollout_digest != opened.digest:
        check_act(policy, opened, "rollout", group, now)
        check_age(rollout, pair.rollout, last, targets)
    return Deployment(rollout=rollout, wave=wave, taken=taken, same=same)


def remember(rollout: Rollout, opened: Opened, wave: Wave, opened_wave: Opened, now: datetime, last: Taken) -> Taken:
    """What to keep of a pair; a slot that it leaves out is not forgotten."""
    return Taken(
        rollout=rollout.counter,
        wave=wave.counter,
        rollout_digest=opened.digest,
        wave_digest=opened_wave.digest,
        rollout_signers=opened.signers,
        wave_signers=opened_wave.signers,
        reach=reach(wave),
        slots={**last.slots, **rollout.slots},
        at=now,
    )


def reach(wave: Wave) -> float:
    """The share of the group that runs the goals under this wave."""
    return 0.0 if wave.action is WaveAction.REVERT else wave.share


def standing(floor: Taken, targets: Targets) -> Taken:
    """As much of what was taken as its signatures still carry."""
    if not still_believed(floor.rollout_signers, "operators", targets):
        return Taken()
    if not still_believed(floor.wave_signers, "controller", targets):
        return Taken(rollout=floor.rollout, rollout_digest=floor.rollout_digest, rollout_signers=floor.rollout_signers)
    return floor


def check_halves(rollout: Rollout, wave: Wave, group: str, now: datetime) -> None:
    """Both are for this group, and neither comes from the future."""
    for kind, half in (("rollout", rollout), ("wave", wave)):
        if half.group != group:
            raise TrustError(
                f"{kind} {half.group}: this device is of group {group}; somebody serves it another's deployment"
            )
        if half.issued > now + AHEAD:
            raise TrustError(
                f"{kind}: issued {half.issued.isoformat()}, in the future of {now.isoformat()}; check both clocks"
            )


def check_match(rollout: Rollout, digest: str, wave: Wave) -> None:
    """The wave stays inside this rollout."""
    if wave.rollout != digest:
        raise TrustError(
            f"wave {wave.counter}: names the rollout {wave.rollout[:12]}, but comes with {digest[:12]}; "
            "the controller must sign a wave for this rollout"
        )
    if wave.share not in {0.0, *rollout.shares}:
        raise TrustError(f"wave {wave.counter}: share {wave.share} is not one of the rollout's {list(rollout.shares)}")


def check_names(rollout: Rollout) -> None:
    """The releases have names that can be one: they become paths and keys."""
    for move in rollout.slots.values():
        for ref in filter(None, (move.goal, move.start)):
            try:
                check_form(ref.name)
            except InputError as error:
                raise TrustError(f"rollout {rollout.counter}: {error}; sign it anew") from error


def check_counters(taken: Taken, floor: Taken) -> None:
    """It is newer than what was taken."""
    if taken.rollout == floor.rollout and taken.rollout_digest != floor.rollout_digest:
        raise TrustError(
            f"rollout {taken.rollout}: another rollout with this counter was taken; sign it with a higher one"
        )
    if (taken.rollout, taken.wave) <= (floor.rollout, floor.wave):
        raise Replayed(
            f"deployment ({taken.rollout}, {taken.wave}): not newer than ({floor.rollout}, {floor.wave}), which was "
            "taken; somebody replays it, or its author must sign it with a higher counter"
        )


def check_reach(rollout: Rollout, wave: Wave, last: Taken | None) -> None:
    """A wave made after the rollout's expiry does not reach further than the last one.

    A device that saw no wave of this rollout cannot compare: there, only running counts as widening.
    """
    if rollout.expires is None or wave.issued <= rollout.expires:
        return
    widens = reach(wave) > last.reach if last is not None else wave.action is WaveAction.RUN
    if widens:
        raise TrustError(
            f"wave {wave.counter}: widens a rollout that expired {rollout.expires.isoformat()}; sign a new rollout"
        )


def check_age(rollout: Rollout, signed: Envelope, last: Taken, targets: Targets) -> None:
    """A rollout to a release from before what stood was signed by `operators-critical`, too."""
    for older in backward(rollout, last):
        try:
            verify(signed, ROLLOUT_TYPE, "operators-critical", targets)
        except TrustError as error:
            raise TrustError(f"rollout {rollout.counter}: {older}: {error}") from error


def backward(rollout: Rollout, last: Taken) -> Iterator[str]:
    """What in a rollout leads back behind what stood: in a few words, for each slot.

    What the last rollout named is no step back, for that was allowed; so a start is held to the same rule as a goal.
    """
    for slot, move in rollout.slots.items():
        was = last.slots.get(slot)
        if was is None:
            continue
        stood = was.goal if last.reach or was.start is None else was.start
        for ref in {move.goal, move.start} - {was.goal, was.start, None}:
            if ref is not None and age_of(ref.name) < age_of(stood.name):
                yield f"slot {slot}: {ref} is older than {stood}, which stood, and is no way back of the last rollout"
