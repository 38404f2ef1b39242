"""Documents are parsed once, at the door, into values that cannot be wrong.

A `Document` is a frozen value read from JSON or YAML. An unknown key is an error (it is usually a typing
mistake), and so is one that stands twice in YAML, unless the type says `OpenDocument`: such documents carry keys for
other readers, and were taken with double ones.

A document may be anybody's: dates that do not exist, numbers of five thousand digits and brackets five thousand deep
are mistakes like any other.
"""

from collections.abc import Iterator
from typing import Any, TypeVar, dataclass_transform

import msgspec

from agent.core.errors import InputError

T = TypeVar("T")
END = r"$(?!\n)"  # of a pattern: Python's `$` alone holds before a last newline, too; JSON Schema knows no `\Z`


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=False):
    """A frozen value with a strict form."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class OpenDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A frozen value that leaves keys it does not know to other readers."""


def from_json(kind: type[T], content: bytes | str, where: str) -> T:
    """The value that `content` holds.

    Raises:
        InputError: it is not JSON, or a field is missing, unknown or of another type; names the field.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{where}: this is not valid JSON: {error}") from error


def from_yaml(kind: type[T], content: bytes | str, where: str) -> T:
    """The value that `content` holds; as `from_json`."""
    import yaml  # noqa: PLC0415 - a seat and a client, which read none, start the sooner

    try:
        tree = yaml.safe_load(content)
        is_strict = isinstance(kind, type) and issubclass(kind, Document)
        for way, line in doubled_keys(content) if is_strict else ():
            raise InputError(f"{where}: {way} stands twice, again in line {line}: leave one")
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a byte that is no UTF-8 is a ValueError
        raise InputError(f"{where}: this is not valid YAML: {error}") from error
    return from_tree(kind, tree, where)


def doubled_keys(content: bytes | str) -> Iterator[tuple[str, int]]:
    """The way from the top, and the line, of each key of a YAML document that stands in its mapping before."""
    import yaml  # noqa: PLC0415 - as in `from_yaml`

    yield from _doubled(yaml.compose(content, yaml.SafeLoader), "", set())


def _doubled(node: Any, at: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    if node is None or id(node) in seen:  # an alias leads to what was seen already
        return
    seen.add(id(node))
    if node.id == "sequence":
        for one in node.value:
            yield from _doubled(one, at, seen)
    if node.id == "mapping":
        ways = set[str]()
        for key, value in node.value:
            way = f"{at}{key.value}"
            if way in ways:
                yield way, key.start_mark.line + 1
            ways.add(way)
            yield from _doubled(value, f"{way}.", seen)


def from_tree(kind: type[T], tree: Any, where: str) -> T:
    """The value that parsed JSON or YAML holds; as `from_json`."""
    try:
        return msgspec.convert(tree, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}") from error


def to_json(value: Any) -> bytes:
    """The value as compact JSON with keys in the order of the type."""
    return msgspec.json.encode(value)


def to_tree(value: Any) -> Any:
    """The value as plain dicts, lists and scalars."""
    return msgspec.to_builtins(value)
