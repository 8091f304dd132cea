"""BiDM's checkpoints (arXiv 2412.05926, methods.md 2.6): latent weights, thresholds, filters k, shortcuts, table.

Bits are the weights' signs and alpha[o] their mean absolute value, as the release computes them at every forward.
Of `fliter_k` the release stores the learned weight but overwrites it by the box 1 / (kh kw) at the first forward
after loading, since the flag that says "already set" isn't stored; the bias stays. `k="stored"` (the learned filter,
what the paper describes) and `k="box"` (what the released sampling script runs) name the two.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgedm.errors import UnsupportedError
from edgedm.models.checkpoint import Checkpoint
from edgedm.models.importers.assemble import State, assemble
from edgedm.models.importers.containers import latent_diffusion
from edgedm.models.importers.layout import Layout, LDMOptions, Report, make_config, name_modules
from edgedm.models.importers.naming import Layer, Naming
from edgedm.models.importers.tensors import Tensors
from edgedm.models.roles import output_blocks
from edgedm.quant import inference
from edgedm.quant.policy import policy_of

Filter = Literal["stored", "box"]

_TABLE = "cache_coefficients"
_TIMESTEPS = 1000
_CONVOLUTION = ("fliter_k.weight", "fliter_k.bias", "shortcut_scale", "shortcut.weight", "shortcut.bias")


class BiDMLDMOptions(LDMOptions):
    """`connections`: how many of the last output blocks are mixed with the previous step's (8 in the release)."""

    k: Filter = "stored"
    connections: int = 8


def fill_bidm(module: nn.Module, layer: Layer, k: Filter, report: Report, absolute_gain: bool = True) -> State | None:
    """Return the state of a binary layer of BiDM, None for a float one.

    `absolute_gain`: the LDM code uses |shortcut_scale|, the CIFAR code the number itself.
    """
    if isinstance(module, inference.BinaryConv2d):
        return _convolution(module, layer, k, report, absolute_gain)
    if isinstance(module, inference.BinaryLinear):
        weight = _weight(layer, report)
        linear = layer.origin.trailing == 0
        if linear:  # the release's Linear takes sign(x); its threshold shapes gradients only
            threshold = torch.zeros(layer.shape[1])
            layer.ignore("channel_threshold")
        else:
            threshold = layer.per_in("channel_threshold")
        layer.ignore("bias")
        return {"bits": inference.pack_signs(weight), "scale": _alpha(weight), "threshold": threshold}
    layer.ignore("channel_threshold", *_CONVOLUTION)  # float layers of the release carry them, unused
    return None


def _convolution(
    module: inference.BinaryConv2d, layer: Layer, k: Filter, report: Report, absolute_gain: bool
) -> State:
    weight = _weight(layer, report)
    height, width = module.kernel_size
    kernel = layer.tensors.take(layer.name("fliter_k.weight"), (1, 1, height, width))
    box = torch.full_like(kernel, 1 / (height * width))
    report.largest("k.largest_difference_from_box", float((kernel - box).abs().max()))
    gain = layer.scalar("shortcut_scale").reshape(1)
    layer.ignore("bias")  # binary layers have none in their forward
    state: dict[str, Tensor] = {
        "bits": inference.pack_signs(weight),
        "scale": _alpha(weight),
        "threshold": layer.per_in("channel_threshold"),
        "mean_filter": kernel if k == "stored" else box,
        "mean_bias": layer.scalar("fliter_k.bias").reshape(1),
        "shortcut_gain": gain.abs() if absolute_gain else gain,
    }
    if isinstance(module.shortcut, nn.Conv2d):
        shape = (module.out_channels, module.in_channels, 1, 1)
        state["shortcut.weight"] = layer.tensors.take(layer.name("shortcut.weight"), shape)
        state["shortcut.bias"] = layer.vector("shortcut.bias")
    return state


def _weight(layer: Layer, report: Report) -> Tensor:
    weight = layer.weight()
    report.count("weights.zero", float((weight == 0).sum()))  # torch.sign makes them 0, a stored bit is +1
    return weight


def _alpha(weight: Tensor) -> Tensor:
    return weight.abs().flatten(1).mean(1)


def _ldm(content: Any, file: str, options: BiDMLDMOptions, report: Report) -> Checkpoint:
    tensors = latent_diffusion(content, file, options.weights)
    naming = name_modules(tensors, options)
    roles = dict(policy_of("bidm").bits)
    config = make_config(tensors, naming, options, "bidm", roles=roles)
    with torch.device("meta"):
        ends = output_blocks(config.float_unet())
    count = options.connections
    if not 0 <= count <= len(ends):
        raise UnsupportedError(f"{file}: connections={count}, but the UNet has {len(ends)} output blocks")
    tables: dict[str, Tensor] = {}
    if count:
        table = _columns(tensors, naming, len(ends), count)
        edges = [i * _TIMESTEPS // len(table) for i in range(len(table))]
        changes = {"taps": ends[-count:], "timestep_bins": edges}
        config = make_config(tensors, naming, options, "bidm", roles=roles, **changes)
        tables = {"edges": torch.tensor(edges), _TABLE: table}
    else:
        tensors.ignore([_TABLE])
    _tell(options.k, report)
    return assemble(tensors, naming, config, partial(fill_bidm, k=options.k, report=report), tables=tables)


def _columns(tensors: Tensors, naming: Naming, outputs: int, count: int) -> Tensor:
    """Return the table's columns of the last `count` output blocks: block j has column inputs + 1 + j.

    Row floor(timestep / 10) of 100; the other columns are never read.
    """
    first = naming.inputs + 1 + outputs - count
    table = tensors.take(_TABLE)
    rows_fit = table.ndim == 2 and 1 <= len(table) <= _TIMESTEPS and _TIMESTEPS % len(table) == 0
    if not rows_fit or table.shape[1] < first + count:
        raise tensors.error(
            _TABLE, f"expected [100, {first + count} or more] for {count} connections, got {list(table.shape)}"
        )
    return table[:, first : first + count].contiguous()


def _tell(k: Filter, report: Report) -> None:
    other = "k=box is what the released script runs after loading" if k == "stored" else "k=stored is what was learned"
    report.notes.append(f"filters: k={k}; {other}")


BIDM_LDM = Layout("bidm-ldm", "BiDM on latent-diffusion, W1A1", BiDMLDMOptions, _ldm)
