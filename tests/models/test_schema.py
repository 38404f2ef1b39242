"""The schemas are those of the types, and describe every key."""

import json
import re
from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml

import models
from models.schema import DOCUMENTS, FOLDER, TEXTS, schema
from tests.models.test_check import config, metadata

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_schemas_are_current(document):
    """What stands in the folder is what the types say today: `python -m models schemas`."""
    assert (FOLDER / f"{document}.schema.json").read_bytes() == schema(document)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_key_is_described(document):
    """No key without a description, no description without a key."""
    definitions = json.loads(schema(document))["$defs"]
    assert {title: set(one["properties"]) for title, one in definitions.items()} == {
        title: set(TEXTS[title]) for title in definitions
    }
    assert all("description" in field for one in definitions.values() for field in one["properties"].values())


@pytest.mark.parametrize(
    ("document", "tree"),
    [("metadata", metadata()), ("config", config())]
    + [("metadata", json.loads(path.read_text())) for path in sorted(MODELS.glob("metadata/*.json"))]
    + [("config", yaml.safe_load(path.read_text())) for path in sorted(MODELS.glob("configs/*.yaml"))],
)
def test_good_documents_are_valid(document, tree):
    """The schema takes what the types take."""
    jsonschema.validate(tree, json.loads(schema(document)))
    msgspec.convert(tree, DOCUMENTS[document])


@pytest.mark.parametrize(
    ("document", "tree"),
    [
        ("metadata", metadata(accuracy=90)),
        ("metadata", metadata(compatibility={"opset": 17, "memory": 1})),
        ("metadata", metadata(inputs=[])),
        ("config", config(gates={"min_fsp": 1})),
        ("config", config(precision="float")),
        ("config", {"input_size": [8, 8]}),
    ],
)
def test_bad_documents_are_not(document, tree):
    """The schema refuses what the types refuse."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, json.loads(schema(document)))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(tree, DOCUMENTS[document])


def test_the_guide_names_real_things():
    """Every function and file that the models guide names is there."""
    text = (MODELS / "README.md").read_text(encoding="utf-8")
    functions = set(re.findall(r"`([a-z_]+)\(", text))
    files = set(re.findall(r"`(schemas/[a-z.]+)`", text))
    assert functions
    assert files
    assert [name for name in functions if not hasattr(models, name)] == []
    assert [name for name in files if not (MODELS / name).exists()] == []
