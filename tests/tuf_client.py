"""The device's TUF client behind the command line that the public TUF conformance suite asks of a client.

    python -m tests.tuf_client --metadata-dir D init ROOT
    python -m tests.tuf_client --metadata-dir D --metadata-url U refresh
    python -m tests.tuf_client --metadata-dir D --metadata-url U
        --target-name P [--target-name ...] --target-dir T --target-base-url B download

1. What is tried is the daemon's own: TufClient, the floor of versions, the high-water time, the downloader. There is
   no build-date here: whoever tries us may set the clock back.
2. D shows, un-versioned and as received, what was verified: after a refresh the whole set; after one that failed, as
   far as the chain went. The daemon throws the latter away, and so does the next refresh here.
3. Only metadata in D ends in `.json`. What is ours lies in `pinned`, `floor` and the folder `client`.
4. The device takes no target that is listed without a SHA-256. The suite asks for one; python-tuf answers for us there.
5. It starts in half a second: a suite starts it a thousand times.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

if __name__ == "__main__":
    sys.modules["boto3"] = None  # type: ignore[assignment]  # securesystemslib takes it along where it finds it

from tuf.api.metadata import TargetFile

from agent.adapters import files
from agent.adapters.fetch import fetch
from agent.adapters.store import CHUNK_BYTES, Denied, Download, Missing, Store
from agent.adapters.tuf_client import METADATA, TARGETS, Chain, Trusted, TufClient, _translated
from agent.core.documents import from_json, to_json
from agent.core.errors import EdgeError, InputError, TransferError
from agent.trust.floor import Floor, check_floor, high_water, issued_at, seen

READ_S = 20.0  # silence that counts as a dead connection
ANSWERS = {404: Missing, 403: Denied}


class Origin(Store):
    """A repository at two URLs as a store that is only read, each object from its beginning."""

    def __init__(self, metadata: str, targets: str = "") -> None:
        self.bases = {METADATA: metadata.rstrip("/"), TARGETS: targets.rstrip("/")}

    def stream(self, key: str, start: int = 0, etag: str | None = None) -> Download:
        """As `Store.stream`; `start` of the answer is 0, whatever was asked."""
        room, _, rest = key.partition("/")
        name = rest if room == "metadata" else quote(rest)  # python-tuf has quoted the roles' names
        url = f"{self.bases[f'{room}/']}/{name}"
        try:
            answer = urlopen(url, timeout=READ_S)
        except HTTPError as error:
            raise ANSWERS.get(error.code, TransferError)(f"{url}: {error.code} {error.reason}") from error
        except (OSError, ValueError, HTTPException) as error:
            raise TransferError(f"{url}: {error}: check the URL and the network") from error
        return Download("", answer.length or 0, 0, pieces(answer, url), answer.close, key)


def pieces(answer: HTTPResponse, url: str) -> Iterator[bytes]:
    """The bytes of an answer as they come."""
    try:
        while piece := answer.read1(CHUNK_BYTES):
            yield piece
    except (OSError, HTTPException) as error:
        raise TransferError(f"{url}: {error}: check the network") from error


class Client:
    """What one folder of metadata stands for."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        self.folder = folder
        self.work = folder / "client"
        self.floor_file = folder / "floor"
        pinned = files.read_or_none(folder / "pinned")
        if pinned is None:
            raise InputError(f"{folder}: no root is pinned here; `init` it first")
        self.tuf = TufClient(self.work, origin, pinned, self.check)

    @property
    def floor(self) -> Floor:
        """What may not fall."""
        raw = files.read_or_none(self.floor_file)
        return from_json(Floor, raw, str(self.floor_file)) if raw else Floor()

    def check(self, chain: Chain) -> None:
        """As the daemon does, before the metadata counts."""
        found = seen(chain.root, chain.timestamp, chain.snapshot, chain.targets)
        files.write_durably(self.floor_file, to_json(check_floor(self.floor, found, issued_at(chain.timestamp))))

    def refresh(self) -> Trusted:
        """What the repository lists now; raises EdgeError where it is not to be had or believed."""
        try:
            trusted = self.tuf.refresh(high_water(datetime.now(UTC), self.floor.time))
        except EdgeError:
            self.show(max(self.work.glob("set-*"), key=lambda path: int(path.name.removeprefix("set-"))))
            raise
        self.show(self.work / "current")
        return trusted

    def download(self, names: list[str], targets: Path) -> None:
        """Each target by its name, quoted, in a folder; one that is there already is not fetched again."""
        trusted = self.refresh()
        targets.mkdir(parents=True, exist_ok=True)
        try:
            for name in names:
                take(trusted, self.tuf.store, name, targets / quote(name, ""))
        finally:
            self.show(self.work / "current")  # delegated roles came with the search

    def show(self, verified: Path) -> None:
        """Copy a set of metadata out."""
        there = {path.name: path.read_bytes() for path in verified.glob("*.json")}
        for name, content in there.items():
            files.write_durably(self.folder / name, content)
        for path in self.folder.glob("*.json"):
            if path.name not in there:
                path.unlink()


def take(trusted: Trusted, store: Origin, name: str, destination: Path) -> None:
    """One target, verified, at its destination; nothing of it where that fails."""
    with _translated(name):
        found = trusted._updater.get_targetinfo(name)
    if found is None:
        raise InputError(f"{name}: nobody who may lists it")
    if "sha256" not in found.hashes:
        take_as_python_tuf(found, store, destination)
        return
    info = trusted.find(name)
    assert info is not None
    try:
        fetch(store, info, destination, on_progress=lambda _: None, should_stop=lambda: False)
    finally:
        for left in (destination.with_name(f"{destination.name}{ending}") for ending in (".part", ".part.json")):
            left.unlink(missing_ok=True)


def take_as_python_tuf(found: TargetFile, store: Origin, destination: Path) -> None:
    """A target that is listed without a SHA-256, from a repository with consistent snapshots; see rule 4."""
    content = store.read(f"{TARGETS}{next(iter(found.get_prefixed_paths()))}", found.length)
    with _translated(found.path):
        found.verify_length_and_hashes(content)
    files.write_durably(destination, content)


def pin(folder: Path, root: Path) -> None:
    """Begin anew with a root."""
    try:
        content = root.read_bytes()
    except OSError as error:
        raise InputError(f"{root}: {error.strerror}; name the root to trust") from error
    with files.saying_why(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("pinned", "root.json"):
        files.write_durably(folder / name, content)


def run(words: argparse.Namespace) -> None:
    """One command; raises EdgeError."""
    if words.command == "init":
        pin(words.metadata_dir, Path(words.root or ""))
        return
    client = Client(words.metadata_dir, Origin(words.metadata_url, words.target_base_url))
    if words.command == "refresh":
        client.refresh()
    else:
        client.download(words.target_name, words.target_dir)


def main(words: Sequence[str] | None = None) -> int:
    """0, or 1 with what went wrong."""
    parser = argparse.ArgumentParser(prog="tuf_client", description="A TUF client, as the conformance suite calls it.")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path, default=Path())
    parser.add_argument("--target-base-url", default="")
    parser.add_argument("command", choices=["init", "refresh", "download"])
    parser.add_argument("root", nargs="?")
    with suppress(BrokenPipeError):
        try:
            run(parser.parse_args(words))
        except EdgeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
