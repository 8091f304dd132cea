"""The passes in order, and `optimize`, which runs them on a graph file.

PIPELINE is the whole list; each entry makes its pass from what is known of the model and the schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.passes.base import GraphPass, Report
from edgedm.passes.fold_weight_dilation import FoldWeightDilation
from edgedm.passes.fuse_binary_conv import FuseBinaryConv
from edgedm.passes.fuse_binary_weight_conv import FuseBinaryWeightConv
from edgedm.passes.fuse_epilogue import FuseEpilogue
from edgedm.passes.fuse_group_norm import FuseGroupNorm
from edgedm.passes.fuse_mean_abs import FuseMeanAbs
from edgedm.passes.fuse_norm_act_pack import FuseNormActPack
from edgedm.passes.fuse_padding import FusePadding
from edgedm.passes.fuse_quant_conv import FuseQuantConv
from edgedm.passes.fuse_quant_matmul import FuseQuantMatMul
from edgedm.passes.fuse_row_addend import FuseRowAddend
from edgedm.passes.lookup_timestep_parameters import LookupTimestepParameters
from edgedm.passes.merge_scales import MergeScales
from edgedm.passes.merge_tables import MergeTables
from edgedm.passes.quantize_before_upsample import QuantizeBeforeUpsample
from edgedm.passes.simplify import Simplify
from edgedm.passes.split_prepare import SplitPrepare


@dataclass(frozen=True)
class Schedule:
    """The timesteps that a graph is made for, noisiest first, and the number of training timesteps."""

    timesteps: NDArray[np.int64] | None = None
    trained: int = 1000


PIPELINE: list[Callable[[Schedule], GraphPass]] = [
    # 1. a plain graph: constants folded, shapes static, tables checked against the schedule and joined
    lambda _: Simplify(),
    lambda schedule: LookupTimestepParameters(schedule.timesteps, schedule.trained),
    lambda _: MergeTables(),
    # 2. integer cores: float convolutions of signs and codes become products of packed bits and integers
    lambda _: FuseBinaryConv(),
    lambda _: FuseBinaryWeightConv(),
    lambda _: FuseQuantConv(),
    lambda _: FuseQuantMatMul(),
    # 3. epilogues: what is done to a product's result while it is at hand
    lambda _: MergeScales(),
    lambda _: FuseEpilogue(),
    lambda _: FuseRowAddend(),
    # 4. prologues: what is done to a tensor while it is packed or quantised
    lambda _: FuseMeanAbs(),
    lambda _: FuseGroupNorm(),
    lambda _: FoldWeightDilation(),
    lambda _: FusePadding(),
    lambda _: FuseNormActPack(),
    lambda _: QuantizeBeforeUpsample(),
    # 5. two graphs; last, so that every pass before sees the whole model and leaves its interface alone
    lambda _: SplitPrepare(),
]


def run_passes(
    model: ir.Model,
    schedule: Schedule | None = None,
    after_each: Callable[[int, GraphPass, Report], None] | None = None,
) -> list[tuple[GraphPass, Report]]:
    """Run the pipeline on `model` in place; `after_each(number, pass, report)` is called after every pass."""
    results = []
    for number, make in enumerate(PIPELINE, start=1):
        each = make(schedule or Schedule())
        report = each(model)
        assert isinstance(report, Report)
        results.append((each, report))
        if after_each is not None:
            after_each(number, each, report)
    return results
