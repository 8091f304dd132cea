"""BiDM's checkpoints (arXiv 2412.05926): latent weights, thresholds, filters k, shortcuts, table.

Bits are the weights' signs and alpha[o] their mean absolute value, as the release computes them at every forward.
Of `fliter_k` the release stores the learned weight but overwrites it by the box 1 / (kh kw) at the first forward
after loading, since the flag that says "already set" isn't stored; the bias stays. `k="stored"` (the learned filter,
what the paper describes) and `k="box"` (what the released sampling script runs) name the two.
"""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedm.errors import UnsupportedError
from edgedm.models.checkpoint import Checkpoint
from edgedm.models.importers.assemble import State, assemble
from edgedm.models.importers.containers import ddim_list, latent_diffusion
from edgedm.models.importers.layout import CifarOptions, Layout, LDMOptions, Report, make_config, name_modules
from edgedm.models.importers.naming import Layer, Naming
from edgedm.models.importers.noise import TIMESTEPS
from edgedm.models.importers.tensors import Tensors
from edgedm.models.roles import output_blocks
from edgedm.quant import inference
from edgedm.quant.methods.bidm import Gain
from edgedm.quant.policy import policy_of

Filter = Literal["stored", "box"]
FILTER = "the learned filter, or the box that the released code puts in its place when it starts"

_TABLE = "cache_coefficients"
_ROWS = 100
_CONVOLUTION = ("fliter_k.weight", "fliter_k.bias", "shortcut_scale", "shortcut.weight", "shortcut.bias")


class BiDMLDMOptions(LDMOptions):
    """What the released code does otherwise than its file, and its number of connections."""

    k: Filter = Field("stored", description=FILTER)
    connections: int = Field(
        8, ge=0, description="how many of the last output blocks are mixed with the previous step's (release: 8)"
    )


class BiDMCifarOptions(CifarOptions):
    """The gain of the shortcut is taken with its sign, as the CIFAR-10 code does."""

    k: Filter = Field("stored", description=FILTER)


def _fill(module: nn.Module, layer: Layer, k: Filter, gain: Gain, report: Report) -> State | None:
    """Return the state of a binary layer, None for a float one."""
    if not isinstance(module, inference.BinaryConv2d | inference.BinaryLinear):
        layer.ignore("channel_threshold", *_CONVOLUTION)  # float layers of the release carry them, unused
        return None
    weight = layer.weight()
    report.count("weights.zero", float((weight == 0).sum()))  # torch.sign makes them 0, a stored bit is +1
    state = {"bits": inference.pack_signs(weight), "scale": weight.abs().flatten(1).mean(1)}
    layer.ignore("bias")  # binary layers have none in their forward
    if len(layer.file_shape) == 2:  # the release's Linear takes sign(x); its threshold shapes gradients only
        layer.ignore("channel_threshold")
        return state | {"threshold": torch.zeros(layer.shape[1])}
    state["threshold"] = layer.per_in("channel_threshold")
    if module.mean_filter is not None:
        state |= _convolution(module, layer, module.mean_filter.shape, k, gain, report)
    return state


def _convolution(
    module: inference.BinaryConv2d | inference.BinaryLinear,
    layer: Layer,
    shape: tuple[int, ...],
    k: Filter,
    gain: Gain,
    report: Report,
) -> dict[str, Tensor]:
    """Return filter and shortcut of a convolution, whose kernel may be a linear layer's here: `shape` is k's."""
    size = (1, 1, *layer.file_shape[2:])
    kernel = layer.tensors.take(layer.name("fliter_k.weight"), size).reshape(shape)
    box = torch.full_like(kernel, 1 / kernel.numel())
    report.largest("k.largest_difference_from_box", float((kernel - box).abs().max()))
    scale = layer.scalar("shortcut_scale").reshape(1)
    state = {
        "mean_filter": kernel if k == "stored" else box,
        "mean_bias": layer.scalar("fliter_k.bias").reshape(1),
        "shortcut_gain": scale.abs() if gain == "abs" else scale,
    }
    if isinstance(module.shortcut, nn.Conv2d):
        pointwise = (*layer.shape[:2], 1, 1)
        state["shortcut.weight"] = layer.tensors.take(layer.name("shortcut.weight"), pointwise)
        state["shortcut.bias"] = layer.vector("shortcut.bias")
    return state


def _ldm(content: Any, file: str, options: BiDMLDMOptions, report: Report) -> Checkpoint:
    tensors = latent_diffusion(content, file, options.weights, report=report)
    naming = name_modules(tensors, options)
    shared: dict[str, Any] = {"roles": dict(policy_of("bidm").bits), "options": {"connections": options.connections}}
    config = make_config(tensors, naming, options, report, "bidm", **shared)
    with torch.device("meta"):
        ends = output_blocks(config.float_unet())
    count = options.connections
    if not 0 <= count <= len(ends):
        raise UnsupportedError(f"{file}: connections={count}, but the UNet has {len(ends)} output blocks")
    tables: dict[str, Tensor] = {}
    if count:
        table = _columns(tensors, naming, len(ends), count)
        edges = _edges(table)
        changes = {"taps": ends[-count:], "timestep_bins": edges}
        config = make_config(tensors, naming, options, report, "bidm", **shared, **changes)
        tables = {"edges": torch.tensor(edges), _TABLE: table}
    else:
        tensors.ignore([_TABLE])
    _tell(options.k, report)
    return assemble(tensors, naming, config, partial(_fill, k=options.k, gain="abs", report=report), tables=tables)


def _cifar(content: Any, file: str, options: BiDMCifarOptions, report: Report) -> Checkpoint:
    tensors = ddim_list(content, file, options.weights)
    naming = name_modules(tensors, options)
    mixes = _cifar_mixes(tensors, naming)
    table = tensors.take(_TABLE)
    if table.ndim != 2 or table.shape[1] < 2 or not _rows_fit(table):
        raise tensors.error(_TABLE, f"expected [100, 2 or more], got {list(table.shape)}")
    edges = _edges(table)
    config = make_config(
        tensors,
        naming,
        options,
        report,
        "bidm",
        roles=dict(policy_of("bidm").bits),
        options={"attention": "conv2d", "gain": "raw", "bins": len(table)},
        taps=list(dict.fromkeys(mixes.values())),
        mixes=mixes,
        timestep_bins=edges,
    )
    tables = {"edges": torch.tensor(edges), _TABLE: table[:, 1:2].repeat(1, len(mixes))}
    _tell(options.k, report)
    return assemble(tensors, naming, config, partial(_fill, k=options.k, gain="raw", report=report), tables=tables)


def _cifar_mixes(tensors: Tensors, naming: Naming) -> dict[str, str]:
    """Return {module: tap} of the release for CIFAR-10, which reads column 1 everywhere.

    Its attention blocks of up.1 are mixed with what left up.2.upsample in the previous step, up.1.upsample with its
    own previous output. Raises `UnsupportedError` for a UNet in which these don't have the same shape.
    """
    widths = naming.architecture["block_out_channels"]
    levels = len(widths)
    attends = f"up_blocks.{levels - 2}.attentions.0" in naming.attentions
    if levels < 3 or widths[1] != widths[2] or not attends:
        raise UnsupportedError(
            f"{tensors.file}: the connection needs up.2.upsample and attention in up.1 of the same width; the levels "
            f"have {widths} channels"
        )
    before, after = (f"up_blocks.{levels - 1 - level}.upsamplers.0" for level in (2, 1))
    count = naming.architecture["layers_per_block"] + 1
    return {f"up_blocks.{levels - 2}.attentions.{i}": before for i in range(count)} | {after: after}


def _columns(tensors: Tensors, naming: Naming, outputs: int, count: int) -> Tensor:
    """Return the table's columns of the last `count` output blocks: block j has column inputs + 1 + j.

    Row floor(timestep / 10) of 100; the other columns are never read.
    """
    first = naming.inputs + 1 + outputs - count
    table = tensors.take(_TABLE)
    if table.ndim != 2 or table.shape[1] < first + count or not _rows_fit(table):
        raise tensors.error(
            _TABLE, f"expected [100, {first + count} or more] for {count} connections, got {list(table.shape)}"
        )
    return table[:, first : first + count].contiguous()


def _rows_fit(table: Tensor) -> bool:
    return len(table) == _ROWS  # row floor(timestep / 10)


def _edges(table: Tensor) -> list[int]:
    return [i * TIMESTEPS // len(table) for i in range(len(table))]


def _tell(k: Filter, report: Report) -> None:
    other = "k=box is what the released script runs after loading" if k == "stored" else "k=stored is what was learned"
    report.notes.append(f"filters: k={k}; {other}")


BIDM_LDM = Layout("bidm-ldm", "BiDM on latent-diffusion, W1A1", BiDMLDMOptions, _ldm)
BIDM_CIFAR = Layout("bidm-cifar", "BiDM on ermongroup/ddim for CIFAR-10, W1A1", BiDMCifarOptions, _cifar)
