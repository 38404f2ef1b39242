"""What is listed, page by page, and what follows when the roles that list change.

1. A page is the metadata of targets, of a listing role, or of one of the bins that a listing role has when it outgrew
   one file. It is verified when it is first looked at.
2. What a role lists outside its paths is nobody's: devices do not see it, and no change of roles moves it to where
   they would.
3. A change of roles loses nothing: what one role listed is listed by the next one in the same step.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets

from agent.core.errors import TrustError
from fleet.roles import HIGHEST, binned, bins_of, changed_roles, delegated, listing_roles, owner, paths_of, role_of
from fleet.stores import DeskStore
from fleet.versions import numbers, read_page

READERS = 16  # bins read at one time: one after another, 256 of them take 15 s from a store far away
FULL = 500  # targets in one file, 250 kB; beyond, a listing role has bins


class Listings:
    """The pages of a repository, and which of them changed."""

    def __init__(self, store: DeskStore, targets: Targets, snapshot: Snapshot) -> None:
        self.targets = Metadata(targets)
        self.changed: set[str] = set()
        self._store = store
        self._snapshot = snapshot
        self._before = copy.deepcopy(targets)  # as readers see it
        self._pages: dict[str, Metadata[Targets]] = {}

    def page(self, name: str) -> Metadata[Targets]:
        """One page.

        Raises:
            TrustError: it is not what snapshot and delegation say.
            TransferError: it could not be read now.
        """
        if name == "targets":
            return self.targets
        if name not in self._pages:
            self._pages[name] = self._read(name)
        return self._pages[name]

    def pages(self, role: str) -> Mapping[str, Metadata[Targets]]:
        """Every page of a listing role; raises as `page`."""
        bins = bins_of(self.page(role).signed)
        names = (role, *(bins.get_roles() if bins is not None else ()))
        unread = [name for name in names if name not in self._pages]
        with ThreadPoolExecutor(READERS) as readers:
            self._pages |= zip(unread, readers.map(self._read, unread), strict=True)
        return {name: self._pages[name] for name in names}

    def newest(self, name: str) -> MetaFile:
        """The newest version of a page that its role signed: what to vouch for where the snapshot was a thief's.

        Raises:
            TrustError: there is none.
            TransferError: the store cannot be read now.
        """
        for number in sorted((one for one in numbers(self._store, name) if one <= HIGHEST), reverse=True):
            listed = MetaFile(number)
            with suppress(TrustError):
                raw, _ = read_page(self._store, name, self._delegator(name), listed)
                return MetaFile.from_data(number, raw, ["sha256"])
        raise TrustError(f"{name} metadata: no version in the store is signed by its role; look at the store")

    def looked_at(self, role: str) -> list[Metadata[Targets]]:
        """The role's own page and the bins that were looked at; raises as `page`."""
        bins = [page for name, page in self._pages.items() if name != role and role_of(self._before, name) == role]
        return [self.page(role), *bins]

    def holder(self, path: str) -> str:
        """The page that lists a path if any does; raises as `page`."""
        role = owner(self.targets.signed, path)
        bins = bins_of(self.page(role).signed) if role != "targets" else None
        return bins.get_role_for_target(path) if bins is not None else role

    def find(self, path: str) -> TargetFile | None:
        """What its owner lists at this path; raises as `page`."""
        return self.page(self.holder(path)).signed.targets.get(path)

    def owned(self) -> Iterator[tuple[str, TargetFile]]:
        """(page, target) of all that is listed by its owner; raises as `page`."""
        for role in listing_roles(self.targets.signed):
            for name, page in self.pages(role).items():
                for path, target in page.signed.targets.items():
                    if self.holder(path) == name:
                        yield name, target

    def add(self, target: TargetFile) -> None:
        """Lists a target with its owner; raises as `page`."""
        name = self.holder(target.path)
        self.page(name).signed.targets[target.path] = target
        self.changed.add(name)

    def take(self, name: str, page: Metadata[Targets]) -> None:
        """A page as its holders signed it."""
        self.page(name)
        self._pages[name] = page
        self.changed.add(name)

    def begin(self) -> None:
        """An empty page for each role that lists."""
        self._pages = {role: self._fresh(role) for role in listing_roles(self.targets.signed)}
        self.changed = {"targets", *self._pages}

    def settled(self) -> None:
        """What changed is what readers see now."""
        self.changed.clear()
        self._before = copy.deepcopy(self.targets.signed)

    def change(self, targets: Targets) -> None:
        """Other delegations: pages that other keys answer for are signed anew, what others own moves; as `page`."""
        old = self.targets.signed
        owned = list(self.owned()) if paths_of(old) != paths_of(targets) else []
        self.targets = Metadata(targets)
        self.changed.add("targets")
        for role in changed_roles(old, targets):
            if role not in delegated(old):
                self._pages[role] = self._fresh(role)
            pages = self.pages(role)  # verified by the old keys of the role, before its bins have new ones
            if bins_of(pages[role].signed) is not None:
                pages[role].signed.delegations = binned(targets, role)
            self.changed |= set(pages)
        for name, target in owned:
            if self.holder(target.path) != name:
                self._move(name, target)

    def make_bins(self, may_sign: Callable[[str], bool]) -> None:
        """Spreads what outgrew one file. Where others must sign, too, it grows on: 257 files are not sent around."""
        for role in self.changed & set(listing_roles(self.targets.signed)):
            page = self.page(role)
            if bins_of(page.signed) is None and len(page.signed.targets) > FULL and may_sign(role):
                targets = list(page.signed.targets.values())
                page.signed.targets.clear()
                page.signed.delegations = binned(self.targets.signed, role)
                bins = bins_of(page.signed)
                self._pages |= {name: self._fresh(name) for name in (bins.get_roles() if bins is not None else ())}
                self.changed |= set(self.pages(role))
                for target in targets:
                    self.add(target)

    def _move(self, name: str, target: TargetFile) -> None:
        """From a page to its new owner's."""
        if role_of(self.targets.signed, name) in delegated(self.targets.signed):
            del self.page(name).signed.targets[target.path]
            self.changed.add(name)
        self.add(target)

    def _fresh(self, name: str) -> Metadata[Targets]:
        """An empty page; its version goes on where a page of this name ended."""
        fresh, listed = Metadata(Targets()), self._snapshot.meta.get(f"{name}.json")
        fresh.signed.version = listed.version if listed is not None else 0
        return fresh

    def _read(self, name: str) -> Metadata[Targets]:
        listed = self._snapshot.meta.get(f"{name}.json")
        if role_of(self._before, name) not in delegated(self._before) or listed is None:
            raise TrustError(f"{name} metadata: nobody vouches for it; look at the store")
        return read_page(self._store, name, self._delegator(name), listed)[1]

    def _delegator(self, name: str) -> Targets:
        role = role_of(self._before, name)
        return self._before if role == name else self.page(role).signed
