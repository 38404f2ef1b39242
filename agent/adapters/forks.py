"""The other side of fork_server.py: forks this process for each socket that comes, until the server is not needed.

1. The process between server and fork ends at once, and the reaper above, which is the runner, adopts the fork.
2. Nothing of the server is left in a fork but its memory, which the kernel copies where one of the two writes.
3. No thread may be there, and no event loop: this process waits in `recvmsg`.
"""

import errno
import gc
import os
import socket
import sys
import time

from agent.adapters.packets import close_all

NUMBER_BYTES = 16
ADOPTION_S = 0.0001  # between two looks whether we are adopted


def forked(orders: socket.socket) -> socket.socket:
    """Answers the orders with process ids; returns in each fork, with the socket that was sent for it."""
    gc.freeze()  # a collection would write to every page
    said = os.pipe()
    while True:
        _, descriptors, _, _ = socket.recv_fds(orders, NUMBER_BYTES, 1)
        if not descriptors:
            sys.exit()
        if (pid := _fork(*said)) == 0:
            break
        close_all(descriptors)
        orders.send(b"%d" % pid)
    close_all(said)
    orders.close()
    return socket.socket(fileno=descriptors[0])


def _fork(reads: int, writes: int) -> int:
    """As `os.fork`, but the child is the reaper's; below 0 what forking failed with."""
    between = _fork_or_errno()
    if between < 0:
        return between
    if between:
        os.waitpid(between, 0)
        return int(os.read(reads, NUMBER_BYTES))
    between, child = os.getpid(), _fork_or_errno()
    if child:
        os.write(writes, b"%d" % child)
        os._exit(0)
    while os.getppid() == between:
        time.sleep(ADOPTION_S)
    return 0


def _fork_or_errno() -> int:
    try:
        return os.fork()
    except OSError as error:
        return -(error.errno or errno.EAGAIN)
