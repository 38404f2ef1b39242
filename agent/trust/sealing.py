"""A sealed release: all its parts in one bundle, byte-grouped, compressed, and encrypted once.

1. Sealed bytes are Cobblestone-256 (C2SP chunked encryption) under a random content key; the context binds them to
   the release's TUF path, so that a bundle moved to another name does not open.
2. Inside: a header that names the parts with size and digest, then one zstd stream of the parts' blocks in order.
   Digests of plaintext exist only in here. Layout: models/FORMAT.md.
3. Opening streams: a 2 GB model passes through about 24 MiB. No length is believed before it is checked against
   the signed listing, and no step can yield more than was declared. (What a device seals for itself has no listing.)
   One block is put in order and hashed, by a thread, while the next is opened.
4. Pieces are authentic when they come out, but the release is whole only when the iteration ends without an error:
   until then nothing may be used.
5. Whoever holds a group's key can forge a bundle. Authenticity is TUF's signature over the sealed bytes, checked
   before these are opened.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Annotated, Literal, TypeVar, cast

import numpy as np
import zstandard
from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from msgspec import Meta

from agent.core.documents import Document, to_json
from agent.core.errors import InputError, TrustError
from agent.trust.envelope import parse_signed

BLOCK_BYTES = 4 * 1024 * 1024  # grouped at a time: large enough for zstd's window, small enough for any device
CIPHER_BYTES = 1024 * 1024  # decrypted at a time
HEADER_BYTES = 64 * 1024  # a part takes about 150 bytes
PARTS = 64
ZSTD = ".".join(map(str, zstandard.ZSTD_VERSION))  # each version may compress to other octets
LEVEL = 3  # zstd; higher levels gain one point in a hundred at a hundredth of the speed
WINDOW_BYTES = 8 * 1024 * 1024  # the most memory a zstd frame may ask for; level 3 asks for 2 MiB
KEY_BYTES = 32
SALT_BYTES = 24
CHUNK_BYTES = 16 * 1024
CHUNKED = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"
DOMAIN = "edge-model-agent/release/v1"

T = TypeVar("T")
R = TypeVar("R")
Group = Literal[1, 2, 4, 8]


class SealedPart(Document):
    """One file of a release. `group` is the size in bytes of the elements it mostly holds."""

    name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z")]
    size: Annotated[int, Meta(ge=0, le=2**40)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    group: Group = 1


class Header(Document):
    """What a bundle holds, in order."""

    v: Literal[1]
    parts: Annotated[tuple[SealedPart, ...], Meta(min_length=1, max_length=PARTS)]


def bind(*words: str | int) -> bytes:
    """The words as bytes that no other words make: each with its length in front."""
    encoded = [str(word).encode() for word in words]
    return b"".join(len(word).to_bytes(4, "big") + word for word in encoded)


def seal(
    key: bytes, path: str, parts: Sequence[SealedPart], contents: Iterable[Iterable[bytes]], salt: bytes = b""
) -> Generator[bytes, None, None]:
    """The sealed release, piece by piece; `contents` brings the bytes of each part, in any pieces.

    With the salt of an earlier call, the octets are the same again; see SaltedEncryptor.

    Raises:
        InputError: the contents are not what the parts declare.
    """
    header = to_json(Header(v=1, parts=tuple(parts)))
    context = bind(DOMAIN, path)
    encryptor = SaltedEncryptor(key, context, salt) if salt else Cobblestone256Encryptor(key, context)
    yield encryptor.update(len(header).to_bytes(4, "big") + header)
    compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj()
    for part, content in zip(parts, contents, strict=True):
        for block in blocks(part, content):
            yield encryptor.update(compressor.compress(grouped(block, part.group)))
    yield encryptor.update(compressor.flush())
    yield encryptor.finalize()


class SaltedEncryptor:
    """Cobblestone-256 under a salt that was drawn before, which the library cannot be given.

    Two contents under one salt break the seal: what comes out is kept only if it is, by digest, what the library gave.
    """

    def __init__(self, key: bytes, context: bytes, salt: bytes) -> None:
        derived = HKDFExpand(SHA512(), 76, CHUNKED + salt + context).derive(key)
        self._cipher, self._nonce = AESGCM(derived[:32]), int.from_bytes(derived[32:44], "big")
        self._head = salt + derived[44:]
        self._index = 0
        self._rest = b""

    def update(self, content: bytes) -> bytes:
        """The next octets."""
        content = self._rest + content
        whole = len(content) // CHUNK_BYTES * CHUNK_BYTES
        self._rest = content[whole:]
        return b"".join(self._chunk(content[at : at + CHUNK_BYTES]) for at in range(0, whole, CHUNK_BYTES))

    def finalize(self) -> bytes:
        """The last octets."""
        return self._chunk(self._rest)

    def _chunk(self, content: bytes) -> bytes:
        nonce, head = (self._nonce ^ self._index).to_bytes(12, "big"), b"" if self._index else self._head
        self._index += 1
        return head + self._cipher.encrypt(nonce, content, None)


def blocks(part: SealedPart, content: Iterable[bytes]) -> Iterator[bytes]:
    """The part in blocks of BLOCK_BYTES; raises InputError at its end if it is not what it declares."""
    digest = hashlib.sha256()
    size = 0
    rest = bytearray()
    for piece in content:
        digest.update(piece)
        size += len(piece)
        view = memoryview(piece)
        while len(rest) + len(view) >= BLOCK_BYTES:
            taken = BLOCK_BYTES - len(rest)
            yield bytes(rest) + view[:taken]
            rest.clear()
            view = view[taken:]
        rest += view
    if rest:
        yield bytes(rest)
    if (size, digest.hexdigest()) != (part.size, part.sha256):
        raise InputError(f"{part.name}: it changed while it was sealed; publish again")


def grouped(block: bytes, group: int) -> bytes:
    """The first bytes of all elements, then the second bytes, and so on; a remainder stays as it is."""
    whole = len(block) // group * group
    elements = np.frombuffer(block, np.uint8)
    return elements[:whole].reshape(-1, group).T.tobytes() + block[whole:]


def ungrouped(block: bytes, group: int) -> memoryview:
    """The block as it was before `grouped`."""
    elements = len(block) // group
    source = np.frombuffer(block, np.uint8)
    plain = np.empty(len(block), np.uint8)
    for place in range(group):  # one strided copy each: half again as fast as one transposed copy
        plain[place : elements * group : group] = source[place * elements : (place + 1) * elements]
    plain[elements * group :] = source[elements * group :]
    return plain.data


def ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`work` of each item, done by a thread while the next item is made."""
    with ThreadPoolExecutor(1) as thread:
        coming: Future[R] | None = None
        for item in items:
            if coming:
                yield coming.result()
            coming = thread.submit(work, item)
        if coming:
            yield coming.result()


class Opener:
    """Opens one sealed release: `parts` is known at once, `pieces` brings their bytes in order."""

    def __init__(self, key: bytes, path: str, sealed: Iterable[bytes], size: int | None) -> None:
        """Reads as far as the header.

        Args:
            key: the content key.
            path: the release's TUF path.
            sealed: the sealed bytes, in any pieces.
            size: the size of all parts together that the signed listing gives; None where nobody but the reader has
                the key.

        Raises:
            TrustError: the key or the path is another's, or the header is not one.
        """
        if len(key) != KEY_BYTES:
            raise TrustError(f"{path}: the content key has {len(key)} bytes, not {KEY_BYTES}; publish it anew")
        self._path = path
        self._plain = Plaintext(key, path, sealed)
        self.parts = self._read_header(size)
        zstd = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
        # Across frames: so that anything behind our one frame is an error and not left unread.
        source = cast("IO[bytes]", self._plain)  # of a file, the reader uses `read` alone
        self._stream = zstd.stream_reader(source, read_size=CIPHER_BYTES, read_across_frames=True)

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """(index of the part, its next bytes), at most BLOCK_BYTES at a time. To be iterated once, to its end.

        Raises:
            TrustError: a byte, a length or a digest is not what was sealed.
        """
        for index, part in enumerate(self.parts):
            for block in self._checked(part):
                yield index, block
        if self._read(1) or self._plain.read(1):
            raise TrustError(f"{self._path}: goes on behind its last part; publish it anew")

    def _read_header(self, size: int | None) -> tuple[SealedPart, ...]:
        length = int.from_bytes(self._plain.exactly(4), "big")
        if length > HEADER_BYTES:
            raise TrustError(f"{self._path}: its header has {length} bytes; at most {HEADER_BYTES}. Publish it anew")
        header = parse_signed(Header, self._plain.exactly(length), f"header of {self._path}")
        declared = sum(part.size for part in header.parts)
        if size not in {None, declared}:
            raise TrustError(f"{self._path}: holds {declared} bytes; its signed listing says {size}. Publish it anew")
        if len({part.name for part in header.parts}) != len(header.parts):
            raise TrustError(f"{self._path}: two parts have one name; publish it anew")
        return header.parts

    def _checked(self, part: SealedPart) -> Iterator[memoryview]:
        digest = hashlib.sha256()

        def finished(block: bytes) -> memoryview:
            plain = ungrouped(block, part.group)
            digest.update(plain)
            return plain

        yield from ahead(finished, self._blocks(part))
        if digest.hexdigest() != part.sha256:
            raise TrustError(f"{self._path}: {part.name} has another digest than its header says; publish it anew")

    def _blocks(self, part: SealedPart) -> Iterator[bytes]:
        for start in range(0, part.size, BLOCK_BYTES):
            length = min(BLOCK_BYTES, part.size - start)
            block = self._read(length)
            if len(block) != length:
                raise TrustError(f"{self._path}: {part.name} ends early; publish it anew")
            yield block

    def _read(self, length: int) -> bytes:
        try:
            return self._stream.read(length)
        except (zstandard.ZstdError, MemoryError) as error:
            raise TrustError(f"{self._path}: the compressed stream is damaged: {error}; publish it anew") from error


class Plaintext:
    """What is under the seal, as a file to read from; every byte is authenticated before it comes out."""

    def __init__(self, key: bytes, path: str, sealed: Iterable[bytes]) -> None:
        self._path = path
        self._decryptor = Cobblestone256Decryptor(key, bind(DOMAIN, path))
        self._pieces = self._decrypted(sealed)
        self._rest = b""

    def read(self, length: int) -> bytes:
        """At most `length` bytes; none at the end, which is then known to be the true end.

        Raises:
            TrustError: the bytes were not sealed under this key for this path, or were changed or cut.
        """
        while not self._rest and (piece := next(self._pieces, None)) is not None:
            self._rest = piece
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken

    def exactly(self, length: int) -> bytes:
        """This many bytes; raises TrustError where there are fewer."""
        while len(self._rest) < length and (piece := next(self._pieces, None)) is not None:
            self._rest += piece
        if len(self._rest) < length:
            raise TrustError(f"{self._path}: the seal holds less than a header; publish it anew")
        return self.read(length)

    def _decrypted(self, sealed: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for piece in sealed:
                view = memoryview(piece)
                for start in range(0, len(view), CIPHER_BYTES):
                    yield self._decryptor.update(view[start : start + CIPHER_BYTES])
            yield self._decryptor.finalize()
        except InvalidTag as error:
            raise TrustError(
                f"{self._path}: does not open under its content key: changed, cut, or sealed for another path"
            ) from error
