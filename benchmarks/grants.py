"""A whole fleet's grants in one command: how long, and how large. Then one of a thousand devices leaves its group.

1. The command line is measured, on a folder as store: keys read, devices written down, grants made, signed and synced.
2. Beside it stands the same number of plain files of the same size, each written and synced one after another: what
   this disk takes without us.

`--quick`: a thousand devices, nothing is written.
"""

import argparse
import base64
import os
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.trust.grant import CURVE
from benchmarks import _results
from fleet.repository import Repository
from fleet.stores import DeskFolder
from fleet.terminal import now
from provisioning import cli
from provisioning.keys import init_group, init_keys

CLAIMS = {
    "devices": "devices",
    "enrol_s": "`device enrol --from` for all of them, s",
    "plain_ratio": "the same against as many files of that size, each written and synced, by one process",
    "grant_bytes": "one grant, bytes",
    "grants_mb": "all grants, MB",
    "register_mb": "their public keys at the desk, MB",
    "revoke_s": "`device revoke` of one in a thousand: a new epoch, and grants for all others, s",
    "load_before": "load average of the machine before all this began",
}
PLAIN = 2_000  # files of the peer
FEW = 1_000  # devices of the group that one leaves


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a thousand devices; RESULTS.md stays as it is")
    quick = parser.parse_args().quick
    figures: dict[str, float | int | str] = {"load_before": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        figures |= measure(Path(folder), 1_000 if quick else 100_000)
    if not quick:
        _results.write("grants", CLAIMS, figures)
    _results.tell(figures)


def measure(folder: Path, devices: int) -> dict[str, float | int | str]:
    """The figures, in a folder of its own."""
    keyring = init_keys(folder / "keys")
    for group in ("line-1", "small"):
        init_group(keyring, group)
    (folder / "store").mkdir()
    Repository.start(DeskFolder(folder / "store"), keyring, now())
    enrol_s = enrolled_in(folder, "line-1", devices)
    enrolled_in(folder, "small", FEW)
    grants = list((folder / "store/grants/line-1").iterdir())
    size = grants[0].stat().st_size
    return {
        "devices": len(grants),
        "enrol_s": round(enrol_s, 1),
        "plain_ratio": round(enrol_s / devices / plain_s(folder / "plain", size), 2),
        "grant_bytes": size,
        "grants_mb": round(sum(grant.stat().st_size for grant in grants) / 1e6, 1),
        "register_mb": round(sum(one.stat().st_size for one in (keyring.folder / "devices/line-1").iterdir()) / 1e6, 1),
        "revoke_s": round(timed(folder, "device", "revoke", "cam-0", "--group", "small"), 1),
    }


def enrolled_in(folder: Path, group: str, devices: int) -> float:
    """Seconds that it takes to enrol so many devices."""
    (folder / group).write_text("".join(f"cam-{number} {public()}\n" for number in range(devices)))
    return timed(folder, "device", "enrol", "--from", str(folder / group), "--group", group)


def public() -> str:
    """A new device's public key, as a list has it."""
    key = ec.generate_private_key(CURVE).public_key()
    return base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def timed(folder: Path, *words: str) -> float:
    """Seconds of one command."""
    began = time.perf_counter()
    code = cli.main([*words, "--store", f"file://{folder}/store", "--keys", str(folder / "keys")])
    if code != 0:
        raise SystemExit(code)
    return time.perf_counter() - began


def plain_s(folder: Path, size: int) -> float:
    """Seconds that one file of this size takes, written and synced with its folder."""
    store = DeskFolder(folder)
    content = os.urandom(size)
    began = time.perf_counter()
    for number in range(PLAIN):
        store.write(f"plain/{number}.json", content)
    return (time.perf_counter() - began) / PLAIN


if __name__ == "__main__":
    main()
