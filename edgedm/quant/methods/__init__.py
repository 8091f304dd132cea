"""The training layers of each method, one file a method; `METHODS` names them."""

from collections.abc import Mapping
from types import MappingProxyType

from edgedm.quant.methods import bidm, binarydm, dilatequant, dorefa, efficientdm, lsq, ptq, reactnet
from edgedm.quant.methods.method import Method

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            binarydm.BINARYDM,
            bidm.BIDM,
            bidm.XNOR,
            dilatequant.DILATEQUANT,
            dorefa.DOREFA,
            reactnet.REACTNET,
            lsq.LSQ,
            ptq.PTQ,
            efficientdm.EFFICIENTDM,
        )
    }
)
