"""Something that waits for signatures: a file that goes from holder to holder until enough have signed.

1. It holds what is signed and who has signed, and nothing beside: what a holder is shown is read from the payload.
2. A file is not believed. Whoever publishes it counts the signatures against the keys that are in force.
3. Each holder adds signatures and takes none away; the order does not matter.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from securesystemslib.signer import Signature, Signer

from agent.adapters.files import write_durably
from agent.core.documents import Document, from_json, to_json
from agent.core.errors import InputError
from agent.trust.envelope import EnvelopeSignature
from fleet.keyring import read


class Unfinished(InputError):  # noqa: N818  an answer: nothing is wrong, others must sign, too
    """What was asked for waits in a file for signatures."""


class Pending(Document):
    """What waits."""

    kind: str  # what is signed: the metadata of a TUF role, or the payload type of a document
    payload: bytes
    signatures: tuple[EnvelopeSignature, ...] = ()

    def signed_by(self, signers: Iterable[Signer], octets: bytes) -> Self:
        """The same with a signature of each signer over `octets`: the payload, or what a format makes of it."""
        made = {one.keyid: one for one in self.signatures}
        for signer in signers:
            signature = signer.sign(octets)
            made[signature.keyid] = EnvelopeSignature(keyid=signature.keyid, sig=bytes.fromhex(signature.signature))
        return type(self)(kind=self.kind, payload=self.payload, signatures=tuple(made.values()))

    def by_key(self) -> Mapping[str, Signature]:
        """Key id: signature."""
        return {one.keyid: Signature(one.keyid, one.sig.hex()) for one in self.signatures}


def read_pending(path: Path) -> Pending:
    """What waits in a file; raises InputError where it is no such file."""
    return from_json(Pending, read(path, "name a file that a command left in pending/"), str(path))


def write_pending(path: Path, pending: Pending) -> None:
    """Replaces the file, durably; raises TransferError where the disk refuses."""
    write_durably(path, to_json(pending), 0o644)
