"""Everything that publishing checks about a release before it is sealed.

1. All problems of a stage are told at once; the stages are: name and documents, what they say of each other, the
   network itself.
2. References are computed here, in float32 on ONNX Runtime's CPU, from the very bytes that are published. References
   that the golden file brings along must be the same within the release's own tolerance.
3. Weights in other precisions answer the golden samples within the release's own gates here, too: a device would
   refuse what does not. Where this processor cannot run them, that is told.
4. Weights listed as inputs of the graph, as old exporters do, are taken off the list when the answers stay the
   same: it makes ONNX Runtime 2.3 to 2.6 times faster.

Needs the `onnx` package (extra `fleet`).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from agent.backends import open_session
from agent.backends.agreement import alone
from agent.backends.golden import Sample, compare, is_finite, load_feeds, load_golden
from agent.backends.onnx_file import OnnxHead, parse_head
from agent.backends.session import Session
from agent.backends.signature import check_tensors
from agent.core.candidate import Backend, Candidate
from agent.core.documents import from_json, from_yaml
from agent.core.errors import BackendError, EdgeError, InputError, Kind
from agent.core.release import Config, Metadata, as_list
from models.folder import Folder, open_folder
from models.golden import save_golden
from models.keys import mistyped_keys, unread_keys
from models.registry import ReleaseName
from models.storage import in_memory, opened

REFERENCE = Candidate(backend=Backend.CPU, precision="fp32", threads=1)  # one thread: sums in one order
SAME = 1e-5  # how far answers may move when weights are taken off the inputs; 3e-7 was seen
_NOT_BACKENDS = frozenset({"threads"})  # keys of `optimization:` beside the backends
OPTIONS: Mapping[str, frozenset[str]] = {  # the keys under `optimization:` that mean something to each backend
    Backend.TENSORRT: frozenset({"precision", "workspace_mb", "cpu_nodes", "profiles"}),
    Backend.CUDA: frozenset({"precision", "cpu_nodes", "graph_optimization"}),
    Backend.OPENVINO: frozenset({"precision", "device", "performance_hint"}),
    Backend.CPU: frozenset({"precision", "graph_optimization"}),
}
_PRECISIONS = frozenset({"fp32", "fp16", "bf16", "int8"})
_DEVICE = re.compile(r"CPU|(GPU|NPU)(\.[0-9]+)?")  # OpenVINO's AUTO, HETERO and MULTI choose by themselves: not for us
_IMAGE_RANK = 4
_EXTERNAL = 1  # TensorProto.DataLocation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Checked:
    """A release that may be published: the bytes of its four files."""

    name: str
    metadata: bytes
    config: bytes
    weights: bytes
    golden: bytes
    notes: tuple[str, ...] = ()  # what was changed on the way
    variants: Mapping[str, bytes] = field(default_factory=dict)  # weights in other precisions


class UnfitError(InputError):
    """The release may not be published; `problems` says why."""

    def __init__(self, name: str, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([f"{name} cannot be published:", *(f"- {one}" for one in self.problems)]))


@dataclass(frozen=True, slots=True)
class _Documents:
    name: ReleaseName
    metadata: Metadata
    config: Config
    metadata_bytes: bytes
    config_bytes: bytes


def check_release(folder: str | Path | None, name: str) -> Checked:
    """The release `name` of a models folder, when it may be published.

    Raises:
        UnfitError: it may not; tells every problem that was found.
    """
    place = open_folder(folder)
    documents = _read(place, name)
    with _refusing(name):
        content = _weights(place, name)
        head = parse_head(content, f"weights of {name}")
    problems = [*disagreements(documents.name, documents.metadata, documents.config), *_opsets(head, documents)]
    problems += _variant_names(place, name, documents.config)
    if problems:
        raise UnfitError(name, problems)
    with _refusing(name):
        return _prove(place, documents, content)


def disagreements(name: ReleaseName, metadata: Metadata, config: Config) -> Iterator[str]:
    """What name, metadata and config say of each other that cannot be true."""
    parts = {"name": str(name), "version": name.version, "task": name.task}
    parts |= {"architecture": name.architecture, "dataset": name.dataset}
    for key, wanted in parts.items():
        given = getattr(metadata, key)
        if given != wanted:
            yield f"metadata: {key} is {given!r}; the name says {wanted!r}"
    if metadata.accuracy < config.gates.min_accuracy:
        yield f"accuracy is {metadata.accuracy:g}; the gate min_accuracy asks for {config.gates.min_accuracy:g}"
    outputs = {tensor.name for tensor in metadata.outputs}
    for output in sorted(config.gates.parity.keys() - outputs):
        yield f"config: gates.parity names {output!r}; the outputs are {sorted(outputs)}"
    rule = config.gates.detections
    for output in sorted({rule.boxes, rule.scores} - outputs) if rule is not None else ():
        yield f"config: gates.detections names {output!r}; the outputs are {sorted(outputs)}"
    yield from _unknown_options(config)
    yield from _sizes(metadata, config)


def strip_listed_weights(content: bytes) -> tuple[bytes, int]:
    """The model without the weights that its graph lists as inputs too, and how many there were."""
    model = import_module("onnx").load_from_string(content)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    listed = len(model.graph.input) - len(inputs)
    if not listed:
        return content, 0
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)  # before 4 every weight had to be an input
    stripped: bytes = model.SerializeToString()
    return stripped, listed


def _read(place: Folder, name: str) -> _Documents:
    problems: list[str] = []
    parsed = _noted(problems, lambda: ReleaseName.parse(name, place.registry))
    metadata = _noted(problems, lambda: _metadata(place, name))
    config = _noted(problems, lambda: _config(place, name))
    if parsed is None or metadata is None or config is None:
        raise UnfitError(name, problems)
    return _Documents(parsed, metadata[0], config[0], metadata[1], config[1])


def _metadata(place: Folder, name: str) -> tuple[Metadata, bytes]:
    found = place.metadata(name)
    if found is None:
        raise InputError(f"metadata: there is none: write metadata/{name}_metadata.json")
    content = found[0].read_bytes()
    if slips := [*mistyped_keys(content, found[1])]:
        raise UnfitError(name, slips)
    return from_json(Metadata, content, str(found[0])), content


def _config(place: Folder, name: str) -> tuple[Config, bytes]:
    found = place.config(name)
    if found is None:
        raise InputError(f"config: there is none: write configs/{name}_config.yaml")
    content = found[0].read_bytes()
    if unread := [*unread_keys(content, found[1])]:
        raise UnfitError(name, unread)
    return from_yaml(Config, content, str(found[0])), content


def _weights(place: Folder, name: str, variant: str = "") -> bytes:
    with opened(place.weights(name, variant)) as plain:
        return Path(plain).read_bytes()


def _variant_names(place: Folder, name: str, config: Config) -> Iterator[str]:
    there, told = set(place.variants(name)), set[str](config.variants)
    for one in sorted(told - there):
        yield f"weights: the config's variants name {one}; there is no weights/{name}.{one}.onnx"
    for one in sorted(there - told):
        yield f"config: weights/{name}.{one}.onnx is there, and `variants` does not name {one}"
    if config.precision in told:
        yield f"config: variants name {config.precision}, which is the precision of {name}.onnx"


def _opsets(head: OnnxHead, documents: _Documents) -> Iterator[str]:
    declared = documents.metadata.compatibility.opset
    if head.opset != declared:
        yield f"metadata: compatibility.opset is {declared}; the file is of opset {head.opset}"
    for backend in (Backend.CPU, Backend.CUDA):
        if backend not in documents.config.backends:
            continue
        own = {"fp32", "int8", *head.precisions, *documents.config.variants}
        for other in sorted(set(documents.config.precisions_on(backend)) - own):
            yield (
                f"config: {backend} computes in the types of the file ({', '.join(sorted(head.precisions))}), not in "
                f"{other}: set optimization.{backend}.precision to fp32"
            )


def _unknown_options(config: Config) -> Iterator[str]:
    for key in sorted(config.optimization.keys() - OPTIONS.keys() - _NOT_BACKENDS):
        yield f"config: optimization.{key} is not known; there are {', '.join([*OPTIONS, *_NOT_BACKENDS])}"
    for backend, keys in OPTIONS.items():
        for key in sorted(config.options(backend).keys() - keys):
            yield f"config: optimization.{backend}.{key} is not known; there are {', '.join(sorted(keys))}"
        for other in sorted(set(map(str, config.precisions_on(backend))) - _PRECISIONS):
            yield f"config: optimization.{backend}.precision {other!r}: one of {', '.join(sorted(_PRECISIONS))}"
    for device in map(str, as_list(config.options(Backend.OPENVINO).get("device", "CPU"))):
        if not _DEVICE.fullmatch(device):
            yield f"config: optimization.openvino.device {device!r}: CPU, GPU, NPU, or one of several as in GPU.1"
    for threads in as_list(config.optimization.get("threads", 1)):
        if type(threads) is not int or threads < 1:
            yield f"config: optimization.threads {threads!r}: a number of threads, or a list of them to try"


def _sizes(metadata: Metadata, config: Config) -> Iterator[str]:
    shape = metadata.inputs[0].shape
    if len(shape) != _IMAGE_RANK:
        return
    if shape[0] not in {-1, config.batch_size}:
        yield f"config: batch_size is {config.batch_size}; the input {metadata.inputs[0].name} takes {shape[0]}"
    size = shape[2:] if config.preprocessing.layout == "NCHW" else shape[1:3]
    if any(given not in {-1, wanted} for given, wanted in zip(size, config.input_size, strict=True)):
        yield f"config: input_size is {list(config.input_size)}; the input takes {list(size)} (height, width)"


def _prove(place: Folder, documents: _Documents, content: bytes) -> Checked:
    """The network itself: sound, of the declared tensors, and with finite answers to its golden inputs."""
    name = str(documents.name)
    _check_graph(content)
    stripped, listed = strip_listed_weights(content)
    samples = _samples(place, documents, content)
    notes: tuple[str, ...] = ()
    if listed and _same(samples, _answers(stripped, documents, [sample.feeds for sample in samples])):
        content = stripped
        samples = _answers(content, documents, [sample.feeds for sample in samples])
        notes = (f"{listed} weights are no longer listed as inputs",)
    _require_detections(samples, documents)
    variants: dict[str, bytes] = {one: _weights(place, name, one) for one in documents.config.variants}
    notes += tuple(filter(None, (_check_variant(one, variants[one], documents, samples) for one in variants)))
    golden = save_golden(samples)
    return Checked(name, documents.metadata_bytes, documents.config_bytes, content, golden, notes, variants)


def _require_detections(samples: Sequence[Sample], documents: _Documents) -> None:
    """A gate for detections needs some: without, any answer that shows nothing would pass."""
    rule = documents.config.gates.detections
    if rule is None:
        return
    best = max(float(sample.outputs[rule.scores].max(initial=0.0)) for sample in samples)
    if best < rule.min_score + rule.max_score:
        raise InputError(
            f"golden samples: gates.detections is sure of scores from {rule.min_score:g} + {rule.max_score:g} on; the "
            f"highest is {best:.3g}: take inputs that show something"
        )
    pair = samples[0].outputs[rule.boxes], samples[0].outputs[rule.scores]
    alone(pair, pair, rule)


def _check_variant(variant: str, content: bytes, documents: _Documents, samples: Sequence[Sample]) -> str:
    """What is to be told of weights in another precision; raises InputError where no device would take them."""
    _check_graph(content)
    head, declared = parse_head(content, f"weights in {variant}"), documents.metadata.compatibility.opset
    if head.opset != declared:
        raise InputError(f"weights in {variant}: they are of opset {head.opset}; metadata says {declared}")
    try:
        with in_memory(lambda file: file.write(content)) as path:
            session = open_session(path, Candidate(backend=Backend.CPU, precision=variant, threads=1), documents.config)
            with closing(session):
                check_tensors(session, documents.metadata)
                off = [one for one in compare(session, samples, documents.config.gates) if not one.within]
    except BackendError as error:
        if error.kind not in {Kind.BACKEND, Kind.UNSUPPORTED}:
            raise InputError(f"weights in {variant}: {error}") from error
        return f"weights in {variant} could not be tried here: {error}"
    if off:
        raise InputError(f"weights in {variant}: {'; '.join(map(str, off))}: widen the gates, or leave them out")
    return ""


def _check_graph(content: bytes) -> None:
    onnx = import_module("onnx")
    model = onnx.load_from_string(content)
    if any(tensor.data_location == _EXTERNAL for tensor in model.graph.initializer):
        raise InputError("weights: they lie in another file: save the model as one file")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"weights: this is not sound ONNX: {error}; export it again") from error


def _samples(place: Folder, documents: _Documents, content: bytes) -> tuple[Sample, ...]:
    """Golden inputs with the answers of these weights."""
    path = place.path / "golden" / f"{documents.name}_golden.npz"
    if not path.is_file():
        raise InputError(
            f"golden samples: there are none: save a few real inputs as {path}, with np.savez, under in.<input's name>"
        )
    samples = _answers(content, documents, load_feeds(path, documents.metadata.inputs))
    with np.load(path, allow_pickle=False) as file:
        brings_outputs = any(key.startswith("out.") for key in file)
    if brings_outputs:
        _check_references(content, documents, load_golden(path, documents.metadata))
    return samples


def _answers(content: bytes, documents: _Documents, feeds: Sequence[Mapping[str, Any]]) -> tuple[Sample, ...]:
    names = [tensor.name for tensor in documents.metadata.outputs]
    with in_memory(lambda file: file.write(content)) as path, closing(_reference(path, documents)) as session:
        samples = tuple(Sample(feed, dict(zip(names, session.run(names, feed), strict=True))) for feed in feeds)
    for name in names:
        answers = [sample.outputs[name] for sample in samples]
        if not all(map(is_finite, answers)):
            raise InputError(f"output {name}: holds NaN or Inf for a golden input")
        if len({answer.shape for answer in answers}) > 1:
            raise InputError(f"output {name}: its size differs between the golden inputs: keep one of them")
    return samples


def _check_references(content: bytes, documents: _Documents, golden: Sequence[Sample]) -> None:
    with in_memory(lambda file: file.write(content)) as path, closing(_reference(path, documents)) as session:
        for one in compare(session, golden, documents.config.gates):
            if not one.within:
                raise InputError(f"golden samples: of these weights, {one}")


def _reference(path: str, documents: _Documents) -> Session:
    session = open_session(path, REFERENCE, documents.config)
    check_tensors(session, documents.metadata)
    return session


def _same(one: Sequence[Sample], other: Sequence[Sample]) -> bool:
    return all(
        np.allclose(mine.outputs[name], theirs.outputs[name], rtol=SAME, atol=SAME)
        for mine, theirs in zip(one, other, strict=True)
        for name in mine.outputs
    )


def _noted(problems: list[str], call: Callable[[], T]) -> T | None:
    """What the call gives; its problem is added, and None given, where it fails."""
    try:
        return call()
    except UnfitError as error:
        problems += error.problems
    except EdgeError as error:
        problems.append(str(error))
    return None


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """A problem inside is the only one that is told."""
    try:
        yield
    except EdgeError as error:
        raise UnfitError(name, [str(error)]) from error
