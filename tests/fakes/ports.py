import socket


def free_ports(count):
    """Port numbers that nobody on the loopback holds now, all different."""
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
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
