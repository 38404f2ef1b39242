"""The walls around a seat: what the libraries that parse somebody's model in it cannot do.

1. No new privileges; no socket but a unix one; no file written but devices, /proc and the cache folder; no signal to a
   process outside. Reading is left: libraries look for their parts in many places.
2. Each wall is the kernel's own and takes no privilege. A kernel that lacks one says so, and the seat goes on: the unit
   stands around the whole runner anyway, and `edge-agent doctor` tells.
3. They are drawn while the process has one thread; the threads that come later inherit them.

Numbers and structures: linux/landlock.h, linux/seccomp.h, linux/filter.h.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Iterable

WRITABLE = ("/dev", "/proc")  # devices and shared memory; CUDA does not start where it cannot name its threads

_LIBC = ctypes.CDLL(None, use_errno=True)
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every processor
_WRITE_FILE, _REMOVE_OR_MAKE, _TRUNCATE = 1 << 1, 0x1FF0, 1 << 14  # truncate from the third version on
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2  # from the sixth version on
_TRUNCATES, _SCOPES = 3, 6
_SOCKET = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}  # AUDIT_ARCH_*, the number of socket(2)
_IO_URING_SETUP, _FOREIGN = 425, 0x40000000  # makes sockets past the filter; x32's numbers begin there
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_DENY, _ALLOW = 0x00050000 | 97, 0x7FFF0000  # EAFNOSUPPORT: as where there is no such network


def draw() -> dict[str, str]:
    """Draws every wall; for each, why it does not hold, or nothing."""
    walls = {"no new privileges": lambda: _prctl(_SET_NO_NEW_PRIVS, 1, 0), "no network": _no_network}
    walls |= {"read-only files": lambda: _read_only([*WRITABLE, os.environ.get("CACHE_DIRECTORY", "")])}
    told = {}
    for name, wall in walls.items():
        try:
            told[name] = wall() or ""
        except OSError as error:
            told[name] = f"{error.strerror}: this kernel or service manager does not allow it"
    return told


def _no_network() -> str:
    if platform.machine() not in _SOCKET:
        return f"the filter knows {', '.join(_SOCKET)}, not {platform.machine()}"
    arch, socket = _SOCKET[platform.machine()]
    program = [  # (code, jump if true, jump if false, value); the last but one denies, the last allows
        (_LOAD, 0, 0, 4), (_EQUAL, 0, 6, arch), (_LOAD, 0, 0, 0), (_AT_LEAST, 4, 0, _FOREIGN),
        (_EQUAL, 3, 0, _IO_URING_SETUP), (_EQUAL, 0, 3, socket), (_LOAD, 0, 0, 16), (_EQUAL, 1, 0, 1),
        (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    _prctl(_SET_SECCOMP, _FILTER, struct.pack("HxxxxxxP", len(program), ctypes.addressof(filters)))
    return ""


def _read_only(but: Iterable[str]) -> str:
    version = _call(_CREATE_RULESET, None, 0, 1)
    writes = _WRITE_FILE | _REMOVE_OR_MAKE | (_TRUNCATE if version >= _TRUNCATES else 0)
    scoped = _ABSTRACT_SOCKETS | _SIGNALS if version >= _SCOPES else 0
    rules = _call(_CREATE_RULESET, struct.pack("QQQ", writes, 0, scoped), 24, 0)
    for path in filter(os.path.isdir, but):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _call(_ADD_RULE, rules, 1, struct.pack("=Qi", writes, folder), 0)
        os.close(folder)
    _call(_RESTRICT_SELF, rules, 0)
    os.close(rules)
    return "" if scoped else f"signals are not held back: Landlock {version} of this kernel cannot"


def _call(number: int, *arguments: object) -> int:
    result = int(_LIBC.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _prctl(option: int, value: int, more: object) -> None:
    if _LIBC.prctl(option, value, more, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
