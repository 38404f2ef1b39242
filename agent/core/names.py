"""A release is named `{task}_{architecture}_{dataset}_{date}`, and `-2` behind it for a second build of a day.

1. One name is one set of bytes for ever. Newer is the later date, then the higher build.
2. The words of a name are asked of a registry when publishing (models/registry.py). A device reads task and
   architecture from signed metadata and checks form and date alone: a fleet's own words need no update of its devices.
3. A name is safe as a file name and as an object key: a to z, 0 to 9, underscore, one hyphen before the build.
"""

import re
from datetime import date

from agent.core.errors import InputError

NAME_LENGTH = 128  # characters; leaves room for `_metadata.json` and the like in a file name of 255

PATTERN = "{task}_{architecture}_{dataset}_{date}, for example face_detection_retinaface_widerface_20250628"
WORD = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_VERSION = re.compile(r"(?P<date>[0-9]{8})(-(?P<build>[0-9]+))?")
_BUILD = re.compile(r"[2-9]|[1-9][0-9]{1,2}")


def check_form(text: str) -> tuple[str, str]:
    """The stem (the name without its date) and the version (`20250628` or `20250628-2`) of a name.

    Raises:
        InputError: it could not be a name, whatever the registry; says why.
    """
    if not 0 < len(text) <= NAME_LENGTH:
        raise InputError(f"name: {len(text)} characters; 1 to {NAME_LENGTH} are allowed")
    stem, _, version = text.rpartition("_")
    _check_characters(text, stem)
    match = _VERSION.fullmatch(version)
    if match is None:
        raise InputError(f"name {text}: date: it ends in {version!r}, not in _YYYYMMDD; the pattern is {PATTERN}")
    if match["build"] is not None and not _BUILD.fullmatch(match["build"]):
        raise InputError(f"name {text}: build: -{match['build']} is not one of -2 to -999; the first build has none")
    try:
        date.fromisoformat(match["date"])
    except ValueError as error:
        raise InputError(f"name {text}: date: {match['date']} is not a day in the calendar (YYYYMMDD)") from error
    if stem.count("_") < 2:  # noqa: PLR2004 - a task, an architecture and a dataset have two underscores between them
        raise InputError(f"name {text}: a part is missing; the pattern is {PATTERN}")
    return stem, version


def age_of(text: str) -> tuple[str, int]:
    """The date and build in a name: of two releases the greater one is newer. Raises InputError as `check_form`."""
    day, _, build = check_form(text)[1].partition("-")
    return day, int(build or 1)


def _check_characters(text: str, stem: str) -> None:
    wrong = sorted(set(re.findall(r"[^a-z0-9_-]", text)) | set(re.findall("-", stem)))
    if wrong:
        raise InputError(
            f"name {text!r}: {' '.join(map(repr, wrong))} cannot stand there; allowed are a to z, 0 to 9 and _, "
            "a build as -2 at the end, and no file ending"
        )
    if stem and not WORD.fullmatch(stem):
        raise InputError(f"name {text}: a part is empty: an underscore stands first or beside another one")
