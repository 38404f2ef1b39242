"""What a process has open.

All tests of a worker share its process: a test that counts names what it means, so that nothing counts that another
one has left and that goes, or comes, a moment later.
"""

from contextlib import suppress
from pathlib import Path


def held(pid, what):
    """How many descriptors of a process lead to something with this in its name: "" is in all of them."""
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it is closed by now
            found += what in str(path.readlink())
    return found
