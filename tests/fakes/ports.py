"""Ports for servers that are told theirs. They are let go before the server takes them, and again while it is down.

So they are below those that the system gives to outgoing connections: otherwise any client of any test could have one by then.
"""

import secrets
import socket
from contextlib import suppress

OURS = range(10_000, 32_000)


def free_ports(count):
    """Port numbers that nobody on the loopback holds now, all different."""
    holders = []
    while len(holders) < count:
        with suppress(OSError):  # somebody has it
            holders.append(socket.create_server(("127.0.0.1", secrets.choice(OURS))))
    numbers = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return numbers


def is_open(port):
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
