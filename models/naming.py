"""Names of releases, by the words that a models folder knows (registry.py has the rule)."""

from datetime import date
from pathlib import Path

from agent.core.errors import InputError
from models.folder import open_folder
from models.registry import ReleaseName


def parse_name(name: str, folder: str | Path | None = None) -> ReleaseName:
    """The parts of a name.

    Raises:
        InputError: says which part is wrong and what would be allowed.
    """
    return ReleaseName.parse(name, open_folder(folder).registry)


def format_name(
    task: str, architecture: str, dataset: str, day: date, build: int = 1, folder: str | Path | None = None
) -> str:
    """The name of a release with these parts.

    Raises:
        InputError: a part is not allowed, or the name would be read as other parts.
    """
    name = ReleaseName(task=task, architecture=architecture, dataset=dataset, date=day, build=build)
    read = parse_name(str(name), folder)
    if read != name:
        raise InputError(f"name {name}: would be read as {read.task}, {read.architecture}, {read.dataset}")
    return str(name)
