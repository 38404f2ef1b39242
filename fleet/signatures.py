"""Whose signatures metadata needs, who can sign here, and what to do when others must, too.

1. Signed is with every key here that counts for the role before or after the change: what is signed so is believed
   by readers who know the new keys already, and by those who do not yet.
2. Counted is as devices count: a new root by its own threshold and by the one before it.
3. Where others must sign, nothing is published; what they sign waits in pending/.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signature, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets
from tuf.api.serialization import DeserializationError

from agent.core.errors import InputError
from agent.trust.envelope import EnvelopeSignature
from fleet.keyring import Keyring
from fleet.pending import Pending, Unfinished, write_pending
from fleet.roles import OFFLINE, Authority, role_of


def signers_for(keyring: Keyring, name: str, before: Authority, now: Authority) -> list[Signer]:
    """The keys here that count for a role or bin; none is an answer only where keys are kept offline.

    Raises:
        InputError: no key of the role is here, or none that is in force.
    """
    role = role_of(now.targets, name)
    if role in OFFLINE and not keyring.holds(role):
        return []
    keyids = counting(role, before, now)
    found = [signer for signer in keyring.signers(role) if signer.public_key.keyid in keyids]
    if not found and role not in OFFLINE:
        raise InputError(
            f"{keyring.folder}: the keys of the role {role} here are not in force; bring the new one "
            "(`edge-provision trust show` lists them)"
        )
    return found


def counting(name: str, before: Authority, now: Authority) -> set[str]:
    """The keys that answer for a role or bin before or after the change."""
    return {keyid for one in (before, now) if one.has(name) for keyid in one.role(name).keyids}


def keep_counting(name: str, metadata: Metadata[Any], before: Authority, now: Authority) -> None:
    """Leaves out signatures that count for nobody."""
    for keyid in metadata.signatures.keys() - counting(name, before, now):
        del metadata.signatures[keyid]


def can_sign(keyring: Keyring, name: str, before: Authority, now: Authority) -> bool:
    """Whether as many keys are here as must sign; raises as `signers_for`."""
    here = {signer.public_key.keyid for signer in signers_for(keyring, name, before, now)}
    asked = (before, now) if name == "root" else (now,)
    return all(len(here & set(one.role(name).keyids)) >= one.role(name).threshold for one in asked)


def missing(name: str, metadata: Metadata[Any], before: Authority, now: Authority) -> str:
    """How many signatures are missing, and whose; empty where there are enough."""
    octets, made = metadata.signed_bytes, metadata.signatures
    if name == "root":
        results = [one.root.get_verification_result("root", octets, made) for one in (before, now)]
    elif name == "targets":
        results = [now.root.get_verification_result("targets", octets, made)]
    else:
        results = [now.targets.get_verification_result(role_of(now.targets, name), octets, made)]
    words = ("of the keys before it", "of its own keys") if name == "root" else ("of its keys",)
    said = [
        f"{len(result.signed)} of {result.threshold} {word} signed"
        for result, word in zip(results, words, strict=True)
        if not result.verified
    ]
    return " and ".join(said)


def sign(metadata: Metadata[Any], signers: Iterable[Signer]) -> bytes:
    """The metadata, signed by these and nobody else."""
    octets = metadata.signed_bytes
    metadata.signatures.clear()
    metadata.signatures.update({one.keyid: one for one in made_by(signers, octets)})
    return bytes(metadata.to_bytes())


def made_by(signers: Iterable[Signer], octets: bytes) -> Iterator[Signature]:
    """A signature of each signer."""
    for signer in signers:
        yield signer.sign(octets)


def leave(keyring: Keyring, waiting: Mapping[str, Metadata[Any]], before: Authority, now: Authority) -> Unfinished:
    """Writes what waits, with the signatures that can be made here; what to tell the user.

    Raises:
        InputError: something waits under this name already.
    """
    paths = []
    for name, metadata in waiting.items():
        path = waiting_file(keyring, name, metadata.signed.version)
        if path.exists():
            raise InputError(f"{path}: waits for signatures; finish it (`edge-provision keys finish`) or delete it")
        octets = metadata.signed_bytes
        pending = Pending(kind=name, payload=octets).signed_by(signers_for(keyring, name, before, now), octets)
        write_pending(path, pending)
        paths.append(str(path))
    names = " ".join(paths)
    return Unfinished(
        f"{' and '.join(waiting)}: others must sign, too; nothing is published yet. Where their keys are: "
        f"`edge-provision keys sign {names} --keys FOLDER`; then here: `edge-provision keys finish {names} ...`"
    )


def waiting_file(keyring: Keyring, name: str, version: int) -> Path:
    """Where metadata waits."""
    return keyring.folder / "pending" / f"{version}.{name}.json"


def pending_of(name: str, metadata: Metadata[Any]) -> Pending:
    """Signed metadata in the form in which it waits."""
    made = [EnvelopeSignature(keyid=key, sig=bytes.fromhex(one.signature)) for key, one in metadata.signatures.items()]
    return Pending(kind=name, payload=metadata.signed_bytes, signatures=tuple(made))


def metadata_of(pending: Pending) -> Metadata[Any]:
    """The metadata that waits, with the signatures it has.

    Raises:
        InputError: it is none.
    """
    try:
        signed = json.loads(pending.payload)
        made = [one.to_dict() for one in pending.by_key().values()]
        metadata: Metadata[Any] = Metadata.from_dict({"signed": signed, "signatures": made})
    except (ValueError, KeyError, TypeError, AttributeError, DeserializationError, RepositoryError) as error:
        raise InputError(f"{pending.kind}: what waits there is no TUF metadata ({error}); begin again") from error
    expected = pending.kind if pending.kind in OFFLINE else Targets.type
    if metadata.signed.type != expected:
        raise InputError(f"{pending.kind}: what waits there is {metadata.signed.type} metadata; begin again")
    return metadata
