"""A graph file as one model that runs from noise and timestep to eps: exported, or optimised and in two parts."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export.decoder_file import load_decoder
from edgedm.export.graph_io import GraphInfo, altered_functions, graph_info, load_graph
from edgedm.verify.coins import undecided
from edgedm.verify.conditions import text_condition
from edgedm.verify.graphs import Graph

Array = NDArray[Any]
Floats = NDArray[np.float32]


class WholeGraph(Graph):
    """The nodes of a graph file; of an optimised one those of its prepare graph too, before those of the step.

    `info` is what the file says about itself; its roles are those of all inputs. `altered` names the functions whose
    bodies in the file are not ours, which are what is run here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = self.path = Path(path)
        model = load_graph(path)
        self.info: GraphInfo = graph_info(model)
        self.altered = altered_functions(model)
        if self.info.level == "prepare":
            raise InvalidModelError(f"{path}: the prepare graph alone; name the step graph beside it")
        if self.info.level == "deployed":
            prepare = load_graph(path.with_suffix(".prepare.onnx"))
            self.altered = sorted({*self.altered, *altered_functions(prepare)})
            self.info = replace(self.info, inputs={**graph_info(prepare).inputs, **self.info.inputs})
            model = _joined(prepare, model)
        super().__init__(model)

    @property
    def states(self) -> list[str]:
        """Names of the inputs that carry state, in order."""
        return [name for name in self.inputs if name.startswith("state.")]


def _joined(prepare: ir.Model, step: ir.Model) -> ir.Model:
    """Both graphs as one: the rows that cross become ordinary values. What both hold is a constant of both.

    `InvalidModelError` where they hold something else under one name.
    """
    first, second = ir.serde.serialize_model(prepare), ir.serde.serialize_model(step)
    rows = {item.name for item in first.graph.output}
    whole = onnx.ModelProto()
    whole.CopyFrom(second)
    for field in ("node", "input", "initializer", "value_info"):
        whole.graph.ClearField(field)
    _check_shared(first.graph, second.graph)
    seen: set[str] = set(rows)
    whole.graph.input.extend(first.graph.input)
    whole.graph.input.extend(item for item in second.graph.input if item.name not in rows)
    for graph in (first.graph, second.graph):
        for node in graph.node:
            if node.output[0] not in seen or node.output[0] in rows:
                whole.graph.node.append(node)
        whole.graph.initializer.extend(item for item in graph.initializer if item.name not in seen)
        whole.graph.value_info.extend(item for item in graph.value_info if item.name not in seen)
        seen |= {node.output[0] for node in graph.node} | {item.name for item in graph.initializer}
    return ir.serde.deserialize_model(whole)


def _check_shared(prepare: onnx.GraphProto, step: onnx.GraphProto) -> None:
    """Raise `InvalidModelError` unless each name that both graphs define means the same in both."""
    first, second = _definitions(prepare), _definitions(step)
    for name in first.keys() & second.keys():
        if first[name] != second[name]:
            raise InvalidModelError(
                f"{name!r}: the prepare graph holds something else under this name than the step graph; "
                "optimise the exported graph again"
            )


def _definitions(graph: onnx.GraphProto) -> dict[str, tuple[object, ...]]:
    """Name -> what tells a constant, or a node by its first output, from another."""
    found: dict[str, tuple[object, ...]] = {}
    for node in graph.node:
        attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
        found[node.output[0]] = (node.domain, node.op_type, *node.input, None, *node.output, None, *attributes)
    for item in graph.initializer:
        found[item.name] = (item.data_type, *item.dims, onnx.numpy_helper.to_array(item).tobytes())
    return found


class GraphRunner:
    """Runs a `WholeGraph` under ONNX Runtime, one image at a time, every optimisation off.

    The interface is `edgedm.runtime.LocalRunner`'s: images f32[C, H, W], carried state f32[1, C, H, W].
    """

    def __init__(self, graph: WholeGraph, null_class: int) -> None:
        self.graph, self.null_class = graph, null_class
        self.schedule = NoiseSchedule.from_config(graph.info.config["noise_schedule"])
        self._outputs = [item.name for item in graph.proto.graph.output]
        self._part = graph.part(graph.inputs, self._outputs)
        self._timestep = next(name for name in graph.inputs if graph.info.inputs.get(name, name) == "timestep")
        shapes = [graph.shape(name) for name in graph.inputs if graph.info.inputs.get(name) == "encoder_hidden_states"]
        self._text_shape = (shapes[0][1], shapes[0][2]) if shapes else None
        decoder = load_decoder(graph.path, graph.info.config)
        self._decoder = None if decoder is None else Graph(decoder)
        self._label: int | None = None
        self._timesteps: list[int] = []
        self._state: dict[str, Array] = {}

    def prepare(self, steps: int = 50, sampler: str = "ddim", *, label: int | None = None) -> list[int]:
        """Choose a schedule and a label (None: unconditional), start a trajectory; returns the timesteps."""
        self._timesteps = [int(timestep) for timestep in self.schedule.timesteps(steps, sampler)]
        self._label, self._state = label, {}
        return self._timesteps

    def run_step(self, step: int, x: Floats) -> Floats:
        """The model's output at one step of the schedule; carried state moves on."""
        eps, after = self.step(self._timesteps[step], x, self._label, self._state or None)
        self._state = {name.removesuffix(".next"): array for name, array in after.items()}
        return eps

    def step(
        self, timestep: int, x: Floats, label: int | None = None, state: Mapping[str, Array] | None = None
    ) -> tuple[Floats, dict[str, Array]]:
        """The output at `timestep` from a given carried state (None: a trajectory's first step), and the next state."""
        wanted = self.null_class if label is None else label
        text = None if self._text_shape is None else text_condition(wanted, self.null_class, self._text_shape)
        feeds = dict(feeds_of(self.graph, timestep, x, wanted, state, text))
        results = self._part.run(feeds)
        return results[self._outputs[0]][0], {name: results[name] for name in self._outputs[1:]}

    def decode(self, latent: Floats) -> Floats:
        """The image f32[3, H, W] of a latent f32[C, h, w], by the decoder beside the graph."""
        assert self._decoder is not None
        (output,) = [item.name for item in self._decoder.proto.graph.output]
        image: Floats = self._decoder.run({"latent": np.asarray(latent, np.float32)[None]})[output][0]
        return image

    def undecided(self, timestep: int) -> bool:
        """Whether rounding may take a decision that depends on the timestep alone either way."""
        return undecided(self.graph, self._timestep, timestep)


def feeds_of(
    graph: WholeGraph,
    timestep: int,
    x: Floats,
    label: int,
    state: Mapping[str, Array] | None,
    text: Floats | None = None,
) -> Iterator[tuple[str, Array]]:
    """Yield the graph's inputs by name; UnsupportedError for a role that a denoiser hasn't."""
    for name in graph.inputs:
        role = graph.info.inputs.get(name, name)
        if role == "x":
            yield name, np.asarray(x, np.float32)[None]
        elif role == "timestep":
            yield name, np.array([timestep], np.int64)
        elif role == "class_labels":
            yield name, np.array([label], np.int64)
        elif role == "encoder_hidden_states" and text is not None:
            yield name, text[None]
        elif role == "has_state":
            yield name, np.array([float(state is not None)], np.float32)
        elif role == "state":
            yield name, np.zeros(graph.shape(name), np.float32) if state is None else np.asarray(state[name])
        else:
            raise UnsupportedError(f"input {name!r} has the role {role!r}, which verify cannot feed")
