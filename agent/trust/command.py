"""A command is checked in one order; a bad one is answered, never raised, and moves no counter.

Length, form, type, signatures, schema, policy, scope, counter, expiry. The counter of a scope only rises; it is
bound to the operators' key set, so that a counter burnt by a stolen key is void once the key is revoked. Whoever acts
on a command stores its counter durably first. A redelivered command is known by its id before it comes here.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal

from tuf.api.metadata import Targets

from agent.core.documents import Document
from agent.core.errors import TrustError
from agent.core.intent import COMMAND_TYPE, Command, Policy
from agent.trust.envelope import keyset, open_envelope, parse_signed
from agent.trust.policy import check_act

COMMAND_BYTES = 16 * 1024  # an envelope with five signatures is under 2 KB
SKEW = timedelta(seconds=300)  # how far the clocks of a desk and a device may be apart
ROLE = "operators"


class Refusal(Document):
    """Why a command is not carried out; status and reason of the reply."""

    status: Literal["rejected", "expired"]
    reason: str


def believe_command(
    raw: bytes,
    targets: Targets,
    device: str,
    group: str,
    floors: Mapping[str, int],
    now: datetime,
    policy: Policy | None = None,
) -> Command | Refusal:
    """The command, or why not.

    `floors` holds the highest counter taken under each `floor_key`.
    """
    try:
        opened = open_envelope(raw, COMMAND_TYPE, ROLE, targets, COMMAND_BYTES)
        command = parse_signed(Command, opened.payload, "command")
        check_act(policy, opened, command.verb, group, now)  # of the device's group, though it be to the device alone
        check_turn(command, device, group, floors.get(floor_key(command.scope, targets), 0), now)
    except TrustError as error:
        return Refusal(status="rejected", reason=str(error))
    if now - SKEW > command.expires:
        return Refusal(status="expired", reason=f"expired {command.expires.isoformat()}; send it again")
    return command


def floor_key(scope: str, targets: Targets) -> str:
    """Under which the highest counter of a scope is kept, for today's keys."""
    return f"{scope}@{keyset(targets, ROLE)}"


def check_turn(command: Command, device: str, group: str, floor: int, now: datetime) -> None:
    """Raises TrustError where it is for somebody else, not newer than one that was taken, or from the future."""
    if command.scope not in {f"device:{device}", f"group:{group}"}:
        raise TrustError(f"the command is for {command.scope}; this is device:{device}")
    if command.counter <= floor:
        raise TrustError(
            f"counter {command.counter} is not above {floor}, which {command.scope} has taken; sign it anew"
        )
    if command.issued > now + SKEW:
        raise TrustError(f"issued {command.issued.isoformat()}, but it is {now.isoformat()} here; check both clocks")
