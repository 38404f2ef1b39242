"""docs/mqtt.md and docs/asyncapi.yaml say what the code does. `python -m tests.daemon.test_mqtt_documents` writes the schemas."""

import asyncio
import json
import re
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import msgspec
import pytest
import yaml

from agent.adapters import outbox
from agent.adapters.broker import STATE_EXPIRY_S, BrokerSettings, Link, device_topic, group_topic
from agent.adapters.host import Readings
from agent.core.candidate import Latency
from agent.core.errors import TransferError
from agent.core.intent import Command, Reply, Rollout, Verb, Wave
from agent.core.messages import Counters
from agent.core.slot import SlotRecord
from agent.daemon import news, report
from agent.daemon.commands import TOPIC
from agent.daemon.news import Event
from agent.daemon.reconcile import EVENTS
from agent.daemon.runner_link import RunnerLink
from agent.daemon.settings import RunnerSettings
from agent.daemon.state import BrokerState, Reported, RunnerState, SlotState, State, StoreState, reported
from agent.trust.deployment import Pair
from fleet.broker import Broker
from fleet.deploy import LIFETIME

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/mqtt.md"
MACHINES = ROOT / "docs/asyncapi.yaml"
TYPES = (Reported, Readings, StoreState, Latency, Event, Reply, Pair, Command, Rollout, Wave)
NOW = datetime(2026, 11, 23, 5, 45, tzinfo=UTC)
EXPIRIES = {
    "sayState": STATE_EXPIRY_S,
    "report": None,
    "tellHealth": report.HEALTH_EXPIRY_S,
    "tellFps": report.FIGURES_EXPIRY_S,
    "tellEvent": outbox.WEEK_S,
    "reply": news.REPLY_EXPIRY_S,
    "hearCommand": LIFETIME.total_seconds(),
    "hearGroupCommand": LIFETIME.total_seconds(),
    "hearDeployment": None,
    "hearPin": None,
    "hearState": STATE_EXPIRY_S,
}


def components():
    """The schemas of the code's own types."""
    _, found = msgspec.json.schema_components(TYPES, ref_template="#/components/schemas/{name}")
    return json.loads(json.dumps(found))


def document():
    return yaml.safe_load(MACHINES.read_bytes())


def addresses(action):
    found = document()
    names = [
        one["channel"]["$ref"].rpartition("/")[2] for one in found["operations"].values() if one["action"] == action
    ]
    return {found["channels"][name]["address"] for name in names}


def check(message, payload):
    """The payload of a message, as it goes out, has the documented form."""
    found = document()
    schema = found["components"]["messages"][message]["payload"] | {"components": found["components"]}
    jsonschema.Draft202012Validator(schema).validate(json.loads(msgspec.json.encode(payload)))


def state():
    slot = SlotState(
        slot="defect_detection", step="settled", since=NOW, record=SlotRecord(slot="defect_detection"), serving="r",
        counters=Counters(requests=30, busy_s=0.1, latency_ms=Latency(mean=1, std=1, p50=1, p95=1, p99=1)),
    )  # fmt: skip
    return State(
        device="cam-1", group="line-1", agent="0.1.0", pid=1, at=NOW, boot="b", slots={slot.slot: slot},
        broker=BrokerState(configured=True), runner=RunnerState(connected=True),
    )  # fmt: skip


def reporter(tmp_path, **neighbours):
    settings = SimpleNamespace(device="cam-1", fps_s=10.0, state=tmp_path)
    names = (one.name for one in fields(report.Reporter) if one.name not in {"settings", "boot"})
    return report.Reporter(settings, "b", **(dict.fromkeys(names) | neighbours))


def test_schemas_are_those_of_the_code():
    """A field that is added, renamed or retyped shows in the document; run this file as a program to write it."""
    assert document()["components"]["schemas"] == components()


def test_the_device_hears_what_is_written():
    """Every subscription of the link is documented, and no other."""
    link = Link(BrokerSettings(host="h"), "{device}", ["{group}"], outbox=None, birth=bytes, will=b"", receive=None)
    heard = {topic.replace("+", "{id}") for topic, _ in link._subscriptions()}
    assert heard == addresses("receive")
    assert TOPIC.match(device_topic("cam-1", "cmd", "0123-abcd", "req"))
    assert TOPIC.match(group_topic("line-1", "cmd", "0123-abcd", "req"))


def test_messages_live_as_long_as_is_written():
    """The code's constants are the document's."""
    said = {
        name: one["bindings"]["mqtt"].get("messageExpiryInterval") for name, one in document()["operations"].items()
    }
    assert said == EXPIRIES


def test_people_and_machines_read_the_same_table():
    """Topic, QoS, retain and expiry of each row of the guide are those of the AsyncAPI document."""
    found, table = document(), {}
    for line in GUIDE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `edge/v1/"):
            table[cells[0].strip("`")] = (int(cells[2]), cells[3] == "yes", seconds(cells[4]))
    machines = {}
    for one in found["operations"].values():
        mqtt = one["bindings"]["mqtt"]
        address = found["channels"][one["channel"]["$ref"].rpartition("/")[2]]["address"]
        machines[address] = (mqtt["qos"], mqtt["retain"], mqtt.get("messageExpiryInterval"))
    assert table == machines


def seconds(text):
    number, _, unit = text.partition(" ")
    return None if text == "never" else int(number) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]


def test_what_is_reported_has_the_written_form():
    """`reported`, as the code makes it."""
    check("reported", reported(state()))


def test_figures_have_the_written_form(tmp_path):
    """`tele/fps/{slot}`, as the code makes it."""
    said = []
    sink = SimpleNamespace(figures=lambda topic, payload, expiry: said.append((topic, payload)))
    dark = RunnerLink(RunnerSettings(start="never"))
    asyncio.run(reporter(tmp_path, news=sink, runner=dark)._figures(state()))
    ((topic, payload),) = said
    assert topic == "tele/fps/defect_detection"
    check("fps", json.loads(payload))


def test_health_has_the_written_form(tmp_path):
    """`tele/health`, as the code makes it."""
    said = []

    async def publish(topic, payload, qos, *, retain, expiry_s):
        said.append((topic, payload, qos, retain))

    link = SimpleNamespace(publish=publish)
    asyncio.run(reporter(tmp_path, link=link)._health(state()))
    ((topic, payload, qos, retain),) = said
    assert (topic, qos, retain) == ("edge/v1/cam-1/tele/health", 0, False)
    check("health", json.loads(payload))


def test_every_kind_of_event_is_explained():
    """The guide's table has the kinds that the code tells, and no others."""
    told = set(EVENTS.values())
    for path in (ROOT / "agent/daemon").glob("*.py"):
        told |= set(re.findall(r"""tell(?:_of)?\(\s*(?:self\.\w+\.tell, )?"(\w+)\"""", path.read_text()))
        told |= set(re.findall(r"""\.tell, "(\w+)\"""", path.read_text()))
    part = GUIDE.read_text().split("| kind | what happened |")[1].split("###")[0]
    explained = {
        kind for row in part.splitlines() if row.startswith("| `") for kind in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert explained == told


def test_every_verb_is_explained():
    """The guide's table of verbs is the code's list."""
    part = GUIDE.read_text().split("| verb | what it does |")[1].split("###")[0]
    assert re.findall(r"^\| `(\w+)`", part, re.MULTILINE) == [verb.value for verb in Verb]


MESSAGES = [
    ("`state`", ["birth", "will"]),
    ("`reported`", ["reported"]),
    ("`tele/health`", ["health"]),
    ("`tele/fps/{slot}`", ["fps"]),
    ("`evt/{kind}`", ["event"]),
    ("`cmd/{id}/req` and `cmd/{id}/res`", ["reply"]),
]


@pytest.mark.parametrize(("heading", "messages"), MESSAGES, ids=lambda one: one if isinstance(one, str) else None)
def test_the_examples_are_true(heading, messages):
    """Each example of the guide has the form of its message."""
    part = GUIDE.read_text().split(f"### {heading}\n")[1].split("\n### ")[0]
    examples = re.findall(r"```json\n(.*?)```", part, re.DOTALL)
    for message, example in zip(messages, examples, strict=True):
        check(message, json.loads(example))


def test_the_access_rules_keep_devices_apart(new_broker, tmp_path):
    """With the guide's rules a device speaks for itself alone, and hears what is meant for it."""
    rules = tmp_path / "acl"
    rules.write_text(re.search(r"```\n(pattern write.*?)```", GUIDE.read_text(), re.DOTALL)[1])
    rules.chmod(0o600)
    place = new_broker(more=f"acl_file {rules}")

    def user(name):
        return Broker(BrokerSettings(host=place.host, port=place.port, tls=False, username=name))

    with user("cam-1") as one, user("cam-2") as two, user("desk") as desk:
        desk.subscribe("edge/v1/#")
        one.subscribe("edge/v1/cam-1/cmd/+/req", "edge/v1/groups/line-1/deployment", "edge/v1/cam-2/cmd/+/req")
        for steps in (["state"], ["reported"], ["tele", "health"], ["evt", "started"], ["cmd", "0123-abcd", "res"]):
            one.publish(device_topic("cam-1", *steps), b"1")
            with pytest.raises(TransferError, match="refuses to publish"):
                two.publish(device_topic("cam-1", *steps), b"2")
        for topic in (group_topic("line-1", "deployment"), device_topic("cam-1", "cmd", "0123-abcd", "req")):
            with pytest.raises(TransferError, match="refuses to publish"):
                two.publish(topic, b"2")
            desk.publish(topic, b"3")
        desk.publish(device_topic("cam-2", "cmd", "0123-abcd", "req"), b"4")
        assert {payload for _, payload in one.messages(1.0)} == {b"3"}
        assert {payload for _, payload in desk.messages(1.0)} == {b"1", b"3", b"4"}


def write():
    """Puts the schemas of today's types into the document."""
    head, mark, _ = MACHINES.read_text().partition("  schemas:\n")
    tree = yaml.dump(components(), Dumper=Plain, sort_keys=False, width=110)
    MACHINES.write_text(head + mark + "".join(f"    {line}\n" for line in tree.splitlines()))


class Plain(yaml.SafeDumper):
    """Without anchors."""

    def ignore_aliases(self, data):
        return True


if __name__ == "__main__":
    write()
