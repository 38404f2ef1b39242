"""The listing: what TUF signs about a release beside length and hash, in the target's `custom`.

It is public: a small summary that a device judges before downloading, and the wrapped content keys. `fmt` is one
word for the whole format; an agent opens the formats it names here and no others, so there is nothing to negotiate.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from msgspec import Meta

from agent.core.documents import Document, from_tree
from agent.core.errors import BackendError, InputError, TrustError
from agent.core.names import check_form
from agent.trust.grant import Epoch

FORMAT: Literal["cob256+zstd+bg/v1"] = "cob256+zstd+bg/v1"
BASE_DIGITS = 16  # of a base's digest, in a delta's path


class Wrap(Document):
    """The content key for one epoch of one group."""

    group: str
    epoch: Epoch
    key: bytes


class Listing(Document):
    """The `custom` of a release's TUF target."""

    fmt: Literal["cob256+zstd+bg/v1"]
    size: Annotated[int, Meta(ge=1, le=2**33)]  # bytes of all parts together, opened; no device has room for more
    wraps: tuple[Wrap, ...]
    task: str
    architecture: str
    dataset: str
    version: str
    memory_mb: Annotated[int, Meta(ge=0)]  # rounded up: TUF's canonical JSON has no fractions
    opset: Annotated[int, Meta(ge=1)]
    min_agent: str = "0.1.0"

    def wrap(self, group: str, epochs: Iterable[int]) -> Wrap:
        """The content key for the newest of the epochs of a group that a device was granted.

        Raises:
            TrustError: there is none.
        """
        held = set(epochs)
        fitting = [wrap for wrap in self.wraps if wrap.group == group and wrap.epoch in held]
        if not fitting:
            sealed = sorted({(one.group, one.epoch) for one in self.wraps})
            raise TrustError(
                f"this release is sealed for {sealed}; this device holds "
                f"epochs {sorted(held)} of group {group}: publish for that group, or grant the device the epoch"
            )
        return max(fitting, key=lambda wrap: wrap.epoch)


class DeltaListing(Document):
    """The `custom` of a delta's TUF target."""

    fmt: Literal["cob256+zstd+delta/v1"]
    size: Annotated[int, Meta(ge=1)]  # bytes of all its parts together, opened
    zstd: str  # the version whose compression gives the release's octets again


def read_listing(custom: Any, where: str) -> Listing:
    """The listing of a verified target; `where` is its path.

    Raises:
        TrustError: there is none, its format is not ours, or it is malformed.
    """
    if not isinstance(custom, dict) or custom.get("fmt") != FORMAT:
        named = custom.get("fmt") if isinstance(custom, dict) else None
        raise BackendError(
            f"{where}: its format is {named!r}; this agent opens {FORMAT!r}: upgrade it, or publish it anew"
        )
    try:
        return from_tree(Listing, custom, where)
    except InputError as error:
        raise TrustError(f"{error}; publish it anew") from error


def target_path(name: str) -> str:
    """Where TUF lists a release.

    The name begins with its task, so a team's role is given `releases/face_detection_*`: no folder per task is needed,
    which a device without the registry of tasks could not tell from the name.

    Raises:
        InputError: no release can have this name.
    """
    check_form(name)
    return f"releases/{name}.sealed"


def delta_path(name: str, base: str) -> str:
    """Where TUF lists the delta that leads to a release from the one with this digest."""
    return target_path(name).removesuffix("sealed") + f"from.{base[:BASE_DIGITS]}.delta"
