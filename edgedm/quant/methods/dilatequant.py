"""DilateQuant's training layers (arXiv 2409.14307): W4A4 and W6A6, every product quantised.

Weights are asymmetric, one step an output channel, dilated in closed form (WD, `edgedm.quant.dilation`) before they
are trained. Activations have one (step, zero) a timestep bin (TPQ), the operands of attention one a bin and head;
the softmax's output takes 8 bits with its zero point fixed at 0. The first and the last layer have one row.

EDA-DM, which the release builds on, also splits layers behind a concatenation into two with quantisers of their own;
the notes on DilateQuant don't speak of it, and it is left out: a layer has one quantiser here.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor, nn

from edgedm.models.attention import OPERANDS
from edgedm.models.roles import Role
from edgedm.quant.clock import Clock
from edgedm.quant.geometry import Layer
from edgedm.quant.inference import UNQUANTIZED
from edgedm.quant.methods.method import Method, Options, Site
from edgedm.quant.uniform import ActivationTable, round_ste
from edgedm.quant.uniform_layer import UniformLayer

ONE_ROW: tuple[Role, ...] = ("conv_in", "conv_out")
SOFTMAX = "weight"  # the operand that is the softmax's output


def _packable(bits: int) -> int:
    if bits not in (2, 4, 6, 8):
        raise ValueError(f"expected 2, 4, 6 or 8, got {bits}")
    return bits


SoftmaxBits = Annotated[int, AfterValidator(_packable)]  # not a Literal: the command line gives text


class DilateQuantOptions(Options):
    """DilateQuant's named options; defaults are the paper's where it is known.

    Both rates are relative to what they move. The notes on the paper give 1e-2 for weights, which in Adam is far too
    much for raw weights of magnitude 0.05, and is AdaRound's rate, whose variables count in steps; and 1e-4 for
    quantisers, a thousandth of the steps of 4-bit activations, but the ruin of the softmax's, which are 0.001.
    """

    dilate: bool = Field(True, description="weight dilation")
    tpq: bool = Field(True, description="an activation row for each timestep bin")
    bkd: bool = Field(True, description="block-wise distillation; else calibration alone")
    bins: int = Field(100, ge=1, description="timestep bins")
    softmax_bits: SoftmaxBits = Field(
        8, description="bits of the softmax's output, where products of attention are quantised: 2, 4, 6 or 8"
    )
    dilation_cap: float = Field(65504.0, ge=1, le=65504, description="bound of s; the paper has none")
    calibration_samples: int = Field(
        5120, ge=1, description="from the full-precision model's own sampling; 1024 are enough for the digits"
    )
    weight_rate: float = Field(1e-2, ge=0, description="learning rate of weights, in weight steps")
    quantizer_rate: float = Field(1e-3, ge=0, description="learning rate of quantisers, as a share of their step")
    cache: bool = Field(True, description="keep a block's inputs in memory; else run the blocks before it again")


class IntegerZeroTable(ActivationTable):
    """An `ActivationTable` whose zero points are rounded in training too, so that it trains what ships.

    The gradient passes the rounding; outside 0 .. 2^bits - 1 the zero point is clamped and has none.
    """

    def _now(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step, zero = super()._now(x)
        return step, round_ste(zero).clamp(0, 2**self.bits - 1)


def _edges(site: Site, options: DilateQuantOptions) -> Sequence[int]:
    return site.edges if options.tpq and site.role not in ONE_ROW else (0,)


def _table(bits: int, edges: Sequence[int], clock: Clock, heads: int = 1) -> ActivationTable:
    return IntegerZeroTable(bits, edges, clock, heads)


def _layer(layer: Layer, site: Site, options: DilateQuantOptions) -> nn.Module:
    made = UniformLayer(layer, site.weight_bits, UNQUANTIZED, site.clock, dilate=options.dilate)
    if site.activation_bits != UNQUANTIZED:
        made.activation = _table(site.activation_bits, _edges(site, options), site.clock)
    return made


def _operands(site: Site, options: DilateQuantOptions) -> dict[str, nn.Module]:
    tables = {
        name: _table(
            options.softmax_bits if name == SOFTMAX else site.activation_bits,
            _edges(site, options),
            site.clock,
            site.heads,
        )
        for name in OPERANDS
    }
    # the softmax's output is not negative, so calibration leaves its zero point at 0, and nothing moves it
    tables[SOFTMAX].zero.requires_grad_(False)
    return dict(tables)


def _bins(options: DilateQuantOptions) -> int:
    return options.bins if options.tpq else 1


DILATEQUANT = Method("dilatequant", DilateQuantOptions, _layer, _operands, bins=_bins)
