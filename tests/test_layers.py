"""The house keeps its rooms apart: who may import whom, and what the pure rooms may not touch."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "agent.core": set(),
    "agent.trust": {"agent.core"},
    "agent.adapters": {"agent.core"},
    "agent.backends": {"agent.core"},
    "agent.runner": {"agent.core", "agent.adapters"},
    "agent.daemon": {"agent.core", "agent.trust", "agent.adapters"},
    "client": {"agent.core", "agent.adapters"},
    "models": {"agent.core", "agent.backends"},
    "fleet": {"agent.core", "agent.trust", "agent.adapters", "models"},
    "provisioning": {"agent.core", "agent.trust", "agent.adapters", "fleet"},
}
ALSO = {("agent/runner/seat.py", "agent.backends")}  # the seat alone runs models
PURE = {"agent.core", "agent.trust"}
IMPURE_MODULES = {
    "asyncio", "os", "random", "secrets", "socket", "subprocess", "tempfile", "threading", "time", "logging", "psutil", "pathlib",
}  # fmt: skip
IMPURE_CALLS = {(None, "open"), (None, "print"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}
INFERENCE = {"onnxruntime", "openvino", "tensorrt"}
LINES = 10_725  # of code. It is to come down to 6,000: see docs/decisions/0030-size.md


def room_of(module: str) -> str | None:
    return next((room for room in MAY_IMPORT if module == room or module.startswith(room + ".")), None)


def trouble(path: Path, source: str) -> Iterator[str]:
    """Every import or call that a file may not make."""
    room = room_of(".".join(path.with_suffix("").parts))
    if room is None:
        return
    for node in ast.walk(ast.parse(source)):
        for module in imported(node):
            other = room_of(module)
            if other not in {None, room, *MAY_IMPORT[room]} and (str(path), other) not in ALSO:
                yield f"{path}:{node.lineno}: {room} may not import {other}"
            if room in PURE and module.split(".")[0] in IMPURE_MODULES:
                yield f"{path}:{node.lineno}: {room} is pure and may not import {module}"
            if room not in {"agent.backends", "models"} and module.split(".")[0] in INFERENCE:
                yield f"{path}:{node.lineno}: only backends import {module}"
        if room in PURE and isinstance(node, ast.AsyncFunctionDef):
            yield f"{path}:{node.lineno}: {room} is pure and may not be async"
        if room in PURE and isinstance(node, ast.Call) and called(node) in IMPURE_CALLS:
            yield f"{path}:{node.lineno}: {room} is pure and may not call {called(node)[1]}()"


def imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), names=names):
            return [module, *(f"{module}.{alias.name}" for alias in names)]
    return []


def called(call: ast.Call) -> tuple[str | None, str]:
    match call.func:
        case ast.Name(id=name):
            return (None, name)
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return (owner, name)
    return (None, "")


def sources() -> list[Path]:
    return [
        path.relative_to(ROOT)
        for room in ("agent", "client", "models", "fleet", "provisioning")
        for path in sorted((ROOT / room).rglob("*.py"))
    ]


@pytest.mark.parametrize("path", sources(), ids=str)
def test_a_file_imports_only_what_its_room_may(path):
    """Rooms are kept apart, and core and trust stay pure."""
    assert list(trouble(path, (ROOT / path).read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "from agent.daemon import cli",
        "async def f(): ...",
        "open('x')",
        "datetime.now()",
        "import onnxruntime",
        "from agent import daemon",
    ],
)
def test_a_trespass_is_noticed(source):
    """The check itself fails on code that breaks the rule."""
    assert list(trouble(Path("agent/core/example.py"), source))


def test_the_device_stays_small():
    """The device's whole code stays under its limit; past it, look for the idea that makes it small again."""
    lines = sum(code_lines((ROOT / path).read_text()) for path in sources() if path.parts[0] == "agent")
    assert lines < LINES


def code_lines(source: str) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    told = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node)
        for number in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [one for one in tokenize.generate_tokens(io.StringIO(source).readline) if one.type not in silent]
    return len({number for one in tokens for number in range(one.start[0], one.end[0] + 1)} - told)
