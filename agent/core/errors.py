"""Errors say who must act.

TrustError: theirs. What came is not to be believed; the same bytes are never tried again.
TransferError: nobody's. The network, a store or a disk said no for now; wait and retry.
BackendError: this device's. A runtime, driver or model does not work here.
InputError: the user's. A name, document, file or option breaks a rule.

Every message says what was wrong, where, and what to do. Anything else that is raised is a bug of ours
and goes to the top. A `kind` is the word shown in `status`, `why`, MQTT and logs.
"""

from enum import StrEnum


class Kind(StrEnum):
    """Why a release or a candidate was rejected; says how long that holds (core/plan.py)."""

    TRUST = "trust"
    STRUCTURE = "structure"
    PARITY = "parity"
    SPEED = "speed"
    MEMORY = "memory"
    BACKEND = "backend"
    UNSUPPORTED = "unsupported"  # by this runtime on this device, however often it is asked
    WITHDRAWN = "withdrawn"
    STALE = "stale"  # of no release: edge-runner is older than its files, and nothing loads until it is restarted

    @property
    def is_final(self) -> bool:
        """Final kinds hold for the digest for ever; the others until the evidence key changes or a signed retry."""
        return self in {Kind.TRUST, Kind.STRUCTURE, Kind.PARITY, Kind.WITHDRAWN}


class EdgeError(Exception):
    """Any error of the product that a person can act on."""


class TrustError(EdgeError):
    """What came is not to be believed. Never retried for the same bytes."""

    kind = Kind.TRUST


class TransferError(EdgeError):
    """It could not be had now; wait and retry."""


class BackendError(EdgeError):
    """It does not work on this device."""

    def __init__(self, message: str, kind: Kind = Kind.BACKEND) -> None:
        super().__init__(message)
        self.kind = kind


class InputError(EdgeError):
    """A user's mistake: what is wrong, where, and what to do."""

    kind = Kind.STRUCTURE


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a group of groups."""
    error = group.exceptions[0]
    return first(error) if isinstance(error, BaseExceptionGroup) else error
