"""Where the files of a release lie in a models folder.

1. `weights/{name}.onnx` (or `.onnx.zst`; in another precision `{name}.fp16.onnx`), `metadata/{name}_metadata.json`,
   `configs/{name}_config.yaml`, `golden/{name}_golden.npz`, `benchmarks/{name}.json`.
2. A document may also be the task's (`face_detection_metadata.json`), if it is of the release that is asked for:
   by its `name`, else by its `version` where that is a date, else because the folder holds no other release of
   the task. One file never answers for two releases.
3. What cannot be a name is not there. No text from a caller becomes a path before its form was checked.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from agent.core.documents import from_json, from_yaml
from agent.core.errors import InputError
from agent.core.names import check_form
from models.registry import Registry, ReleaseName

_DATE = re.compile(r"[0-9]{8}(-[0-9]+)?")
_WEIGHTS = (".onnx", ".onnx.zst")


class ModelNotFoundError(InputError, FileNotFoundError):
    """There are no weights of that name; also a FileNotFoundError, for callers that expect one."""


@dataclass(frozen=True)
class Folder:
    """A models folder."""

    path: Path

    @cached_property
    def registry(self) -> Registry:
        """The tasks and architectures known here: the product's, and those in `registry.yaml`.

        Raises:
            InputError: the file is not a registry.
        """
        path = self.path / "registry.yaml"
        return Registry().extend_from_yaml(path.read_bytes(), str(path)) if path.is_file() else Registry()

    def releases(self) -> tuple[str, ...]:
        """The names whose weights are here, in alphabetical order."""
        files = (path.name for path in self.path.glob("weights/*") if path.name.endswith(_WEIGHTS))
        stems = {name.removesuffix(".zst").removesuffix(".onnx") for name in files}
        return tuple(sorted(stem for stem in stems if "." not in stem))

    def variants(self, name: str) -> tuple[str, ...]:
        """The precisions in which the weights of a release lie here once more."""
        files = (path.name.split(".") for path in self.path.glob(f"weights/{name}.*.onnx*"))
        return tuple(sorted({parts[1] for parts in files if parts[2:] in (["onnx"], ["onnx", "zst"])}))

    def weights(self, name: str, variant: str = "") -> Path:
        """The file of the weights, plain where there are both; of a precision of its own where one is named.

        Raises:
            ModelNotFoundError: there is none; says what there is.
        """
        stem = f"{name}.{variant}" if variant else name
        if _is_name(name):
            for ending in _WEIGHTS:
                path = self.path / "weights" / f"{stem}{ending}"
                if path.is_file():
                    return path
        there = ", ".join(self.releases()) or "none"
        raise ModelNotFoundError(f"{self.path / 'weights' / stem}.onnx: no such model; there are: {there}")

    def metadata(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        """The metadata of a release as it stands in its file, or None where there is none.

        Raises:
            InputError: the document is bad, or could be of several releases.
        """
        return self._document(name, "metadata", "_metadata.json")

    def config(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        """The config of a release; as `metadata`."""
        return self._document(name, "configs", "_config.yaml")

    def _document(self, name: str, folder: str, ending: str) -> tuple[Path, dict[str, Any]] | None:
        if not _is_name(name):
            return None
        own = self.path / folder / f"{name}{ending}"
        if own.is_file():
            return own, read_tree(own)
        shared = self.path / folder / f"{self._task(name)}{ending}"
        if not shared.is_file():
            return None
        tree = read_tree(shared)
        return (shared, tree) if self._is_of(name, shared, tree) else None

    def _is_of(self, name: str, path: Path, tree: Mapping[str, Any]) -> bool:
        """Whether a task's document is of this release."""
        if "name" in tree:
            return bool(tree["name"] == name)
        if _DATE.fullmatch(str(tree.get("version", ""))):
            return str(tree["version"]) == check_form(name)[1]
        task = self._task(name)
        others = [other for other in self.releases() if self._task(other) == task and other != name]
        is_here = name in self.releases()
        if others and is_here:
            raise InputError(
                f"{path}: it could be of {name} or of {', '.join(others)}: add `name` to it, "
                f"or name the file after its release"
            )
        return is_here

    def _task(self, name: str) -> str:
        try:
            return ReleaseName.parse(name, self.registry).task
        except InputError:
            return ""  # a name of another registry has no task's document here


def open_folder(folder: str | Path | None = None) -> Folder:
    """The folder given, else the one that EDGE_MODELS names, else the package's own."""
    return Folder(Path(folder or os.environ.get("EDGE_MODELS") or Path(__file__).parent))


def read_tree(path: Path) -> dict[str, Any]:
    """A JSON or YAML document of keys and values.

    Raises:
        InputError: it is not one; names the file and the place.
    """
    read = from_json if path.suffix == ".json" else from_yaml
    return read(dict[str, Any], path.read_bytes(), str(path))


def _is_name(name: str) -> bool:
    try:
        check_form(name)
    except InputError:
        return False
    return True
