"""`python -m models`: check a release, benchmark it, compare two versions, write the schemas."""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import numpy as np

from agent.backends.golden import load_feeds
from agent.backends.session import Session
from agent.core.errors import EdgeError
from models.benchmark import Feeds, benchmark_model, save_benchmark
from models.comparison import compare_model_versions
from models.folder import open_folder
from models.loading import load_model, tensors
from models.schema import write_schemas


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 with the reason on the error stream."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> ArgumentParser:
    parser = ArgumentParser("python -m models", description="Check, benchmark and compare models.")
    parser.add_argument("--folder", help="the models folder; else EDGE_MODELS, else the package's own")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="everything that publishing checks")
    check.add_argument("name")
    check.set_defaults(run=_check)
    benchmark = commands.add_parser("benchmark", help="time a model; keep the figures in benchmarks/")
    benchmark.add_argument("name")
    benchmark.add_argument("--device", default="auto")
    benchmark.add_argument("--runs", type=int, default=100)
    benchmark.set_defaults(run=_benchmark)
    compare = commands.add_parser("compare", help="the second version against the first")
    compare.add_argument("model", help="a name without its date")
    compare.add_argument("version1")
    compare.add_argument("version2")
    compare.set_defaults(run=_compare)
    commands.add_parser("schemas", help="write schemas/*.schema.json").set_defaults(run=_schemas)
    return parser


def _check(options: Namespace) -> int:
    from models.check import check_release  # noqa: PLC0415 - needs onnx, which the other commands do not

    checked = check_release(options.folder, options.name)
    print("\n".join([f"{checked.name} may be published", *checked.notes]))
    return 0


def _benchmark(options: Namespace) -> int:
    session = load_model(options.name, options.device, options.folder)
    figures = benchmark_model(session, _images(options, session), options.runs)
    path = save_benchmark(options.name, figures, session, options.folder)
    print(json.dumps({"device": session.get_providers()[0], **figures}, indent=2))
    print(f"kept as {path}", file=sys.stderr)
    return 0


def _images(options: Namespace, session: Session) -> Feeds:
    """The first golden sample, or noise where there is none."""
    path = open_folder(options.folder).path / "golden" / f"{options.name}_golden.npz"
    inputs = tensors(session.get_inputs())
    if path.is_file():
        return load_feeds(path, inputs)[0]
    noise = np.random.default_rng(0)
    shapes = {port.name: tuple(max(1, size) for size in port.shape) for port in inputs}
    return {port.name: noise.random(shapes[port.name]).astype(port.dtype) for port in inputs}


def _compare(options: Namespace) -> int:
    found = compare_model_versions(options.model, options.version1, options.version2, options.folder)
    if found is None:
        print(f"{options.model}: one of {options.version1}, {options.version2} has no metadata", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0


def _schemas(_: Namespace) -> int:
    print("\n".join(str(path) for path in write_schemas()))
    return 0
