"""A release out of one that is stored here and a delta, so that fewer bytes come.

1. A delta is never needed. Whatever is wrong with it or with its base, the release is fetched whole, and is not tried
   by delta again in this life of the agent; the reason is told. A network that fails is no fault of the delta's: it
   goes on where it stopped.
2. There must be room for the delta and the result before the first byte.
3. The result is the very file that was signed, or it is none (agent.trust.delta). A desk with another zstd would give
   other octets, so that is asked before the first byte.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.adapters import files
from agent.adapters.fetch import NoRoom, TargetInfo, require_room
from agent.adapters.ledger import Ledger
from agent.adapters.store import Denied, Missing
from agent.adapters.tuf_client import Trusted
from agent.core.documents import from_tree
from agent.core.errors import InputError, TrustError
from agent.core.records import ReleaseRecord
from agent.core.release import Ref
from agent.daemon.keyring import Keyring, pieces
from agent.trust.delta import rebuild
from agent.trust.listing import DeltaListing, delta_path, read_listing
from agent.trust.sealing import ZSTD, Opener

Get = Callable[[TargetInfo, Path], None]


@dataclass(eq=False)
class Deltas:
    """Rebuilds releases, and remembers which ones are fetched whole, and why."""

    ledger: Ledger
    keyring: Keyring
    opened: Callable[[Ref, ReleaseRecord], Opener]
    failed: dict[Ref, str] = field(default_factory=dict)

    def take(self, ref: Ref, whole: TargetInfo, place: Path, trusted: Trusted, get: Get) -> str:
        """Makes `place` the release, and says what that saved; empty where it is to be fetched whole.

        Raises:
            TransferError: network or disk; call again later, it goes on where it stopped.
        """
        said = ""
        fetched = place.with_name(f"{place.name}.delta")
        try:
            found = self._find(ref, trusted)
            if found is not None and ref not in self.failed:
                base, delta, size = found
                both, saved = delta.length + whole.length, whole.length - delta.length
                require_room(place, both, both)
                get(delta, fetched)
                listing = read_listing(whole.custom, whole.path)
                key = self.keyring.key(ref.name, listing)
                opened = Opener(key, delta.path, pieces(fetched), size), self.opened(base.ref, base)
                files.write_durably(place, rebuild(*opened, key, whole.path, listing.size, whole.sha256))
                said = f"by delta from {base.ref.name}: {delta.length:,} of {whole.length:,} bytes, {saved:,} saved"
        except (TrustError, InputError, Missing, Denied, NoRoom) as error:
            self.failed[ref] = f"whole, because its delta failed: {error}"
        for left in place.parent.glob(f"{fetched.name}*"):
            left.unlink(missing_ok=True)
        return said

    def _find(self, ref: Ref, trusted: Trusted) -> tuple[ReleaseRecord, TargetInfo, int] | None:
        """The smallest delta from a release of the same model that is verified here, and the size of its parts."""
        stem = ref.name.rpartition("_")[0]
        here = [one for one in self.ledger.all("release", ReleaseRecord).values() if one.verified]
        same = [one for one in here if one.ref.name.rpartition("_")[0] == stem]
        found = [(base, info) for base in same if (info := trusted.find(delta_path(ref.name, base.ref.digest)))]
        if not found:
            return None
        base, info = min(found, key=lambda one: one[1].length)
        needs = from_tree(DeltaListing, info.custom, info.path)
        if needs.zstd != ZSTD:
            raise InputError(f"{info.path}: made with zstd {needs.zstd}, and {ZSTD} is here: upgrade the older one")
        return base, info, needs.size
