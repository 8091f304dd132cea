"""What lowering does to a graph whatever the target: the kernels' own operations, codes and layout."""

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass

from edgedm.lower.channels_last import ChannelsLast
from edgedm.lower.split_gemm import SplitGemm
from edgedm.lower.widen_codes import WidenCodes
from edgedm.ops import DOMAIN, infer_shapes
from edgedm.targets.kernels.select import OPS


def lay_out(model: ir.Model) -> tuple[str, ...]:
    """Bring a deployed graph into the kernels' layout, in place.

    Returns the nodes that run in float32 for want of a kernel of their bits.
    """
    InlinePass(criteria=lambda function: function.domain == DOMAIN and function.name not in OPS)(model)
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    infer_shapes(model)
    widen = WidenCodes()
    for phase in (widen, SplitGemm(), ChannelsLast()):
        phase(model)
    return tuple(widen.slow)
