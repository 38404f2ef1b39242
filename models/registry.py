"""The words of a release's name: task, architecture and dataset (agent/core/names.py has the form).

1. Tasks and architectures come from a registry; some hold underscores, so the longest known one that leaves
   something for the next part is meant.
2. Newer is the later date, then the higher build.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Self

from agent.core.documents import Document, from_yaml
from agent.core.errors import InputError
from agent.core.names import PATTERN, WORD, check_form

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


def _longest(text: str, rest: str, words: Iterable[str], part: str) -> tuple[str, str]:
    """The longest known word that `rest` starts with, and what follows it."""
    found = max((word for word in words if rest.startswith(f"{word}_")), key=len, default=None)
    if found is not None:
        return found, rest.removeprefix(f"{found}_")
    if rest in words:
        raise InputError(f"name {text}: nothing follows the {part} {rest}; the pattern is {PATTERN}")
    raise InputError(
        f"name {text}: {part}: {rest!r} starts with none that is known: {', '.join(words)}. "
        f"Add a new {part} to registry.yaml or with Registry.extend"
    )


def _joined(known: tuple[str, ...], more: Iterable[str], part: str) -> tuple[str, ...]:
    wanted = tuple(more)
    for word in wanted:
        if not WORD.fullmatch(word):
            raise InputError(f"registry: {part} {word!r}: only a to z, 0 to 9 and single underscores inside")
    return tuple(dict.fromkeys((*known, *wanted)))
