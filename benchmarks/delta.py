"""Deltas in figures: what comes instead of a whole release, and what that costs at the desk and on the device.

1. Every delta is made and sealed as `edge-fleet publish` does, rebuilt as a device does, and compared with the signed
   file by digest: a delta that does not give it ends the program.
2. A share is the sealed delta / the new model's file; in the second place, the sealed delta / the sealed release.
3. What moves are float32 weights, each by a part of the spread of its own tensor.
4. The peer is zstd's patch-from on both files byte-grouped, where the `zstd` program is there.

Models: the layers of ResNet-50 with random weights, our own, and those in the folder EDGE_ACCEPTANCE_MODELS.
`--quick`: half the width of ResNet-50, nothing is written.
"""

import argparse
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from cryptography.cobblestone import Cobblestone256Encryptor
from onnx import helper, numpy_helper

from agent.daemon.keyring import pieces
from agent.trust.delta import rebuild
from agent.trust.sealing import BLOCK_BYTES, SALT_BYTES, Opener, grouped, seal
from benchmarks import _results
from fleet.delta import Release
from fleet.publish import describe, seal_delta, size_of
from tests.backends.conftest import FOLDER

ROOT = Path(__file__).parents[1]
OWN = ROOT / "models" / "weights"
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # of ResNet-50: channels, blocks
LARGE = "resnet50_shaped"
NEW, OLD, DELTA = "releases/new.sealed", "releases/old.sealed", "releases/new.from.old.delta"
KEY, OLD_KEY = Cobblestone256Encryptor.generate_key(), Cobblestone256Encryptor.generate_key()
SMALL_MOVE, LARGE_MOVE = 0.001, 0.1  # of a tensor's spread: a little more training, and a good deal of it
TAIL = 0.9  # the tensors behind these of them
STATUS = Path("/proc/self/status")

Change = Callable[[int, int, np.ndarray], np.ndarray]  # which of how many tensors, and its values

CASES = {
    "head": "the last layer trained anew from nothing",
    "tail_tensors": "the last tenth of the tensors moved by a tenth of their spread",
    "noise": "all weights moved by a thousandth of their spread",
    "fp16": "the same weights as float16",
    "nothing": "nothing but the metadata changed",
}


def changes(seed: int) -> Mapping[str, Change]:
    """How each case makes new values of old ones."""
    random = np.random.default_rng([seed, 7])  # apart from those of the models

    def moved(values: np.ndarray, share: float) -> np.ndarray:
        spread = values.std() if values.size > 1 else np.abs(values).max(initial=0)
        return (values + random.normal(size=values.shape) * spread * share).astype(values.dtype)

    return {
        "head": lambda index, count, old: moved(old[..., ::-1], 1) if index >= count - 2 else old,
        "tail_tensors": lambda index, count, old: moved(old, LARGE_MOVE) if index >= TAIL * count else old,
        "noise": lambda _index, _count, old: moved(old, SMALL_MOVE),
        "fp16": lambda _index, _count, old: old.astype(np.float16),
        "nothing": lambda _index, _count, old: old,
    }


COSTS = {
    "make_s": f"to make and seal the delta of {LARGE} (noise), s",
    "make_peak_mb": "memory that this takes at the desk, MB",
    "apply_s": "to rebuild and seal it again on this machine, s",
    "apply_peak_mb": "memory that this takes on the device, MB",
    "open_s": "the peer of that: to open the whole release, s",
    "patch_from_noise": "the peer's share of the model's file: zstd -3 --patch-from, all weights moved",
    "patch_from_tail_tensors": "the same, the last tenth of the tensors",
}


def main() -> None:
    """Measure, print, and on a full run write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model; RESULTS.md stays as it is")
    quick = parser.parse_args().quick
    found: dict[tuple[str, str], Sizes] = {}
    names, costs = {}, {}
    for name, old in models(quick=quick):
        names[name] = f"{name} ({len(old) / 1e6:.1f} MB)"
        for case, change in changes(len(names)).items():
            new = altered(old, change)
            found[name, case] = measure(old, new)
            costs |= peer(case, old, new) if name == LARGE else {}
            costs |= measure_costs(old, new) if (name, case) == (LARGE, "noise") else {}
        print(names[name], {case: str(found[name, case]) for case in CASES}, flush=True)
    totals = {case: sum((found[name, case] for name in names), Sizes(0, 0, 0)) for case in CASES}
    heads = {case: totals[case].of_file for case in CASES}
    sealed = {f"{case}_of_sealed": totals[case].of_sealed for case in CASES}
    if not quick:
        claims = {}
        for case, text in CASES.items():
            claims[case] = f"{text}: delta / model file, all models together"
            claims[f"{case}_of_sealed"] = "the same delta / the whole sealed release"
        claims |= {f"{name} {case}": f"{names[name]}, {CASES[case]}: both shares" for name, case in found}
        claims |= {key: text for key, text in COSTS.items() if key in costs}
        each = {f"{name} {case}": str(one) for (name, case), one in found.items()}
        _results.write("delta", claims, heads | sealed | each | costs)
    _results.tell(heads | sealed | costs)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a sealed delta, of the model's file that it gives, and of the sealed release."""

    delta: int
    file: int
    sealed: int

    def __add__(self, other: "Sizes") -> "Sizes":
        return Sizes(self.delta + other.delta, self.file + other.file, self.sealed + other.sealed)

    def __str__(self) -> str:
        return f"{self.of_file:.4f} / {self.of_sealed:.4f}"

    @property
    def of_file(self) -> float:
        """The delta's share of the model's file."""
        return round(self.delta / self.file, 4)

    @property
    def of_sealed(self) -> float:
        """The delta's share of the whole sealed release."""
        return round(self.delta / self.sealed, 4)


# --- models ----------------------------------------------------------------------------------------------------


def models(*, quick: bool) -> Iterator[tuple[str, bytes]]:
    """Every model by name, as onnx writes it."""
    yield LARGE, resnet(0.5 if quick else 1.0)
    for folder in (OWN, FOLDER):
        paths = sorted(folder.glob("*.onnx"))
        if not paths:
            print(f"{folder}: no models there, left out; EDGE_ACCEPTANCE_MODELS names another folder", flush=True)
        for path in paths:
            yield path.stem, onnx.load(path).SerializeToString()


def resnet(width: float) -> bytes:
    """The weights of ResNet-50 at some width, drawn as they are before training."""
    random, weights, channels = np.random.default_rng(0), [], 3

    def add(*shape: int) -> None:
        values = random.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        bias = random.normal(size=shape[0]) * 0.1
        for kind, array in (("weight", values), ("bias", bias)):
            weights.append(numpy_helper.from_array(array.astype(np.float32), f"{len(weights) // 2}.{kind}"))

    add(int(64 * width), channels, 7, 7)
    channels = int(64 * width)
    for planes, blocks in STAGES:
        inner = int(planes * width)
        for block in range(blocks):
            add(inner, channels, 1, 1)
            add(inner, inner, 3, 3)
            add(4 * inner, inner, 1, 1)
            if block == 0:
                add(4 * inner, channels, 1, 1)
            channels = 4 * inner
    add(1000, channels)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], LARGE, [], [], weights)
    return bytes(helper.make_model(graph).SerializeToString())


def altered(content: bytes, change: Change) -> bytes:
    """The model with other float32 weights."""
    model = onnx.load_from_string(content)
    weights = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    for index, one in enumerate(weights):
        one.CopyFrom(numpy_helper.from_array(change(index, len(weights), numpy_helper.to_array(one)), one.name))
    return bytes(model.SerializeToString())


# --- measuring -------------------------------------------------------------------------------------------------


def release(name: str, model: bytes) -> Release:
    """A release of this model, with metadata that differ from release to release."""
    contents = {"metadata.json": f'{{"name": "{name}"}}'.encode(), "model.onnx": model}
    return Release(name, [describe(part, content) for part, content in contents.items()], contents)


def sealed(one: Release, key: bytes, path: str) -> bytes:
    """The sealed release."""
    return b"".join(seal(key, path, one.parts, [[content] for content in one.contents.values()]))


def measure(old: bytes, new: bytes) -> Sizes:
    """What comes, after it was rebuilt and every digest was right."""
    older, newer = release("old", old), release("new", new)
    whole = sealed(newer, KEY, NEW)
    with tempfile.TemporaryFile() as spool:
        length, _, size = seal_delta(KEY, whole[:SALT_BYTES], DELTA, newer, older, spool, lambda _: None)
        spool.seek(0)
        delta = Opener(KEY, DELTA, [spool.read()], size)
    base = Opener(OLD_KEY, OLD, [sealed(older, OLD_KEY, OLD)], size_of(older.parts))
    for _ in rebuild(delta, base, KEY, NEW, size_of(newer.parts), hashlib.sha256(whole).hexdigest()):
        pass
    return Sizes(length, len(new), len(whole))


def measure_costs(old: bytes, new: bytes) -> dict[str, float]:
    """Seconds and memory of a desk and of a device, each in a process of its own."""
    with (
        tempfile.TemporaryDirectory() as temp,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        folder = Path(temp)
        (folder / "old").write_bytes(old)
        (folder / "new").write_bytes(new)
        (folder / "old.sealed").write_bytes(sealed(release("old", old), OLD_KEY, OLD))
        (folder / "new.sealed").write_bytes(sealed(release("new", new), KEY, NEW))
        make_s, make_mb, size = pool.apply(make_there, (folder, KEY))
        apply_s, apply_mb = pool.apply(apply_there, (folder, KEY, OLD_KEY, size))
        open_s = pool.apply(open_there, (folder, KEY))
    return {
        "make_s": round(make_s, 2), "make_peak_mb": round(make_mb), "apply_s": round(apply_s, 2),
        "apply_peak_mb": round(apply_mb), "open_s": round(open_s, 2),
    }  # fmt: skip


def make_there(folder: Path, key: bytes) -> tuple[float, float, int]:
    """At the desk: seconds, MB, and the size of the delta's parts."""
    before, began = memory("VmRSS"), time.perf_counter()
    older, newer = (release(name, (folder / name).read_bytes()) for name in ("old", "new"))
    salt = (folder / "new.sealed").read_bytes()[:SALT_BYTES]
    with (folder / "delta").open("w+b") as spool:
        _, _, size = seal_delta(key, salt, DELTA, newer, older, spool, lambda _: None)
    return time.perf_counter() - began, memory("VmHWM") - before, size


def apply_there(folder: Path, key: bytes, old_key: bytes, size: int) -> tuple[float, float]:
    """On the device: seconds and MB, from file to file."""
    sizes = {name: size_of(release(name, (folder / name).read_bytes()).parts) for name in ("old", "new")}
    digest = hashlib.sha256((folder / "new.sealed").read_bytes()).hexdigest()
    with STATUS.with_name("clear_refs").open("w") as peak:
        peak.write("5")  # the highest so far is forgotten
    before, began = memory("VmRSS"), time.perf_counter()
    delta = Opener(key, DELTA, pieces(folder / "delta"), size)
    base = Opener(old_key, OLD, pieces(folder / "old.sealed"), sizes["old"])
    with (folder / "result").open("wb") as result:
        result.writelines(rebuild(delta, base, key, NEW, sizes["new"], digest))
        result.flush()
        os.fsync(result.fileno())
    return time.perf_counter() - began, memory("VmHWM") - before


def open_there(folder: Path, key: bytes) -> float:
    """Seconds that the device takes to open the whole release once, as it does after every fetch."""
    size = size_of(release("new", (folder / "new").read_bytes()).parts)
    began = time.perf_counter()
    for _ in Opener(key, NEW, pieces(folder / "new.sealed"), size).pieces():
        pass
    return time.perf_counter() - began


def memory(what: str) -> float:
    """MB of this process."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def peer(case: str, old: bytes, new: bytes) -> dict[str, float]:
    """The share that zstd's patch-from takes on both files byte-grouped."""
    key, program = f"patch_from_{case}", shutil.which("zstd")
    if key not in COSTS or program is None:
        return {}
    with tempfile.TemporaryDirectory() as temp:
        paths = [Path(temp) / name for name in ("old", "new", "patch")]
        for path, content in zip(paths, (old, new), strict=False):
            steps = range(0, len(content), BLOCK_BYTES)
            path.write_bytes(b"".join(grouped(content[at : at + BLOCK_BYTES], 4) for at in steps))
        words = [program, "-3", "-q", f"--patch-from={paths[0]}", str(paths[1]), "-o", str(paths[2])]
        subprocess.run(words, check=True, capture_output=True)
        return {key: round(paths[2].stat().st_size / len(new), 4)}


if __name__ == "__main__":
    main()
