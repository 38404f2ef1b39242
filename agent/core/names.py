"""A release is named `{task}_{architecture}_{dataset}_{date}`, and `-2` behind it for a second build of a day.

1. One name is one set of bytes for ever. Newer is the later date, then the higher build.
2. Tasks and architectures come from a registry; some hold underscores, so the longest known one that leaves
   something for the next part is meant.
3. The registry is asked when publishing. A device reads task and architecture from signed metadata and checks
   form and date alone (`check_form`): a fleet's own words need no update of its devices.
4. A name is safe as a file name and as an object key: a to z, 0 to 9, underscore, one hyphen before the build.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Self

from agent.core.documents import Document, from_yaml
from agent.core.errors import InputError

NAME_LENGTH = 128  # characters; leaves room for `_metadata.json` and the like in a file name of 255

TASKS = (
    "face_detection",
    "face_recognition",
    "emotion",
    "landmark",
    "pose",
    "tracking",
    "defect_detection",
    "powerline_inspection",
)
ARCHITECTURES = (
    "retinaface",
    "mtcnn",
    "yolov8n",
    "yolov8s",
    "yolov8m",
    "yolov8l",
    "yolov8x",
    "arcface",
    "facenet",
    "sphereface",
    "cosface",
    "efficientdet",
    "ssd",
    "faster_rcnn",
)

_PATTERN = "{task}_{architecture}_{dataset}_{date}, for example face_detection_retinaface_widerface_20250628"
_WORD = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_VERSION = re.compile(r"(?P<date>[0-9]{8})(-(?P<build>[0-9]+))?")
_BUILD = re.compile(r"[2-9]|[1-9][0-9]{1,2}")


@dataclass(frozen=True, slots=True)
class Registry:
    """The tasks and architectures that a name may hold."""

    tasks: tuple[str, ...] = TASKS
    architectures: tuple[str, ...] = ARCHITECTURES

    def extend(self, tasks: Iterable[str] = (), architectures: Iterable[str] = ()) -> Self:
        """A registry that knows these too.

        Raises:
            InputError: a word could not stand in a name.
        """
        return type(self)(
            tasks=_joined(self.tasks, tasks, "task"),
            architectures=_joined(self.architectures, architectures, "architecture"),
        )

    def extend_from_yaml(self, content: bytes | str, where: str) -> Self:
        """A registry that knows also the `tasks:` and `architectures:` that a YAML document lists.

        Raises:
            InputError: it is not such a document, or a word could not stand in a name.
        """
        words = from_yaml(_Words, content, where)
        return self.extend(words.tasks, words.architectures)


class _Words(Document):
    """The form of a registry file."""

    tasks: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class ReleaseName:
    """The parts of a release's name; ordered by date, then build."""

    date: date
    build: int = 1
    task: str
    architecture: str
    dataset: str

    @classmethod
    def parse(cls, text: str, registry: Registry) -> Self:
        """The parts of a name.

        Raises:
            InputError: says which part is wrong and what would be allowed.
        """
        stem, version = check_form(text)
        task, rest = _longest(text, stem, registry.tasks, "task")
        architecture, dataset = _longest(text, rest, registry.architectures, "architecture")
        day, _, build = version.partition("-")
        return cls(
            date=date.fromisoformat(day), build=int(build or 1), task=task, architecture=architecture, dataset=dataset
        )

    @property
    def version(self) -> str:
        """The date, and the build where it is not the day's first: `20250628`, `20250628-2`."""
        day = self.date.isoformat().replace("-", "")
        return day if self.build == 1 else f"{day}-{self.build}"

    @property
    def stem(self) -> str:
        """The model whose release this is: the name without its date."""
        return f"{self.task}_{self.architecture}_{self.dataset}"

    def __str__(self) -> str:
        return f"{self.stem}_{self.version}"


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
        raise InputError(f"name {text}: date: it ends in {version!r}, not in _YYYYMMDD; the pattern is {_PATTERN}")
    if match["build"] is not None and not _BUILD.fullmatch(match["build"]):
        raise InputError(f"name {text}: build: -{match['build']} is not one of -2 to -999; the first build has none")
    try:
        date.fromisoformat(match["date"])
    except ValueError as error:
        raise InputError(f"name {text}: date: {match['date']} is not a day in the calendar (YYYYMMDD)") from error
    if stem.count("_") < 2:  # noqa: PLR2004 - a task, an architecture and a dataset have two underscores between them
        raise InputError(f"name {text}: a part is missing; the pattern is {_PATTERN}")
    return stem, version


def _check_characters(text: str, stem: str) -> None:
    wrong = sorted(set(re.findall(r"[^a-z0-9_-]", text)) | set(re.findall("-", stem)))
    if wrong:
        raise InputError(
            f"name {text!r}: {' '.join(map(repr, wrong))} cannot stand there; allowed are a to z, 0 to 9 and _, "
            "a build as -2 at the end, and no file ending"
        )
    if stem and not _WORD.fullmatch(stem):
        raise InputError(f"name {text}: a part is empty: an underscore stands first or beside another one")


def _longest(text: str, rest: str, words: Iterable[str], part: str) -> tuple[str, str]:
    """The longest known word that `rest` starts with, and what follows it."""
    found = max((word for word in words if rest.startswith(f"{word}_")), key=len, default=None)
    if found is not None:
        return found, rest.removeprefix(f"{found}_")
    if rest in words:
        raise InputError(f"name {text}: nothing follows the {part} {rest}; the pattern is {_PATTERN}")
    raise InputError(
        f"name {text}: {part}: {rest!r} starts with none that is known: {', '.join(words)}. "
        f"Add a new {part} to registry.yaml or with Registry.extend"
    )


def _joined(known: tuple[str, ...], more: Iterable[str], part: str) -> tuple[str, ...]:
    wanted = tuple(more)
    for word in wanted:
        if not _WORD.fullmatch(word):
            raise InputError(f"registry: {part} {word!r}: only a to z, 0 to 9 and single underscores inside")
    return tuple(dict.fromkeys((*known, *wanted)))
