"""BinaryDM's checkpoints (arXiv 2404.05662): latent weights, two scales a layer, activation steps.

Nothing binary is stored: bits are the signs of W and of R = W - s1 sign(W). Two things that the released code does
after loading differ from its file, because its "already set" flags aren't stored or are misnamed:

scales      it overwrites s1 and s2 by mean|W| and mean|R|: `scales="meanabs"`; "stored" keeps what was learned
activation  it computes every step anew, 2 mean|x| / sqrt(Qp): "dynamic"; "stored" keeps the file's steps

Bit widths and the number of bases aren't in the file either: `bits` (the release's default is W1A8) and `bases`
("lmb": two on the head and tail, as released; "none": one everywhere, the baseline and the paper's v5).
"""

from functools import partial
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from edgedm.errors import UnsupportedError
from edgedm.models.bits import parse_bits
from edgedm.models.checkpoint import Checkpoint
from edgedm.models.importers.assemble import State, assemble
from edgedm.models.importers.containers import latent_diffusion
from edgedm.models.importers.layout import Layout, LDMOptions, Report, make_config, name_modules
from edgedm.models.importers.naming import Layer
from edgedm.models.importers.uniform import check_steps
from edgedm.quant import inference
from edgedm.quant.policy import policy_of

_FLOAT_EXTRAS = ("scaling_first_order", "scaling_second_order", "quantizer_a.alpha")
_OPERANDS = {"query": "q", "key": "k", "weight": "w", "value": "v"}


class BinaryDMLDMOptions(LDMOptions):
    """What is not in the file, and what the released code does otherwise than its file."""

    bits: str = Field("W1A4", description="not in the file; W1A8 is the release's default")
    bases: Literal["lmb", "none"] = Field(
        "lmb", description="two on head and tail (release), or one everywhere (baseline, v5 of the paper)"
    )
    scales: Literal["stored", "meanabs"] = Field(
        "stored", description="as learned, or mean|W| and mean|R|, by which the released code overwrites them"
    )
    activation: Literal["stored", "dynamic"] = Field(
        "stored", description="steps as learned, or 2 mean|x| / sqrt(Qp) of every tensor, as the released code computes"
    )


def _fill(module: nn.Module, layer: Layer, options: BinaryDMLDMOptions, report: Report) -> State | None:
    if not isinstance(module, inference.BinaryWeightConv2d | inference.BinaryWeightLinear):
        layer.ignore(*_FLOAT_EXTRAS)  # float layers carry them, unused
        return None
    weight = layer.weight()
    report.count("weights.zero", float((weight == 0).sum()))  # torch.sign makes them 0, a stored bit is +1
    mean, stored = weight.abs().flatten(1).mean(1), layer.per_out("scaling_first_order")
    first = stored if options.scales == "stored" else mean
    report.largest("scales.first.largest_difference_from_meanabs", _difference(stored, mean))
    state = {"bits": inference.pack_signs(weight), "scale": first, "bias": layer.vector("bias")}
    if module.bits2 is None:
        layer.ignore("scaling_second_order")
    else:
        along = (-1, *(1,) * (weight.ndim - 1))
        residual = weight - first.reshape(along) * (weight >= 0).float().mul(2).sub(1)
        mean, stored = residual.abs().flatten(1).mean(1), layer.per_out("scaling_second_order")
        report.largest("scales.second.largest_difference_from_meanabs", _difference(stored, mean))
        state["bits2"] = inference.pack_signs(residual)
        state["scale2"] = stored if options.scales == "stored" else mean
    return {**state, **_step(module, layer, "quantizer_a.alpha")}


def _fill_operand(operand: str, module: nn.Module, block: Layer) -> State:
    assert isinstance(module, inference.ActivationQuantizer)
    return _step(module, block, f"attention.act_quantizer_{_OPERANDS[operand]}.alpha")


def _step(
    module: inference.BinaryWeightConv2d | inference.BinaryWeightLinear | inference.ActivationQuantizer,
    layer: Layer,
    name: str,
) -> State:
    """Return the activation's step, which must be positive; nothing where it is computed from the activation."""
    if module.step is None:
        layer.ignore(name)
        return {}
    step = layer.scalar(name)
    check_steps(layer.tensors, layer.name(name), step)
    return {"step": step}


def _difference(stored: Tensor, mean: Tensor) -> float:
    """Return the largest difference of two scales, relative to the layer's mean scale."""
    return float((stored - mean).abs().max() / mean.abs().mean().clamp(min=1e-12))


def _ldm(content: Any, file: str, options: BinaryDMLDMOptions, report: Report) -> Checkpoint:
    tensors = latent_diffusion(content, file, options.weights, report=report)
    naming = name_modules(tensors, options)
    try:
        weight_bits, _ = parse_bits(options.bits)
    except ValueError as error:
        raise UnsupportedError(f"option bits: {error}") from error
    if weight_bits != 1:
        raise UnsupportedError(f"option bits: expected W1A4, W1A8 or another of 1-bit weights, got {options.bits!r}")
    config = make_config(
        tensors,
        naming,
        options,
        report,
        "binarydm",
        roles=dict(policy_of("binarydm", "code", options.bits).bits),
        options={"bases": options.bases, "activation": "dynamic" if options.activation == "dynamic" else "lsq"},
    )
    other = {"stored": "meanabs", "meanabs": "stored"}[options.scales]
    report.notes += [
        f"scales: {options.scales}; scales={other} is the other reading (the release resets them to mean|W|)",
        f"activation: {options.activation}; the release computes every step anew (activation=dynamic)",
    ]
    return assemble(tensors, naming, config, partial(_fill, options=options, report=report), _fill_operand)


BINARYDM_LDM = Layout("binarydm-ldm", "BinaryDM on latent-diffusion, W1A4 and W1A8", BinaryDMLDMOptions, _ldm)
