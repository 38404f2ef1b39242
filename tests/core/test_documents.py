"""Documents that a careless or hostile hand wrote are refused in a sentence."""

from typing import Any

import jsonschema
import msgspec
import pytest

from agent.core.documents import Document, from_json, from_tree, from_yaml
from agent.core.errors import InputError
from agent.core.intent import Command, SlotName
from agent.core.release import Config, Ref

DEEP = 5000


class Form(Document):
    """What these tests read."""

    value: Any


@pytest.mark.parametrize(
    "content",
    [
        "value: 2001-99-99",
        "value: 2001-01-01T99:99:99Z",
        "value: " + "9" * DEEP,
        "value: " + "[" * DEEP + "]" * DEEP,
        "value: [unclosed",
        b"value: \xff\xfe",
        "valu: 1",
        "",
    ],
    ids=["date", "time", "number", "deep", "unclosed", "bytes", "key", "empty"],
)
def test_yaml_that_nothing_can_read_is_a_mistake_of_its_writer(content):
    """Whatever the parser raises, the reader gets the place and what is wrong."""
    with pytest.raises(InputError, match=r"^here: "):
        from_yaml(Form, content, "here")


def test_a_key_that_stands_twice_is_a_mistake_only_where_nobody_has_taken_it_before():
    """A release's config was published with such keys, and is read as before: the last one counts."""
    config = from_yaml(Config, "input_size: [8, 8]\nconfidence_threshold: 1\ngates: {min_fps: 1, min_fps: 2}\n", "here")
    assert config.gates.min_fps == 2
    with pytest.raises(InputError, match=r"^here: value.b stands twice, again in line 3: leave one"):
        from_yaml(Form, "value:\n- {a: 1, b: 2}\n- {b: 1, b: 2}\n", "here")


@pytest.mark.parametrize(
    "content", ['{"value": ' + "[" * DEEP + "]" * DEEP + "}", b"\xff", "{}", '{"value": 1, "b": 2}']
)
def test_json_that_nothing_can_read_is_a_mistake_of_its_writer(content):
    """The same for JSON."""
    with pytest.raises(InputError, match=r"^here: "):
        from_json(Form, content, "here")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (SlotName, "face_detection"),
        (Ref.__annotations__["name"], "face_detection_retinaface_widerface_20250628"),
        (Command.__annotations__["id"], "0123456789abcdef"),
        (Command.__annotations__["scope"], "group:plant"),
    ],
)
def test_a_name_ends_where_it_ends(kind, name):
    """A newline behind it is refused at the door, and by whoever checks with the JSON Schema."""
    assert from_tree(kind, name, "here") == name
    schema = msgspec.json.schema(kind)
    jsonschema.validate(name, schema)
    for other in (f"{name}\n", f"{name}\r", f"{name}\n\n"):
        with pytest.raises(InputError, match="matching regex"):
            from_tree(kind, other, "here")
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(other, schema)
