"""A desk that hears everything the fleet says, with a client of its own."""

import json
import threading

import paho.mqtt.client as paho

from tests.fakes.waiting import until


class Listener:
    """Collects (topic, payload, retained) of everything under `edge/v1/`."""

    def __init__(self, broker):
        self.heard = []
        self._news = threading.Condition()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe("edge/v1/#", qos=1)
        self.client.on_message = self._take
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()
        assert subscribed.wait(10)

    def _take(self, _client, _userdata, message):
        try:
            said = json.loads(message.payload)
        except ValueError:
            said = message.payload
        self.heard.append((message.topic, said, message.retain))

    def said(self, topic, holds=lambda _: True):
        """What was said under a topic and holds, oldest first."""
        return [said for one, said, _ in list(self.heard) if one == topic and holds(said)]

    def until(self, topic, holds=lambda _: True, seconds=60.0):
        """The first thing said under a topic that holds."""
        return until(
            lambda: self.said(topic, holds), seconds, f"{topic}; heard {sorted({t for t, _, _ in self.heard})}"
        )[0]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()
