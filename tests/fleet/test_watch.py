"""What operators see of devices that may say anything."""

import pytest
from rich.console import Console

from agent.core.documents import to_json
from fleet.watch import Fleet

SLOT = {
    "slot": "face", "release": "face_detection_retinaface_widerface_20250628", "candidate": "cpu/fp32", "confirmed": True,
    "desired": "face_detection_retinaface_widerface_20250628", "step": "fetch", "reason": "slow link", "progress": 0.5,
}  # fmt: skip


def shown(fleet, width=300):
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(fleet.table())
    return capture.get()


def test_a_device_and_its_slots_are_shown():
    """State and report of one device become a row for each slot."""
    fleet = Fleet()
    fleet.hear("edge/v1/cam-7/state", b'{"state": "online"}')
    fleet.hear(
        "edge/v1/cam-7/reported",
        to_json({"device": "cam-7", "slots": [SLOT, SLOT | {"slot": "fire", "confirmed": False}]}),
    )
    text = shown(fleet)
    assert text.count("cam-7") == 2
    for word in ("online", "face", "fire", "cpu/fp32", "fetch 50%: slow link", "confirmed", "not confirmed"):
        assert word in text


def test_the_table_fits_a_terminal():
    """In 80 columns nothing of a release's name or of the reason is cut off."""
    fleet = Fleet()
    fleet.hear("edge/v1/cam-7/state", b'{"state": "online"}')
    moving = SLOT | {"slot": "face_detection", "reason": "12.5 of 48.0 MB are missing, but 3.1 MB are free: make room"}
    fleet.hear("edge/v1/cam-7/reported", to_json({"slots": [moving]}))
    lines = shown(fleet, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    begin, end = lines[0].index("serves"), lines[0].index("state")
    letters = "".join("".join(line[begin:end] for line in lines).split())
    assert "retinaface_widerface_20250628" in letters
    assert "".join(moving["reason"].split()) in letters


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"[]",
        b"{",
        b"[" * 9000,
        b'{"slots": 5}',
        b'{"slots": [1]}',
        b'{"slots": [{"step": {"a": 1}}]}',
        b" " * 99999,
    ],
)
def test_a_device_that_says_nonsense_is_still_shown(payload):
    """One broken device does not blind the operator for all others."""
    fleet = Fleet()
    fleet.hear("edge/v1/cam-7/reported", payload)
    fleet.hear("edge/v1/cam-8/state", b'{"state": "online"}')
    assert "cam-7" in shown(fleet)
    assert "cam-8" in shown(fleet)


def test_a_device_cannot_steer_the_terminal():
    """Escape sequences and markup are shown, not obeyed."""
    fleet = Fleet()
    fleet.hear("edge/v1/cam-7/reported", to_json({"slots": [SLOT | {"reason": "\x1b[2J[red]x"}]}))
    assert "\x1b" not in shown(fleet)
    assert "?[2J[red]x" in shown(fleet)


def test_a_forgotten_device_disappears():
    """An empty retained message means that nobody is there any more."""
    fleet = Fleet()
    fleet.hear("edge/v1/cam-7/state", b'{"state": "online"}')
    fleet.hear("edge/v1/cam-7/state", b"")
    assert "cam-7" not in shown(fleet)
