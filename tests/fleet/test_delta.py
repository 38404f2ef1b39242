"""What a delta gives is the new release, whatever changed; and it is listed where it is smaller."""

import hashlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import helper, numpy_helper

from agent.core.errors import InputError
from agent.trust.delta import rebuild
from agent.trust.listing import DeltaListing, delta_path, target_path
from agent.trust.sealing import SALT_BYTES, Opener, seal
from fleet import cli
from fleet.delta import Release, make, segments_of
from fleet.publish import describe, newest_publics, publish, read_pieces, seal_delta, size_of
from provisioning.keys import init_group
from tests.fleet.desk import NEW, NOW, OLD, OTHER, checked

KEY, OLD_KEY = bytes(range(32)), bytes(32)
DTYPES = ("<f4", "<f2", "<i8", "i1", "<f8")
COUNT = 40  # random pairs of models


def model(tensors, doc=""):
    """An ONNX file that holds these tensors."""
    weights = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [], weights)
    return helper.make_model(graph, doc_string=doc).SerializeToString()


def random_tensors(random):
    shapes = [tuple(random.integers(0, 40, random.integers(0, 4))) for _ in range(random.integers(0, 9))]
    return {
        f"w{index}": np.asarray(random.normal(size=shape) * 20).astype(random.choice(DTYPES))
        for index, shape in enumerate(shapes)
    }


def mutated(tensors, random):
    """Another model with some tensors the same, moved a little, retrained, of another type or size, renamed or gone."""
    found = {}
    for name, array in tensors.items():
        noise = np.asarray(random.normal(size=array.shape) * 0.01)
        change = random.integers(7)
        ways = {
            1: (array + noise).astype(array.dtype),
            2: (100 * noise).astype(array.dtype),
            3: np.append(array, array),
        }
        if array.dtype == "<f4":
            ways[4] = (array + noise).astype("<f2")
        if change != 6:
            found[f"{name}x" if change == 5 else name] = ways.get(int(change), array)
    return found


def release(name, **contents):
    return Release(name, [describe(part, content) for part, content in contents.items()], contents)


def sealed(key, path, one):
    return b"".join(seal(key, path, one.parts, map(read_pieces, one.contents.values())))


def given(new, base, folder):
    """What a device is given by the delta, the signed file, and the bytes of the sealed delta."""
    signed = sealed(KEY, "n", new)
    with (folder / "delta").open("w+b") as spool:
        length, _, size = seal_delta(KEY, signed[:SALT_BYTES], "d", new, base, spool, lambda _: None)
        delta = Opener(KEY, "d", [spool.read()], size)
    old = Opener(OLD_KEY, "o", [sealed(OLD_KEY, "o", base)], size_of(base.parts))
    rebuilt = rebuild(delta, old, KEY, "n", size_of(new.parts), hashlib.sha256(signed).hexdigest())
    return b"".join(rebuilt), signed, length


@pytest.mark.parametrize("seed", range(COUNT))
def test_what_is_made_of_base_and_delta_is_the_new_release(tmp_path, seed):
    """Random models and random changes: octet for octet the sealed file."""
    random = np.random.default_rng(seed)
    old = random_tensors(random)
    new = mutated(old, random)
    contents = {
        "metadata.json": b"new",
        "golden.npz": random.bytes(random.integers(0, 500)),
        "model.onnx": model(new, "v2"),
    }
    base = {"metadata.json": b"older", "golden.npz": b"", "model.onnx": model(old)}
    found, signed, _ = given(release(NEW, **contents), release(OLD, **base), tmp_path)
    assert found == signed


# --- what it costs ---------------------------------------------------------------------------------------------

BIG = {f"layer{index}": np.random.default_rng(index).normal(size=(64, 2_000)).astype("<f4") for index in range(10)}


def share(new, folder, old=None, **parts):
    """The delta's octets as a share of the full file's; what it gives was compared."""
    mine, base = release(NEW, **{"model.onnx": model(new)}), release(OLD, **{"model.onnx": model(old or BIG)})
    found, signed, length = given(mine, base, folder)
    assert found == signed
    return length / len(signed)


def noise(array, size=0.001):
    return (array + np.random.default_rng(9).normal(size=array.shape) * size).astype(array.dtype)


def test_weights_that_moved_a_little_take_less(tmp_path):
    """A thousandth of their spread: two thirds of the full file, 57 percent of the raw one."""
    assert share({name: noise(array) for name, array in BIG.items()}, tmp_path) < 0.66


def test_only_the_tensors_that_changed_are_sent(tmp_path):
    """One of ten, retrained from nothing."""
    assert share(BIG | {"layer9": noise(BIG["layer9"], 1)}, tmp_path) < 0.105


def test_half_floats_of_the_same_weights_are_hardly_sent(tmp_path):
    """A device rounds as the desk does."""
    assert share({name: array.astype("<f2") for name, array in BIG.items()}, tmp_path) < 0.01


def test_tensors_with_new_names_are_still_paired(tmp_path):
    """An exporter may number them anew."""
    assert share({f"onnx::{name}": array for name, array in BIG.items()}, tmp_path) < 0.01


def test_one_tensor_may_be_longer_than_a_block(tmp_path):
    """Blocks end where they do, not where tensors do."""
    old = {"odd": np.ones(17, "<f4"), "w": np.random.default_rng(1).normal(size=2_500_001).astype("<f4")}
    assert share({**old, "w": noise(old["w"], 0.0001)}, tmp_path, old) < 0.55


def test_bytes_that_are_no_model_keep_what_is_common(tmp_path):
    """The beginning and the end of samples, of a config, or of a file that is damaged."""
    old, new = b"begin" * 50 + b"old" + b"end" * 50, b"begin" * 50 + b"brand new" + b"end" * 50
    for name in ("golden.npz", "model.onnx"):
        kinds = [(one.kind, one.size) for one in segments_of(name, new, old)]
        assert kinds == [("diff", 250), ("plain", 9), ("diff", 150)]


def test_a_recipe_that_no_device_reads_is_refused(tmp_path, monkeypatch):
    """The limit is the device's."""
    monkeypatch.setattr("fleet.delta.RECIPE_BYTES", 100)
    with pytest.raises(InputError, match="without a delta"):
        make(release(NEW, a=b"new"), release(OLD, a=b"old"), bytes(24), tmp_path, lambda _: None)


# --- publishing ------------------------------------------------------------------------------------------------


def published(desk, *, weights, bases=("same",), name=NEW):
    """The older release and the new one with deltas from it; what TUF lists of the delta, as a device sees it."""
    older = checked(OLD, weights=model(BIG))
    publics = newest_publics(desk.keyring, ["g1"])
    ref = publish(desk.repository, older, publics, now=NOW)
    changed = {"same": older, "edited": replace(older, config=older.config + b"# later\n")}
    publish(desk.repository, checked(name, weights=weights), publics, bases=[changed[one] for one in bases], now=NOW)
    return desk.device().find(delta_path(name, ref.digest))


def test_a_delta_is_listed_beside_its_release(desk):
    """By the same role, with a length that tells its worth, in a form of its own; it is no release itself."""
    info = published(desk, weights=model(BIG | {"layer9": noise(BIG["layer9"])}))
    whole = desk.device().find(target_path(NEW))
    assert info.length < 0.1 * whole.length
    assert info.custom["fmt"] == "cob256+zstd+delta/v1"
    assert DeltaListing(**info.custom).size > whole.custom["size"]
    assert hashlib.sha256(desk.store.read(info.key, 1 << 24)).hexdigest() == info.sha256
    assert [ref.name for ref in desk.load().refs()] == [OLD, NEW]


def test_a_delta_that_saves_little_is_not_listed(desk):
    """Weights that were trained anew from nothing."""
    assert published(desk, weights=model({name: noise(array, 10) for name, array in BIG.items()})) is None


def test_no_delta_is_made_unless_asked(desk):
    """A caller names the bases."""
    assert published(desk, weights=model(BIG), bases=()) is None


def test_a_base_whose_files_changed_since_is_refused(desk):
    """Its delta would fit no device."""
    with pytest.raises(InputError, match="are others now"):
        published(desk, weights=model(BIG), bases=["edited"])
    assert [ref.name for ref in desk.load().refs()] == [OLD]


def test_a_delta_tells_nobody_of_a_release_that_was_not_for_them(desk):
    """Who can read the new release and the delta could work out the old one."""
    older = checked(OLD, weights=model(BIG))
    publish(desk.repository, older, newest_publics(desk.keyring, ["g1"]), now=NOW)
    init_group(desk.keyring, "g2")
    both = newest_publics(desk.keyring, ["g1", "g2"])
    with pytest.raises(InputError, match="g2 may not read it"):
        publish(desk.repository, checked(NEW, weights=model(BIG)), both, bases=[older], now=NOW)


# --- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A models folder with three releases of one model and one of another; the checks are not this test's."""
    older = OLD.replace("20250101", "20241231-2")
    (tmp_path / "models" / "weights").mkdir(parents=True)
    for name in (older, OLD, NEW, OTHER):
        (tmp_path / "models" / "weights" / f"{name}.onnx").touch()
    weights = {older: model(BIG, "older"), OLD: model(BIG), NEW: model(BIG, "newer"), OTHER: model(BIG, "other")}
    check = SimpleNamespace(check_release=lambda _, name: checked(name, weights=weights[name]))
    monkeypatch.setitem(sys.modules, "models.check", check)
    return tmp_path / "models"


def publish_by_command(desk, folder, name, *words):
    where = ["--folder", str(folder), "--store", f"file://{desk.store.root}", "--keys", str(desk.keyring.folder)]
    return cli.main(["publish", name, *words, *where])


def test_publishing_makes_a_delta_from_the_newest_release_of_the_model(desk, folder, capsys):
    """By itself, and says what it saves; the releases before it and of other models get none."""
    for name in (OLD.replace("20250101", "20241231-2"), OLD, OTHER):
        assert publish_by_command(desk, folder, name, "--no-delta") == 0
    assert "delta" not in capsys.readouterr().out
    assert publish_by_command(desk, folder, NEW) == 0
    said = capsys.readouterr().out
    assert f"delta from {OLD}: " in said
    assert "100% saved" in said
    assert said.count("delta from") == 1


def test_bases_can_be_named(desk, folder, capsys):
    """As many as the fleet runs; one that nobody published is a mistake."""
    older = OLD.replace("20250101", "20241231-2")
    publish_by_command(desk, folder, older, "--no-delta")
    assert publish_by_command(desk, folder, NEW, "--delta-from", older, "--delta-from", OLD) == 2
    assert f"{OLD}: not published here" in capsys.readouterr().err
    assert publish_by_command(desk, folder, NEW, "--delta-from", OTHER) == 2
    assert f"{OTHER}: another model than {NEW}" in capsys.readouterr().err
    publish_by_command(desk, folder, OLD, "--no-delta")
    assert publish_by_command(desk, folder, NEW, "--delta-from", older, "--delta-from", OLD) == 0
    said = capsys.readouterr().out
    assert f"delta from {older}: " in said
    assert f"delta from {OLD}: " in said


def test_a_named_base_without_its_files_is_told_as_what_it_is(desk, folder, capsys, monkeypatch):
    """A name that nobody published, or a release whose files are elsewhere: neither is called unfit to be published."""

    def check_release(_, name):
        if name != NEW:
            raise InputError(f"{name} cannot be published")
        return checked(name)

    publish_by_command(desk, folder, OLD, "--no-delta")
    monkeypatch.setitem(sys.modules, "models.check", SimpleNamespace(check_release=check_release))
    for base, answer in (
        (OTHER, f"release {OTHER}: not published"),
        (OLD, f"--delta-from {OLD}: its files are needed"),
    ):
        assert publish_by_command(desk, folder, NEW, "--delta-from", base) == 2
        assert capsys.readouterr().err.startswith(f"error: {answer}")


def test_a_base_that_changed_is_left_out_with_a_word(desk, folder, capsys, monkeypatch):
    """Nobody named it: publishing goes on."""
    publish_by_command(desk, folder, OLD, "--no-delta")
    edited = SimpleNamespace(check_release=lambda _, name: checked(name, weights=name.encode()))
    monkeypatch.setitem(sys.modules, "models.check", edited)
    assert publish_by_command(desk, folder, NEW) == 0
    said = capsys.readouterr().out
    assert f"no delta from {OLD}: {OLD}: its files have" in said
    assert f"published {NEW}" in said
