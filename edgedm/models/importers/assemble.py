"""From a file's tensors and a naming to a checkpoint: build the empty model of a config, fill every module, check."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models.attention import ExplicitAttention
from edgedm.models.checkpoint import Checkpoint, skeleton
from edgedm.models.config import CheckpointConfig
from edgedm.models.importers.naming import Layer, Naming, Origin
from edgedm.models.importers.tensors import Tensors
from edgedm.models.trial import check_runs

State = Mapping[str, Tensor]
Fill = Callable[[nn.Module, Layer], State | None]
FillOperand = Callable[[str, nn.Module, Layer], State]
"""(operand name, quantiser, the attention block in the file) -> the quantiser's tensors."""

_MOST_PACKED = 8  # channels in a byte
_FLOAT = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.Embedding)


def no_operands(_operand: str, _module: nn.Module, _block: Layer) -> State:
    """Fill nothing: for methods without quantisers on attention's products."""
    return {}


def check_weights(tensors: Tensors, naming: Naming, config: CheckpointConfig) -> None:
    """Compare the file's weights with the architecture before anything of its size is allocated.

    Raises `InvalidModelError` that names the tensor. The output channels of a uint8 weight are only held against the
    most that fit a byte: they may be packed.
    """
    for path, shape in float_shapes(config).items():
        if path not in naming.origins:
            raise InvalidModelError(f"{tensors.file}: nothing in the file is '{path}' of the architecture")
        layer = Layer(tensors, naming.origins[path], shape)
        name, expected = layer.name("weight"), layer.file_shape
        found = tensors.shape(name)
        packed = tensors.dtype(name) == torch.uint8 and len(found) > 0 and _MOST_PACKED * found[0] >= expected[0]
        if found != expected and not (packed and found[1:] == expected[1:]):
            raise tensors.error(name, f"expected shape {list(expected)}, got {list(found)}")
    extra = naming.origins.keys() - float_shapes(config).keys()
    if extra:
        names = sorted(naming.origins[path].path for path in extra)
        raise InvalidModelError(f"{tensors.file}: '{names[0]}' has no place in the architecture")


def float_shapes(config: CheckpointConfig) -> dict[str, tuple[int, ...]]:
    """Return {module path: weight shape} of the architecture's layers and norms; nothing is allocated."""
    with torch.device("meta"):
        unet = config.float_unet()
    return {path: tuple(m.weight.shape) for path, m in unet.named_modules() if isinstance(m, _FLOAT)}


def assemble(
    tensors: Tensors,
    naming: Naming,
    config: CheckpointConfig,
    fill: Fill,
    operands: FillOperand = no_operands,
    tables: State | None = None,
) -> Checkpoint:
    """Return the checkpoint of `config` with every module filled from the file.

    `fill` returns the state of a low-bit layer, or None for a float module, whose tensors are then taken as they
    are. `tables` is the state of the denoiser itself. Raises `InvalidModelError` that names a tensor that is
    missing, misshapen, not finite, or left over.
    """
    check_weights(tensors, naming, config)
    try:
        check_runs(config, tensors.file)
    except InvalidModelError as error:  # the file says nothing of images
        raise UnsupportedError(f"{error}; name another image_size") from error
    denoiser = skeleton(config)
    state: dict[str, Tensor] = dict(tables or {})
    shapes = float_shapes(config)
    for path, module in denoiser.unet.named_modules():
        if path in shapes:
            layer = Layer(tensors, naming.origins[path], shapes[path])
            filled = fill(module, layer)
            state |= _prefixed(path, take_float(module, layer) if filled is None else filled)
        if isinstance(module, ExplicitAttention) and module.quantizers:
            block = path.rpartition(".")[0]
            rows = Layer(tensors, naming.origins[f"{block}.to_q"], shapes[f"{block}.to_q"])
            at_block = Layer(tensors, Origin(naming.attentions[block]), rows.shape)
            for operand, quantizer in module.quantizers.items():
                state |= _prefixed(f"{path}.quantizers.{operand}", operands(operand, quantizer, at_block))
    tensors.finish()
    _load(denoiser, state)
    return Checkpoint(config, denoiser)


def take_float(module: nn.Module, layer: Layer) -> State:
    """Return a float module's own tensors."""
    if isinstance(module, nn.GroupNorm):
        return {"weight": layer.vector("weight"), "bias": layer.vector("bias")}
    state = {"weight": layer.weight()}
    if getattr(module, "bias", None) is not None:
        state["bias"] = layer.vector("bias")
    return state


def _prefixed(path: str, state: State) -> dict[str, Tensor]:
    return {f"unet.{path}.{name}": value for name, value in state.items()}


def _load(denoiser: nn.Module, state: State) -> None:
    """Copy `state`; an importer that forgets a tensor or gets its shape wrong is our own error."""
    expected = denoiser.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | state.keys()
        if name not in state
        or name not in expected
        or state[name].shape != expected[name].shape
        or state[name].is_floating_point() != expected[name].is_floating_point()
    )
    if wrong:
        raise AssertionError(f"the importer and the checkpoint format disagree about {wrong[:4]}")
    denoiser.load_state_dict(dict(state))
