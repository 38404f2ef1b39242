"""Grants for many devices, and a group's next epoch.

1. A new epoch is granted to every device that is written down, and to no other. What is published from then on is
   sealed for it; what is listed gets its content key wrapped for it. Nothing is encrypted again.
2. Grants are written before listings name the epoch: a device finds its key before it needs it.
3. Both are cut and taken up again: the journal says who has got a grant, and a begun epoch is finished first.
4. A disk or a store takes longer to keep a grant than a core to make one: so many are under way at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from agent.adapters.files import write_durably
from agent.core.documents import to_tree
from agent.core.errors import InputError
from agent.trust.grant import unwrap_key
from agent.trust.listing import Listing, Wrap, read_listing, target_path
from fleet.keyring import Keyring, public_key
from fleet.repository import Repository, listed
from fleet.sealing import make_grant, wrap_key
from fleet.stores import DeskStore
from provisioning.keys import PUBLIC, add_epoch, make_folder, public_pem
from provisioning.register import Journal, enrolled, entry_of, folder_of, lines_of

BATCH = 1_000  # devices between two looks at the disk: at most so many are done again after a cut
UNDER_WAY = 8  # grants at once
WRAPS_KEPT = 2  # epochs of a group in one listing: a device that was away finds the last one, too

Tell = Callable[[int, int], None]  # done, in all
T = TypeVar("T")


def grant_key(group: str, device: str) -> str:
    """Where a device's grant lies in the store."""
    return f"grants/{group}/{device}.json"


def next_count(keyring: Keyring, group: str, now: datetime) -> int:
    """The counter of the next grants: the milliseconds since 1970, and above the last one whatever the clock says."""
    path = folder_of(keyring, group).with_suffix(".counter")
    last = next((int(line) for line in lines_of(path) if line.isdecimal()), 0)
    return max(last + 1, int(now.timestamp() * 1000))


def keep_count(keyring: Keyring, group: str, count: int) -> None:
    """The counter was used."""
    path = folder_of(keyring, group).with_suffix(".counter")
    make_folder(path.parent)
    write_durably(path, str(count).encode(), PUBLIC)


def grant_each(
    store: DeskStore,
    keyring: Keyring,
    group: str,
    devices: Mapping[str, ec.EllipticCurvePublicKey],
    journal: Journal,
    *,
    now: datetime,
    tell: Tell,
) -> None:
    """Makes and writes the grant of every device that the journal does not name yet.

    Raises:
        InputError: a private key is missing.
        TransferError: the store refuses; what was written is in the journal.
    """
    epochs, signers = keyring.privates(group), keyring.signers("grants")
    count = next_count(keyring, group, now)
    keep_count(keyring, group, count)
    keys = {device: entry_of(device, public_pem(public)) for device, public in devices.items()}
    left = [device for device, entry in keys.items() if entry not in journal.done]
    done = len(devices) - len(left)

    def grant(device: str) -> None:
        store.write(grant_key(group, device), make_grant(device, group, epochs, devices[device], signers, count))

    with ThreadPoolExecutor(UNDER_WAY, "grants") as under_way:
        for batch in batches(left, BATCH):
            for _ in under_way.map(grant, batch):
                done += 1
                tell(done, len(devices))
            journal.note(keys[device] for device in batch)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def rotate(repository: Repository, group: str, *, now: datetime, tell: Tell) -> int:
    """A new epoch of a group, granted to all its devices; its number. One that was begun is finished.

    Raises:
        InputError: a key is missing, or the devices of the group are not known here.
        TransferError: the store refuses; run it again.
    """
    keyring, store = repository.keyring, repository.store
    check_keys(keyring, group)
    devices = {device: public_key(path) for device, path in enrolled(keyring, group).items()}
    if not folder_of(keyring, group).is_dir() and next(iter(store.keys(f"grants/{group}/")), None) is not None:
        raise InputError(
            f"group {group}: its devices have grants, and none is known at this desk ({folder_of(keyring, group)}); "
            "use the desk that enrolled them, or enrol them again with `device enrol --from`"
        )
    newest = max(keyring.publics(group))
    epoch = begun(keyring, group) or newest + 1
    journal = Journal(journal_path(keyring, group), f"epoch {epoch}")
    if epoch > newest:
        add_epoch(keyring, group, epoch, keyring.passphrase(group, newest))
    grant_each(store, keyring, group, devices, journal, now=now, tell=tell)
    wrap_listed(repository, group, epoch)
    repository.publish(now)
    journal.end()
    return epoch


def check_keys(keyring: Keyring, group: str) -> None:
    """Raises InputError where a key that the next epoch takes is missing: before anything was done."""
    keyring.privates(group)
    for role in ("grants", "releases", "snapshot", "timestamp"):
        keyring.signers(role)


def journal_path(keyring: Keyring, group: str) -> Path:
    """The journal of a group's next epoch, while that is under way."""
    return folder_of(keyring, group).with_suffix(".epoch")


def begun(keyring: Keyring, group: str) -> int | None:
    """The epoch that was begun and not finished, if one was."""
    first = next(iter(lines_of(journal_path(keyring, group))), "")
    return int(first.removeprefix("epoch ")) if first.startswith("epoch ") else None


def wrap_listed(repository: Repository, group: str, epoch: int) -> None:
    """Every release that the group may read names its content key for the epoch, too, with the next `publish`."""
    held = repository.keyring.privates(group)
    for ref in repository.refs():
        path = target_path(ref.name)
        target = repository.find(path)
        listing = read_listing(target.custom, path) if target is not None else None
        epochs = {wrap.epoch for wrap in listing.wraps if wrap.group == group} if listing is not None else set()
        if target is not None and listing is not None and epochs and epoch not in epochs:
            custom = to_tree(replace(listing, wraps=wrapped_anew(listing, path, group, epoch, held)))
            repository.relist(listed(path, target.length, ref.digest, custom))


def wrapped_anew(
    listing: Listing, path: str, group: str, epoch: int, held: Mapping[int, ec.EllipticCurvePrivateKey]
) -> tuple[Wrap, ...]:
    """The wraps of a listing with one for the epoch; raises TrustError where no epoch held here opens it."""
    last = listing.wrap(group, held)
    key = unwrap_key(last.key, held[last.epoch], path, group, last.epoch)
    new = Wrap(group=group, epoch=epoch, key=wrap_key(key, held[epoch].public_key(), path, group, epoch))
    ours = sorted((wrap for wrap in listing.wraps if wrap.group == group), key=lambda wrap: wrap.epoch)
    return (*(wrap for wrap in listing.wraps if wrap.group != group), *ours[1 - WRAPS_KEPT :], new)
