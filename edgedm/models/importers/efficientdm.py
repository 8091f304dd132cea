"""EfficientDM's files (arXiv 2310.03270): three stages, told apart by their tensors.

naive   `model.<path>.weight` float, `.weight_quantizer`, `.act_quantizer`: one activation row
packed  the same with integer weights, packed along the output channels, lowest channel in the low bits
final   `model.diffusion_model.model.<path>`: packed W0, its own grid `intn_dequantizer`, the update loraA, loraB,
        the grid `weight_quantizer` of the merged weight, and `act_quantizer.{delta_list,zp_list}` a row a step

The update is merged: codes = clip(round((W0 + B A) / delta) + z). time_embed, the first and the last convolution
are float weights on 8-bit grids with one row; skip_connection, Downsample's op and attention are float. Rows count
steps from the clean end, row i of T for timesteps i 1000 / T and up.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models.bits import parse_bits
from edgedm.models.checkpoint import Checkpoint
from edgedm.models.importers import uniform
from edgedm.models.importers.assemble import State, assemble
from edgedm.models.importers.containers import latent_diffusion, plain, state_dict
from edgedm.models.importers.layout import NO_AVERAGE, Layout, LDMOptions, Report, make_config, name_modules
from edgedm.models.importers.naming import Layer
from edgedm.models.importers.noise import TIMESTEPS
from edgedm.models.importers.tensors import Tensors
from edgedm.quant.integer import QuantLayer
from edgedm.quant.policy import policy_of

FINAL = "model.diffusion_model.model."
_ACTIVATION = ("act_quantizer.delta", "act_quantizer.zero_point")


class EfficientDMLDMOptions(LDMOptions):
    """Widths, and what to do about zero points that no integer grid has."""

    weights: Literal["raw"] = Field("raw", description=NO_AVERAGE)
    bits: str = Field("W4A4", description="weight bits are in the file only where weights are packed, others never")
    clamp_zero_points: bool = Field(False, description="those outside the grid; else they are refused")


def _ldm(content: Any, file: str, options: EfficientDMLDMOptions, report: Report) -> Checkpoint:
    tensors = _tensors(content, file)
    naming = name_modules(tensors, options)
    try:
        weight_bits, _ = parse_bits(options.bits)
        policy = policy_of("efficientdm", "code", options.bits)
    except ValueError as error:
        raise UnsupportedError(f"option bits: {error}") from error
    if weight_bits not in (2, 4, 6, 8):
        raise UnsupportedError(f"option bits: expected W4A4 or another of 2 to 8 bits, got {options.bits!r}")
    rows = _rows(tensors)
    config = make_config(
        tensors,
        naming,
        options,
        report,
        "efficientdm",
        roles=dict(policy.bits),
        options={"talsq": True, "bins": rows} if rows > 1 else {"talsq": False},
        timestep_bins=[i * TIMESTEPS // rows for i in range(rows)] if rows > 1 else [],
    )
    return assemble(tensors, naming, config, partial(_fill, clamp=options.clamp_zero_points, report=report))


def _tensors(content: Any, file: str) -> Tensors:
    """Return the UNet's tensors whatever the stage."""
    inner = content.get("state_dict", content) if isinstance(content, Mapping) else content
    state = state_dict(inner, file)
    if any(name.startswith(FINAL) for name in state):
        return latent_diffusion(content, file, "raw", FINAL)
    strangers = [name for name in state if not name.startswith("model.")]
    if strangers:
        raise InvalidModelError(f"{file}: tensor {strangers[0]!r}: expected names under 'model.' or {FINAL!r}")
    return plain(state, file, "model.")


def _rows(tensors: Tensors) -> int:
    """Return the length of the longest activation table. Raises `InvalidModelError` for one that fits no schedule."""
    longest = 1
    for name in tensors.names():
        if name.endswith("act_quantizer.delta_list"):
            shape = tensors.shape(name)
            if len(shape) != 1 or not 1 <= shape[0] <= TIMESTEPS or TIMESTEPS % shape[0]:
                raise tensors.error(name, f"expected a row a step, a divisor of {TIMESTEPS}, got {list(shape)}")
            longest = max(longest, shape[0])
    return longest


def _fill(module: nn.Module, layer: Layer, clamp: bool, report: Report) -> State | None:
    if not isinstance(module, QuantLayer):
        return None
    bits, tensors, grid = module.weight_bits, layer.tensors, layer.name("weight_quantizer")
    step, zero = layer.per_out("weight_quantizer.delta"), layer.per_out("weight_quantizer.zero_point")
    step, zero = uniform.weight_grid(tensors, grid, step, zero, bits)
    if tensors.dtype(layer.name("weight")) != torch.uint8:
        codes = uniform.weight_codes(layer.weight(), step, zero, bits)
    else:
        codes = _unpack(layer, bits)
        if layer.has("intn_dequantizer.delta"):
            merged = _merge(layer, codes, bits)
            changed = uniform.weight_codes(merged, step, zero, bits)
            report.count("weights.changed_by_the_update", float((changed != codes).sum()))
            codes = changed
    return uniform.layer_state(module, layer, codes, step, zero, _activation(module, layer, clamp, report))


def _unpack(layer: Layer, bits: int) -> Tensor:
    """Return codes [O, ...] of a packed weight [O bits / 8, ...]: byte r holds channels r 8 / bits and on."""
    outputs, *rest = layer.file_shape
    count = 8 // bits
    if bits == 6 or outputs % count:
        raise layer.tensors.error(
            layer.name("weight"), f"packed, but {outputs} channels of {bits} bits don't fill bytes; option bits says so"
        )
    packed = layer.tensors.take_bytes(layer.name("weight"), (outputs // count, *rest))
    parts = [(packed >> (bits * i)) & (2**bits - 1) if count > 1 else packed for i in range(count)]
    return layer.adapt(torch.stack(parts, 1).reshape(outputs, *rest)).float()


def _merge(layer: Layer, codes: Tensor, bits: int) -> Tensor:
    """Return W0 + B A: A is a layer with the kernel of this one, B a pointwise one."""
    tensors, along = layer.tensors, (-1, *(1,) * (codes.ndim - 1))
    step, zero = layer.per_out("intn_dequantizer.delta"), layer.per_out("intn_dequantizer.zero_point")
    step, zero = uniform.weight_grid(tensors, layer.name("intn_dequantizer"), step, zero, bits)
    weight = (codes - zero.reshape(along)) * step.reshape(along)
    name = layer.name("loraA.weight")
    shape = tensors.shape(name)
    rank = shape[0] if shape else 0
    first = tensors.take(name, (rank, *codes.shape[1:]))
    second = tensors.take(layer.name("loraB.weight"), (len(codes), rank, *(1,) * (codes.ndim - 2)))
    return weight + (second.flatten(1) @ first.flatten(1)).reshape(codes.shape)


def _activation(module: QuantLayer, layer: Layer, clamp: bool, report: Report) -> State:
    assert module.activation is not None
    tensors, listed = layer.tensors, layer.has("act_quantizer.delta_list")
    if listed:
        layer.ignore(*_ACTIVATION)  # the value that the list started from
        name, other = layer.name("act_quantizer.delta_list"), layer.name("act_quantizer.zp_list")
        step, zero = tensors.take(name)[:, None], tensors.take(other, tensors.shape(name))[:, None]
    else:
        name = layer.name(_ACTIVATION[0])
        step, zero = layer.scalar(_ACTIVATION[0]).reshape(1, 1), layer.scalar(_ACTIVATION[1]).reshape(1, 1)
    return uniform.activation_state(module.activation, tensors, name, step, zero, clamp, report)


EFFICIENTDM_LDM = Layout(
    "efficientdm-ldm", "EfficientDM on latent-diffusion: naive, packed and final files", EfficientDMLDMOptions, _ldm
)
