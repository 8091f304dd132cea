"""What a graph pair says about itself: the roles of inputs and outputs, the image, the classes, the noise schedule."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export.graph_io import graph_info, labels, load_graph, noise_schedule
from edgedm.passes.editing import constant, dims, is_edgedm, is_op

OUTPUT = "output"


@dataclass(frozen=True)
class Interface:
    """Everything that the runtime must know besides kernels; shapes as in the graphs (channels first)."""

    config: dict[str, Any]
    noise: NoiseSchedule
    image_shape: tuple[int, int, int]
    classes: int  # labels 0..classes-1; 0: the model takes none
    null_class: int  # what "no label" means; -1: the model needs a label
    trained: tuple[int, int]  # the first and last timestep that the model may be asked for
    step_roles: dict[str, str]
    prepare_roles: dict[str, str]
    condition_shape: tuple[int, int] | None = None  # tokens and their size, of a model with a text condition

    def check_schedule(self, steps: int, sampler: str) -> None:
        """Raise UnsupportedError if a run of `steps` steps leaves the trained timesteps."""
        timesteps = self.noise.timesteps(steps, sampler)
        low, high = self.trained
        if timesteps.min() < low or timesteps.max() > high:
            raise UnsupportedError(
                f"{steps} steps use timesteps {timesteps.min()}..{timesteps.max()}, but the model was trained for "
                f"{low}..{high}: choose another number of steps"
            )


def load_pair(path: str | Path) -> tuple[ir.Model, ir.Model, Interface]:
    """Load a deployed graph and the prepare graph beside it, and check that they belong together."""
    path = Path(path)
    step = load_graph(path)
    if graph_info(step).level == "exported":
        raise InvalidModelError(f"{path}: a graph as exported; run `edgedm optimize {path.name} -o NAME.onnx` first")
    prepare = load_graph(path.with_suffix(".prepare.onnx"))
    return step, prepare, read_interface(step, prepare)


def read_interface(step: ir.Model, prepare: ir.Model) -> Interface:
    """Read the interface of a pair of graphs; InvalidModelError where they contradict each other or themselves."""
    info, before = graph_info(step), graph_info(prepare)
    if info.level != "deployed" or before.level != "prepare":
        raise InvalidModelError(
            f"expected a deployed graph and its prepare graph, got {info.level!r} and {before.level!r}; "
            "make them with `edgedm optimize`"
        )
    noise = noise_schedule(step)
    classes, null_class = _classes(info.config, before.inputs)
    interface = Interface(
        config=info.config,
        noise=noise,
        image_shape=_image_shape(step, info.inputs),
        classes=classes,
        null_class=null_class,
        trained=_trained(prepare, noise),
        step_roles=info.inputs,
        prepare_roles=before.inputs,
        condition_shape=_condition_shape(prepare, before.inputs),
    )
    _check_rows(step, prepare, info.inputs)
    _check_states(step, info.inputs)
    return interface


def output_roles(model: ir.Model) -> dict[str, str]:
    """Roles of a graph's outputs: state (by its name), row (of a prepare graph), or output."""
    roles = {}
    for value in model.graph.outputs:
        name = value.name or ""
        if name.startswith("state.") and name.endswith(".next"):
            roles[name] = "state"
        else:
            roles[name] = "row" if name.startswith("row.") else OUTPUT
    return roles


def _image_shape(step: ir.Model, roles: dict[str, str]) -> tuple[int, int, int]:
    images = [value for value in step.graph.inputs if roles[value.name or ""] == "x"]
    outputs = [value for value in step.graph.outputs if output_roles(step)[value.name or ""] == OUTPUT]
    if len(images) != 1 or len(outputs) != 1 or dims(images[0]) != dims(outputs[0]):
        raise InvalidModelError("expected one input of role x and one output of its shape")
    batch, *image = dims(images[0])
    if batch != 1 or len(image) != 3:
        raise UnsupportedError(f"input x of {dims(images[0])}: expected one image [1, C, H, W]")
    return image[0], image[1], image[2]


def _classes(config: dict[str, Any], roles: dict[str, str]) -> tuple[int, int]:
    if "class_labels" not in roles.values():
        return 0, -1
    total, null = labels(config), config.get("null_class")
    if total is None or total < 1:
        raise InvalidModelError(f"config: the model takes class labels, but num_class_embeds is {total}")
    if null is None:
        return total, -1
    return (null if null == total - 1 else total), int(null)


def _condition_shape(prepare: ir.Model, roles: dict[str, str]) -> tuple[int, int] | None:
    found = [value for value in prepare.graph.inputs if roles[value.name or ""] == "encoder_hidden_states"]
    if not found:
        return None
    shape = dims(found[0])
    if len(found) > 1 or len(shape) != 3 or shape[0] != 1 or found[0].dtype != ir.DataType.FLOAT:
        raise UnsupportedError(f"input encoder_hidden_states of {found[0].dtype} {shape}: expected one float [1, T, D]")
    return shape[1], shape[2]


def _trained(prepare: ir.Model, noise: NoiseSchedule) -> tuple[int, int]:
    """Timesteps before a table's first bin have no row."""
    first, timestep = 0, next((value for value in prepare.graph.inputs if value.name == "timestep"), None)
    for node in prepare.graph:
        if is_edgedm(node, "TimestepLookup"):
            edges = constant(node.inputs[1])
        elif is_op(node, "LessOrEqual") and timestep is not None and node.inputs[1] is timestep:
            edges = constant(node.inputs[0])  # the lookup as `LookupTimestepParameters` spells it out
        else:
            continue
        if edges is None or edges.size == 0:
            raise InvalidModelError(f"node {node.name!r}: its bin edges are no constant")
        first = max(first, int(edges.flat[0]))
    return first, noise.num_train_timesteps - 1


def _check_rows(step: ir.Model, prepare: ir.Model, roles: dict[str, str]) -> None:
    made = {value.name: (value.dtype, dims(value)) for value in prepare.graph.outputs}
    for value in step.graph.inputs:
        if roles[value.name or ""] == "row" and made.get(value.name) != (value.dtype, dims(value)):
            raise InvalidModelError(
                f"step reads {value.name!r} as {value.dtype} {dims(value)}, prepare makes {made.get(value.name)}: "
                "the two files are not of one `edgedm optimize`"
            )


def _check_states(step: ir.Model, roles: dict[str, str]) -> None:
    outputs = {value.name: dims(value) for value in step.graph.outputs}
    for value in step.graph.inputs:
        name = value.name or ""
        if roles[name] == "state" and outputs.get(f"{name}.next") != dims(value):
            raise InvalidModelError(f"state {name!r} of {dims(value)}: no output {name}.next of that shape")
