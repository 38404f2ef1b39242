"""Attacks and faults on sealed releases."""

import hashlib
import tracemalloc

import numpy as np
import pytest
import zstandard
from cryptography.cobblestone import Cobblestone256Encryptor

from agent.core.documents import to_json
from agent.core.errors import InputError, TrustError
from agent.trust import sealing
from agent.trust.sealing import (
    BLOCK_BYTES,
    SALT_BYTES,
    Opener,
    SaltedEncryptor,
    SealedPart,
    bind,
    grouped,
    seal,
    ungrouped,
)
from fleet.sealing import best_group

KEY = bytes(range(32))
PATH = "releases/face.sealed"
WEIGHTS = np.random.default_rng(7).normal(size=2_500_001).astype(np.float32).tobytes() + b"odd"
TEXT = b'{"name": "face"}'


def part(name, content, group=1, **changes):
    fields = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "group": group}
    return SealedPart(**fields | changes)


PARTS = [part("model.onnx", WEIGHTS, 4), part("empty", b""), part("metadata.json", TEXT)]
SIZE = len(WEIGHTS) + len(TEXT)


@pytest.fixture(scope="module")
def sealed():
    return b"".join(seal(KEY, PATH, PARTS, [[WEIGHTS], [], [TEXT[:5], TEXT[5:]]]))


def opened(sealed, key=KEY, path=PATH, size=SIZE, step=100_000):
    opener = Opener(key, path, (sealed[at : at + step] for at in range(0, len(sealed), step)), size)
    got = [b""] * len(opener.parts)
    for index, piece in opener.pieces():
        got[index] += piece
    return got


def raw_seal(header, body):
    """A bundle that an insider with the key could make."""
    return plain_seal(len(header).to_bytes(4, "big") + header + body)


def header_of(*parts, v=1):
    return to_json({"v": v, "parts": parts})


@pytest.mark.parametrize("step", [1000, 16_400, 1 << 20, 1 << 30])
def test_what_was_sealed_comes_out(sealed, step):
    """Parts come out byte for byte, however the sealed bytes are cut."""
    assert opened(sealed, step=step) == [WEIGHTS, b"", TEXT]


@pytest.mark.parametrize("contents", [(WEIGHTS, b"", TEXT), (b"", b"", b""), (b"x" * 16_000, b"", TEXT)])
def test_under_the_same_salt_the_octets_are_the_same_again(contents):
    """What a device rebuilds is the file that the library sealed at the desk."""
    parts = [part(name, content, 4) for name, content in zip("abc", contents, strict=True)]
    first = b"".join(seal(KEY, PATH, parts, [[one] for one in contents]))
    cut = [[one[at : at + 5_000_000] for at in range(0, len(one), 5_000_000)] for one in contents]
    assert b"".join(seal(KEY, PATH, parts, cut, first[:SALT_BYTES])) == first


@pytest.mark.parametrize("length", [0, 1, 16_383, 16_384, 16_385, 32_768, 50_000])
@pytest.mark.parametrize("step", [1_000, 16_384, 40_000])
def test_our_encryptor_under_a_salt_is_the_librarys(length, step):
    """Chunk for chunk, also where the last one is empty, however the content is cut."""
    content = WEIGHTS[:length]
    library = Cobblestone256Encryptor(KEY, b"context")
    first = library.update(content) + library.finalize()
    ours = SaltedEncryptor(KEY, b"context", first[:SALT_BYTES])
    again = b"".join(ours.update(content[at : at + step]) for at in range(0, length, step))
    assert again + ours.finalize() == first


def test_weights_shrink(sealed):
    """Byte-grouping takes random float32 weights to about 86 percent."""
    assert len(sealed) < 0.88 * SIZE


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 4096, 4099])
def test_grouping_is_undone_exactly(group, length):
    """Also where the length is no multiple of the element."""
    block = bytes(range(256)) * 17
    assert bytes(ungrouped(grouped(block[:length], group), group)) == block[:length]


def test_the_group_follows_the_elements():
    """Float32 weights are grouped by four, half floats by two."""
    weights = np.random.default_rng(3).normal(size=100_000)
    assert best_group(weights.astype(np.float32).tobytes()) == 4
    assert best_group(weights.astype(np.float16).tobytes()) == 2


@pytest.mark.parametrize("where", [0, 30, 60, 5000, -1])
def test_a_flipped_bit_is_never_loaded(sealed, where):
    """Salt, commitment, header, weights and last tag are all authenticated."""
    bad = bytearray(sealed)
    bad[where] ^= 1
    with pytest.raises(TrustError, match="does not open"):
        opened(bytes(bad))


@pytest.mark.parametrize("length", [0, 10, 56, 56 + 16400, 56 + 16400 * 100, -1, -16])
def test_a_cut_release_is_never_whole(sealed, length):
    """Truncation is noticed, at a chunk's border too."""
    with pytest.raises(TrustError, match="does not open"):
        opened(sealed[:length])


def test_a_prolonged_release_is_refused(sealed):
    """Bytes behind the final chunk do not open."""
    with pytest.raises(TrustError, match="does not open"):
        opened(sealed + b"more")


def test_chunks_cannot_change_places(sealed):
    """Each chunk is bound to its place."""
    one, two = sealed[56 : 56 + 16400], sealed[56 + 16400 : 56 + 32800]
    with pytest.raises(TrustError, match="does not open"):
        opened(sealed[:56] + two + one + sealed[56 + 32800 :])


def test_a_release_moved_to_another_name_does_not_open(sealed):
    """The path is bound into the seal."""
    with pytest.raises(TrustError, match="does not open"):
        opened(sealed, path="releases/other.sealed")


def test_another_key_does_not_open(sealed):
    """The key commitment is checked before any chunk."""
    with pytest.raises(TrustError, match="does not open"):
        opened(sealed, key=bytes(32))
    with pytest.raises(TrustError, match="16 bytes"):
        opened(sealed, key=bytes(16))


def test_a_listing_of_another_size_is_refused(sealed):
    """The signed size caps what may come out, before the first byte does."""
    with pytest.raises(TrustError, match="signed listing says"):
        opened(sealed, size=SIZE - 1)


@pytest.mark.parametrize(
    "header",
    [
        b"{}", b"null", b"[" * 2000, header_of(), header_of(part("a", b"x"), v=2), header_of(part("a", b"x", group=3)),
        header_of(part("../a", b"x")), header_of(part("/a", b"x")), header_of(part(".a", b"x")), header_of(part("a\n", b"x")),
        header_of(part("a", b"x", size=-1)), header_of(part("a", b"x", sha256="no")),
    ],
)  # fmt: skip
def test_a_malformed_header_is_refused(header):
    """An insider's header cannot name files outside or lengths below zero."""
    with pytest.raises(TrustError, match="header of"):
        opened(raw_seal(header, b""), size=1)


def test_a_huge_header_is_refused():
    """The header's length is limited before it is read."""
    with pytest.raises(TrustError, match="at most 65536"):
        Opener(KEY, PATH, [raw_seal(b" " * 65537, b"")], 1)
    with pytest.raises(TrustError, match="less than a header"):
        Opener(KEY, PATH, [plain_seal(b"\0\0")], 1)


def plain_seal(plain):
    encryptor = Cobblestone256Encryptor(KEY, bind(sealing.DOMAIN, PATH))
    return encryptor.update(plain) + encryptor.finalize()


def test_two_parts_of_one_name_are_refused():
    """A later part cannot take the place of one that was checked."""
    header = header_of(part("a", b"x"), part("a", b"y"))
    with pytest.raises(TrustError, match="one name"):
        opened(raw_seal(header, b""), size=2)


def test_a_part_that_ends_early_is_refused():
    """A stream shorter than declared is no release."""
    body = zstandard.compress(b"x" * 9)
    with pytest.raises(TrustError, match="ends early"):
        opened(raw_seal(header_of(part("a", b"x" * 10)), body), size=10)


def test_a_wrong_digest_is_refused():
    """Every part is checked against the digest under the seal."""
    body = zstandard.compress(b"y" * 10)
    with pytest.raises(TrustError, match="another digest"):
        opened(raw_seal(header_of(part("a", b"x" * 10)), body), size=10)


@pytest.mark.parametrize("tail", [b"garbage", zstandard.compress(b"more")])
@pytest.mark.parametrize("closing", [zstandard.COMPRESSOBJ_FLUSH_FINISH, zstandard.COMPRESSOBJ_FLUSH_BLOCK])
def test_what_follows_the_last_part_is_refused(tail, closing):
    """Nothing hides behind the parts, neither inside the stream nor behind it, however its frame is closed."""
    compressor = zstandard.ZstdCompressor().compressobj()
    body = compressor.compress(b"x" * 10) + compressor.flush(closing)
    if closing == zstandard.COMPRESSOBJ_FLUSH_BLOCK:
        body += compressor.flush()
    with pytest.raises(TrustError, match=r"goes on|damaged"):
        opened(raw_seal(header_of(part("a", b"x" * 10)), body + tail), size=10)


def test_a_broken_stream_is_refused():
    """Damage inside the seal is an insider's, and still only a refusal."""
    with pytest.raises(TrustError, match="damaged"):
        opened(raw_seal(header_of(part("a", b"x" * 10)), b"no zstd at all"), size=10)


def test_a_frame_that_asks_for_much_memory_is_refused():
    """A window larger than ours never gets its memory."""
    params = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=params).compressobj()
    body = compressor.compress(b"x" * 10) + compressor.flush()
    with pytest.raises(TrustError, match="damaged"):
        opened(raw_seal(header_of(part("a", b"x" * 10)), body), size=10)


def test_a_bomb_fills_no_memory():
    """A gigabyte of zeros in 32 KB ends at the declared ten bytes."""
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    body = b"".join(compressor.compress(bytes(BLOCK_BYTES)) for _ in range(256)) + compressor.flush()
    bomb = raw_seal(header_of(part("a", bytes(10))), body)
    tracemalloc.start()
    with pytest.raises(TrustError, match="goes on"):
        opened(bomb, size=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 1024 * 1024


def test_opening_needs_little_memory():
    """A release far larger than the limit passes through it: four blocks, one of them with whoever reads."""
    block = np.random.default_rng(1).bytes(BLOCK_BYTES)
    whole = hashlib.sha256()
    for _ in range(24):
        whole.update(block)
    big = SealedPart(name="model.onnx", size=24 * BLOCK_BYTES, sha256=whole.hexdigest(), group=4)
    sealed = b"".join(seal(KEY, PATH, [big], [[block] * 24]))
    view = memoryview(sealed)
    tracemalloc.start()
    pieces = (view[at : at + (1 << 20)] for at in range(0, len(view), 1 << 20))
    for _ in Opener(KEY, PATH, pieces, big.size).pieces():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4.5 * BLOCK_BYTES


def test_a_file_that_changes_while_it_is_sealed_is_noticed():
    """Sealing checks what it reads against what it declared."""
    with pytest.raises(InputError, match="changed while"):
        list(seal(KEY, PATH, [part("a", b"xxx")], [[b"xyx"]]))


def test_words_bound_together_cannot_be_cut_elsewhere():
    """No two lists of words give the same binding."""
    assert len({bind("a", "bc"), bind("ab", "c"), bind("abc"), bind("a", "b", "c"), bind("a", 1), bind("a1")}) == 6
