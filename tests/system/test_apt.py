"""Whoever is not root gets the programs of the tests unpacked beside them, or is told which packages are missing."""

import os
import shutil
import subprocess

import pytest

from tests.system.plant import ROOT

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here: not a Debian")
PROGRAM = "edgeprobe"
DEPENDS = {PROGRAM: "libedge1 libc6 adduser", "libedge1": "libedge2", "libedge2": "libc6"}


@pytest.fixture
def site(tmp_path):
    """A checkout with the script, and an apt without a network: what it has lies in `archive`."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/apt.sh", tmp_path / "tools")
    (tmp_path / "archive").mkdir()
    (tmp_path / "bin").mkdir()
    depends = "\n".join(f"{name}) printf '  Depends: %s\\n' {words};;" for name, words in DEPENDS.items())
    fakes = {
        "id": "echo 1000",
        "apt-cache": f'shift; for name in "$@"; do case $name in {depends} esac; done',
        "apt-get": f'shift 2; for name in "$@"; do cp {tmp_path}/archive/"$name".deb . || exit 100; done',
    }
    for name, text in fakes.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def package(site, name, **files):
    """A package in the archive."""
    tree = site / "build" / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    for path, text in files.items():
        place = tree / path.replace("__", "/")
        place.parent.mkdir(parents=True)
        place.write_text(text)
        place.chmod(0o755)
    subprocess.run(["dpkg-deb", "--build", tree, site / "archive" / f"{name}.deb"], check=True, capture_output=True)


def run(site):
    return subprocess.run(
        ["sh", site / "tools/apt.sh", PROGRAM, "2.0"],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PATH": f"{site / 'bin'}:{os.environ['PATH']}"},
    )  # fmt: skip


def test_a_program_is_unpacked_with_its_libraries(site):
    """It runs by its wrapper, and finds the libraries of its libraries; asked again, nothing is done."""
    package(site, PROGRAM, usr__sbin__edgeprobe="#!/bin/sh\necho $LD_LIBRARY_PATH\n")
    for name in ("libedge1", "libedge2"):
        package(site, name, **{f"usr__lib__{name}__{name}.so.1": ""})
    done = run(site)
    assert (done.returncode, done.stderr) == (0, "")
    said = subprocess.run([site / ".cache" / PROGRAM], capture_output=True, text=True, check=True).stdout
    assert {path.rsplit("/", 1)[1] for path in said.strip().split(":") if str(site) in path} == {"libedge1", "libedge2"}
    shutil.rmtree(site / "archive")
    assert run(site).returncode == 0


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (None, "could not be downloaded with what it needs (edgeprobe libedge1 libedge2)"),
        ("#!/nowhere\n", "does not run (edgeprobe libedge1 libedge2)"),
    ],
)
def test_what_cannot_be_had_is_named(site, program, words):
    """One line: which packages, which version, and what root would type; nothing that looks like the program stays."""
    if program is not None:
        package(site, PROGRAM, usr__sbin__edgeprobe=program)
    done = run(site)
    assert done.returncode == 1
    assert done.stderr.count("edgeprobe is missing") == 1
    assert words in done.stderr
    assert "the package 'edgeprobe' (2.0 or newer); as root: apt-get install -y edgeprobe" in done.stderr
    assert not (site / ".cache" / PROGRAM).exists()
