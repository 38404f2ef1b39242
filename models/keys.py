"""What nobody would read in a release's documents: unknown keys, double ones, words and numbers that are none.

1. A device leaves keys alone that it does not know, since a newer desk may have written them. The desk knows every key
   there is: here an unknown one is a typing mistake, and what it was to set would not be set.
2. Of a key that stands twice, the readers of YAML and JSON take the last without a word. Which one was meant, nobody
   knows.
3. JSON, in which devices tell each other of a config, has no infinity: a gate that is to hold always is left away.
4. Each key is named by its way from the top, with the key that was probably meant. What is for other programs belongs
   under `postprocessing:`, which may hold anything.
5. Metadata may carry what others add to it. Only what looks like a slip is told: a key that is not known, and very
   like one that is and is not there.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from math import isfinite
from typing import Any

import msgspec

from agent.core.documents import doubled_keys
from agent.core.release import Config, Metadata

_SLIP = 0.8  # how like it is, from 0 to 1: `license` and `licence` 0.86, `dataset_url` and `dataset` 0.78
_ELSEWHERE = "optimization.threads"  # its keys are the backends' names beside this one: models/check.py


def unread_keys(content: bytes, tree: object) -> Iterator[str]:
    """A sentence for each key of a config that nobody would read; `tree` is the content, parsed."""
    config = msgspec.inspect.type_info(Config)
    known = [*_known(config), _ELSEWHERE]
    for at, key, here in _unknown(config, tree):
        yield f"config: {at}{key} is not known; {_cure(at, key, here, known)}"
    for way, word, words in _strange(config, tree):
        yield f"config: {way} {word!r}: one of {', '.join(map(str, words))}"
    for way, number in _endless(tree):
        yield f"config: {way} is {number}, which is no number to compare with: give one, or leave the key away"
    for way, line in doubled_keys(content):
        yield f"config: {way} stands twice, again in line {line}; the last would count: leave one"


def mistyped_keys(content: bytes, tree: Mapping[str, object]) -> Iterator[str]:
    """A sentence for each key of metadata that is probably a slip or stands twice; `tree` is the content, parsed."""
    missing = [field.name for field in msgspec.structs.fields(Metadata) if field.name not in tree]
    for key in tree:
        if key not in Metadata.__struct_fields__ and (near := get_close_matches(key.lower(), missing, 1, _SLIP)):
            yield f"metadata: {key} is not known; did you mean {near[0]}? Another thing needs a name less like it"
    for key in _doubled(content):
        yield f"metadata: {key} stands twice in one object; the last would count: leave one"


def _doubled(content: bytes) -> list[str]:
    """The keys that stand twice in an object of JSON; `doubled_keys` reads YAML, which takes no tabs."""
    doubled: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        doubled.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)

    json.loads(content, object_pairs_hook=note)
    return doubled


def _known(kind: msgspec.inspect.Type, at: str = "") -> Iterator[str]:
    """The ways to all keys of a type."""
    for form in _forms(kind):
        if isinstance(form, msgspec.inspect.StructType):
            for field in form.fields:
                yield at + field.encode_name
                yield from _known(field.type, f"{at}{field.encode_name}.")


def _unknown(kind: msgspec.inspect.Type, tree: Any, at: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """(the way there, key, the keys that are known there) of each key of a tree that its type does not have."""
    for form in _forms(kind) if isinstance(tree, dict) else ():
        types: dict[Any, msgspec.inspect.Type]
        if isinstance(form, msgspec.inspect.DictType):
            types = dict.fromkeys(tree, form.value_type)
        elif isinstance(form, msgspec.inspect.StructType):
            types = {field.encode_name: field.type for field in form.fields}
        else:
            continue
        for key, value in tree.items():
            if key in types:
                yield from _unknown(types[key], value, f"{at}{key}.")
            else:
                yield at, str(key), list(types)


def _strange(kind: msgspec.inspect.Type, tree: Any, way: str = "") -> Iterator[tuple[str, object, tuple[object, ...]]]:
    """(way, word, the words that are known there) of each word of a tree that is none of its type's."""
    for form in _forms(kind):
        if isinstance(form, msgspec.inspect.LiteralType) and isinstance(tree, str) and tree not in form.values:
            yield way, tree, form.values
        if isinstance(form, msgspec.inspect.VarTupleType) and isinstance(tree, list):
            for one in tree:
                yield from _strange(form.item_type, one, way)
        if isinstance(form, msgspec.inspect.StructType) and isinstance(tree, dict):
            for field in form.fields:
                if field.encode_name in tree:
                    yield from _strange(field.type, tree[field.encode_name], f"{way}.{field.encode_name}".strip("."))


def _endless(tree: object, way: str = "") -> Iterator[tuple[str, float]]:
    """(way, number) of each infinity and NaN of a tree."""
    if isinstance(tree, float) and not isfinite(tree):
        yield way, tree
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in below:
        yield from _endless(value, f"{way}.{key}".strip("."))


def _forms(kind: msgspec.inspect.Type) -> tuple[msgspec.inspect.Type, ...]:
    return kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)


def _cure(at: str, key: str, here: list[str], known: list[str]) -> str:
    """What to do about an unknown key: the nearest one that is known there, or else anywhere."""
    if near := get_close_matches(key, here, n=1):
        return f"did you mean {at}{near[0]}?"
    places = {way.rpartition(".")[2]: way for way in reversed(known)}
    if near := get_close_matches(key, places, n=1):
        return f"did you mean {places[near[0]]}?"
    return f"there are {', '.join(here)}; what is for other programs belongs under postprocessing"
