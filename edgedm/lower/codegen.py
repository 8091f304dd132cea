"""Plans -> C: the tables of model.c, and the runtime's own sources beside them."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import edgedm
from edgedm.bundle.manifest import FileEntry, GraphName, Node, Operand, Port, Strips
from edgedm.diffusion.normal_table import ROWS
from edgedm.errors import UnsupportedError
from edgedm.lower.interface import Interface
from edgedm.lower.memory import ALIGNMENT, align
from edgedm.lower.objects import SYMBOL
from edgedm.lower.plan import Plan
from edgedm.lower.tensors import Call, Chain, Part, Tensor
from edgedm.lower.weights import WeightsFile
from edgedm.targets import Target

TEMPLATES = Path(__file__).parent.parent / "runtime" / "templates"
HEADERS = ("edgedm.h", "edgedm_names.h")
_SHARED = (
    "chains",
    "conditions",
    "cores",
    "decode",
    "drawing",
    "errors",
    "graph",
    "images",
    "noise",
    "probe",
    "sample",
    "sampler",
    "schedule",
    "session",
    "sha256",
    "sha256_fast",
    "threads",
    "variants",
    "weights",
)
LIBRARY_SOURCES = ("model.c", *(f"{name}.c" for name in _SHARED))
PROGRAM_SOURCES = ("main.c", "layers.c", "read_npy.c", "self_test.c", "times.c")
PROBE_SOURCES = ("probe/main.c",)
PAGE_SOURCES = ("page/exports.c",)  # of WebAssembly's bundles

_PLACES = {
    "arena": "EDM_IN_ARENA",
    "strips": "EDM_IN_STRIPS",
    "weights": "EDM_IN_WEIGHTS",
    "input": "EDM_AT_INPUT",
    "output": "EDM_AT_OUTPUT",
}
_PARTS = {Part.ALL: "EDM_ALL", Part.HEAD: "EDM_OF_HEAD", Part.ROWS: "EDM_OF_ROWS", Part.TASK: "EDM_OF_TASK"}
_ROLES = {
    "x": "EDM_ROLE_X",
    "timestep": "EDM_ROLE_TIMESTEP",
    "class_labels": "EDM_ROLE_LABEL",
    "encoder_hidden_states": "EDM_ROLE_CONDITION",
    "latent": "EDM_ROLE_X",
    "has_state": "EDM_ROLE_HAS_STATE",
    "state": "EDM_ROLE_STATE",
    "row": "EDM_ROLE_ROW",
    "output": "EDM_ROLE_OUTPUT",
}
_TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLPack's, by numpy's kind
_SAMPLERS = {"ddim": "EDM_DDIM", "ddpm": "EDM_DDPM", "dpm-solver++": "EDM_DPM_SOLVER_PP"}
_PREDICTIONS = {"epsilon": "EDM_EPSILON", "v_prediction": "EDM_V_PREDICTION", "sample": "EDM_SAMPLE"}
_MAX_TENSORS = 1 << 16  # their numbers are uint16_t


@dataclass(frozen=True)
class Graph:
    """One graph as the generator needs it."""

    name: GraphName
    plan: Plan
    inputs: list[Port]
    outputs: list[Port]
    slow: tuple[str, ...] = ()  # nodes that run in float32 for want of a kernel of their bits


@dataclass(frozen=True)
class Variant:
    """The graphs as lowered for one target; its kernels' symbols begin with `prefix`."""

    target: Target
    prefix: str
    graphs: Mapping[GraphName, Graph]

    @property
    def arena_bytes(self) -> int:
        """Memory that any of the graphs needs for what lies between its kernels."""
        return max(graph.plan.arena_bytes for graph in self.graphs.values())


@dataclass(frozen=True)
class GoldenFiles:
    """The golden data that a self-test reads: of steps, and of the layers of the variants that have any, by target."""

    steps: FileEntry | None = None
    layers: Mapping[str, FileEntry] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Where rows and states lie in the session's buffers, in bytes, by name."""

    rows: dict[str, int]
    row_bytes: int
    states: dict[str, tuple[int, int]]  # name of the input -> (offset, size)
    states_bytes: int


def identifier(name: str) -> str:
    """A target's name as a part of one in C: `x86-64-v4+vnni` becomes `x86_64_v4_vnni`."""
    return re.sub(r"\W", "_", name)


def lay_out(step: Graph, prepare: Graph) -> Layout:
    """Place the rows that prepare makes, packed densely, and the carried state, each 64-byte aligned.

    A session holds a set of rows for each step of its schedule, and most are steps and zero points: single numbers.
    """
    rows, row_bytes = _consecutive([port for port in prepare.outputs if port.role == "row"], _row_alignment)
    states, states_bytes = _consecutive([port for port in step.inputs if port.role == "state"], lambda _: ALIGNMENT)
    sized = {port.name: (states[port.name], _bytes(port)) for port in step.inputs if port.role == "state"}
    return Layout(rows, row_bytes, sized, states_bytes)


def write_sources(
    folder: Path,
    prefix: str,
    variants: Sequence[Variant],
    interface: Interface,
    weights: WeightsFile,
    default: tuple[int, str],
    golden: GoldenFiles,
) -> None:
    """Write every C file of the bundle into `folder`. The most demanding of the variants comes first."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["octets"] = lambda digits: ", ".join(map(str, bytes.fromhex(digits)))
    contexts: dict[str, dict[str, Any]] = {
        "edgedm_names.h": {"prefix": prefix},
        "noise.c": {"rows": [[f"{value!r}F" for value in row] for row in ROWS]},
        "model.c": _model(variants, interface, weights, default, golden),
    }
    for template in sorted(TEMPLATES.iterdir()):
        if template.suffix == ".j2" and template.stem in contexts:
            text = environment.get_template(template.name).render(contexts[template.stem])
            (folder / template.stem).write_text(text)
        elif template.suffix in (".c", ".h"):
            (folder / template.name).write_text(template.read_text())
    for source in PROBE_SOURCES:
        (folder / source).parent.mkdir(exist_ok=True)
        (folder / source).write_text((TEMPLATES / source).read_text())


def manifest_nodes(graph: Graph, prefix: str) -> list[Node]:
    """Describe the kernel calls of a graph, in order."""
    names = {plan_tensor.buffer: port.name for plan_tensor, port in zip(graph.plan.inputs, graph.inputs, strict=True)}
    for call in graph.plan.calls:
        if call.origin is not None:
            names.update((t.buffer, n) for t, n in zip(call.outputs, call.origin.outputs, strict=False))
    for port, tensor in zip(graph.outputs, graph.plan.outputs, strict=True):
        names[tensor.buffer] = port.name

    def describe(tensors: Sequence[Tensor], given: Sequence[str]) -> list[Operand]:
        labels = list(given) or [names.get(tensor.buffer, "") for tensor in tensors]
        return [_operand(tensor, label) for tensor, label in zip(tensors, labels, strict=True)]

    strips = {chain.first + number: _strips(chain) for chain in graph.plan.chains for number in range(chain.count)}
    nodes = []
    for index, call in enumerate(graph.plan.calls):
        origin = call.origin
        nodes.append(
            Node(
                index=index,
                graph=graph.name,
                kernel=prefix + call.function,
                op=origin.op if origin else "fused",
                node=origin.node if origin else "",
                module=origin.module if origin else "",
                family=origin.kernel.family if origin else "relax",
                macs=origin.kernel.macs if origin else 0,
                inputs=describe(call.inputs, origin.inputs if origin else ()),
                outputs=describe(call.outputs, origin.outputs if origin else ()),
                scratch=[_operand(tensor, "") for tensor in call.scratch],
                strips=strips.get(index),
            )
        )
    return nodes


def _strips(chain: Chain) -> Strips:
    return Strips(first=chain.first, heads=chain.heads, strips=chain.strips, tasks=chain.tasks)


def _operand(tensor: Tensor, name: str) -> Operand:
    buffer = tensor.buffer
    return Operand(name=name, shape=tensor.shape, dtype=tensor.dtype, source=buffer.place, offset=buffer.offset)


def _model(
    variants: Sequence[Variant],
    interface: Interface,
    weights: WeightsFile,
    default: tuple[int, str],
    golden: GoldenFiles,
) -> dict[str, Any]:
    noise, graphs = interface.noise, variants[0].graphs
    layout = lay_out(graphs["step"], graphs["prepare"])
    tags = ["" if len(variants) == 1 else f"_{identifier(each.target.name)}" for each in variants]
    return {
        "edgedm": edgedm.__version__,
        "variants": [_variant(each, layout, tag, golden) for each, tag in zip(variants, tags, strict=True)],
        "golden": golden.steps,
        "sections": [
            {
                "offset": section.offset,
                "bytes": section.bytes,
                "readers": sum(1 << reader for reader in section.readers),
                "sha256": section.sha256,
            }
            for section in weights.sections
        ],
        "alphas_cumprod": [f"{float(alpha).hex()}F" for alpha in noise.alphas_cumprod()],
        "state_offsets": [offset for offset, _ in layout.states.values()],
        "state_bytes": [size for _, size in layout.states.values()],
        "noise": {
            "train_timesteps": noise.num_train_timesteps,
            "steps_offset": noise.steps_offset,
            "first_timestep": interface.trained[0],
            "last_timestep": interface.trained[1],
            "clip": f"{float(np.float32(noise.clip_sample_range))!r}F" if noise.clip_sample else "0.0F",
            "prediction": _PREDICTIONS[noise.prediction_type],
            "spacing": f"EDM_{noise.timestep_spacing.upper()}",
            "alpha_to_one": int(noise.set_alpha_to_one),
            "large_variance": int(noise.variance_type == "fixed_large"),
            "solver_timesteps": noise.solver_timesteps(),
            "solver_order": noise.solver_order,
            "heun": int(noise.solver_type == "heun"),
            "lower_order_final": int(noise.lower_order_final),
            "euler_at_final": int(noise.euler_at_final),
            "end_at_zero": int(noise.final_sigmas_type == "zero"),
        },
        "condition_shape": interface.condition_shape or (0, 0),
        "decoded_shape": graphs["decoder"].outputs[0].shape[1:] if "decoder" in graphs else (0, 0, 0),
        "weights_bytes": len(weights.data),
        "row_bytes": layout.row_bytes,
        "states_bytes": layout.states_bytes,
        "image_shape": interface.image_shape,
        "classes": interface.classes,
        "null_class": interface.null_class,
        "default_steps": default[0],
        "default_sampler": _SAMPLERS[default[1]],
    }


def _variant(variant: Variant, layout: Layout, tag: str, golden: GoldenFiles) -> dict[str, Any]:
    graphs = variant.graphs.values()
    return {
        "name": variant.target.name,
        "tag": tag,
        "layers": golden.layers.get(variant.target.name),
        "needs": sorted(variant.target.features),
        "kernels": sorted(
            {SYMBOL + variant.prefix + name for graph in graphs for call in graph.plan.calls for name in call.functions}
        ),
        "graphs": [_graph(graph, variant.prefix, layout) for graph in graphs],
        "arena_bytes": variant.arena_bytes,
        "step_arena_bytes": variant.graphs["step"].plan.arena_bytes,
    }


def _graph(graph: Graph, prefix: str, layout: Layout) -> dict[str, Any]:
    tensors = _Table()
    for tensor in (*graph.plan.inputs, *graph.plan.outputs):
        tensors.number(tensor)
    used = [t for call in graph.plan.calls for t in (*call.inputs, *call.outputs, *call.scratch)]
    for tensor in (*used, *graph.plan.copies.values()):
        if tensor.buffer.place in ("input", "output"):
            tensors.number(tensor)
    bound = len(tensors.rows)
    calls, first = [], 0
    parts: list[str] = []
    for call in graph.plan.calls:
        arguments = [tensors.number(each) for each in (*call.inputs, *call.outputs, *call.scratch)]
        calls.append(_call(call, prefix, arguments, first))
        parts += [_PARTS[part] for part in call.parts] or ["EDM_ALL"] * len(arguments)
        first += len(arguments)
    copies = {number: tensors.number(tensor) for number, tensor in graph.plan.copies.items()}
    if len(tensors.rows) > _MAX_TENSORS:
        raise UnsupportedError(
            f"graph {graph.name!r} has {len(tensors.rows)} tensors; the runtime counts {_MAX_TENSORS}"
        )
    return {
        "name": graph.name,
        "extents": tensors.extents,
        "tensors": tensors.rows,
        "bound_count": bound,
        "calls": calls,
        "chains": [dataclasses.asdict(chain) for chain in graph.plan.chains],
        "parts": parts if graph.plan.chains else [],
        "argument_count": first,
        "inputs": [_port(port, layout, "EDM_WRITTEN_IN_PLACE") for port in graph.inputs],
        "outputs": [
            _port(port, layout, copies.get(number, "EDM_WRITTEN_IN_PLACE")) for number, port in enumerate(graph.outputs)
        ],
    }


def _call(call: Call, prefix: str, arguments: list[int], first: int) -> dict[str, Any]:
    origin = call.origin
    comment = f"{origin.op} {origin.module or origin.node}" if origin else call.function
    return {
        "symbol": SYMBOL + prefix + call.function,
        "before": SYMBOL + prefix + call.before if call.before else "NULL",
        "arguments": arguments,
        "first": first,
        "inputs": len(call.inputs),
        "outputs": len(call.outputs),
        "scratch": len(call.scratch),
        "comment": comment.replace("*/", "").replace("\\", ""),
    }


def _port(port: Port, layout: Layout, copy_from: int | str) -> dict[str, Any]:
    index = 0
    if port.role == "row":
        index = layout.rows[port.name]
    elif port.role == "state":
        index = list(layout.states).index(port.name.removesuffix(".next"))
    name = port.name.replace("*/", "").replace("\\", "")
    return {"name": name, "bytes": _bytes(port), "index": index, "role": _ROLES[port.role], "copy_from": copy_from}


class _Table:
    """The tensors of a graph, each once, and the extents of their shapes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.extents: list[int] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._shapes: dict[tuple[int, ...], int] = {}

    def number(self, tensor: Tensor) -> int:
        buffer = tensor.buffer
        key = (buffer.place, buffer.offset, tensor.shape, tensor.dtype)
        if key not in self._numbers:
            dtype = np.dtype(tensor.dtype)
            self._numbers[key] = len(self.rows)
            self.rows.append(
                {
                    "offset": buffer.offset,
                    "shape": self._shape(tensor.shape),
                    "place": _PLACES[buffer.place],
                    "code": _TYPE_CODES[dtype.kind],
                    "bits": dtype.itemsize * 8,
                    "rank": len(tensor.shape),
                }
            )
        return self._numbers[key]

    def _shape(self, shape: tuple[int, ...]) -> int:
        if shape not in self._shapes:
            self._shapes[shape] = len(self.extents)
            self.extents.extend(shape)
        return self._shapes[shape]


def _bytes(port: Port) -> int:
    return int(np.prod(port.shape, dtype=np.int64)) * np.dtype(port.dtype).itemsize


def _consecutive(ports: Sequence[Port], alignment: Callable[[Port], int]) -> tuple[dict[str, int], int]:
    """Offsets by name, the widest alignment first so that nothing is lost between two; and the bytes of them all."""
    offsets, used = {}, 0
    for port in sorted(ports, key=lambda port: -alignment(port)):
        used = -(-used // alignment(port)) * alignment(port)
        offsets[port.name] = used
        used += _bytes(port)
    return offsets, align(used)


def _row_alignment(port: Port) -> int:
    """The least power of two that holds the row: no access to it is wider, so none needs more."""
    return min(ALIGNMENT, 1 << (_bytes(port) - 1).bit_length())
