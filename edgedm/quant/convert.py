"""Turn a float UNet into a low-bit one that trains, and that into the one that runs."""

from typing import Any, Literal

from torch import nn

from edgedm.models.attention import OPERANDS, ExplicitAttention
from edgedm.models.roles import BIDM, BINARYDM, FLOAT, Bits, Role, roles
from edgedm.quant.methods import bidm, binarydm

Method = Literal["fp32", "binarydm", "bidm", "xnor"]

POLICIES: dict[Method, dict[Role, Bits]] = {"fp32": FLOAT, "binarydm": BINARYDM, "bidm": BIDM, "xnor": BIDM}


def make_trainable(unet: nn.Module, method: Method) -> None:
    """Replace, in place, the layers that `method` quantises by its training layers, which start from their weights.

    The attention processors must be `ExplicitAttention`; BinaryDM adds a quantiser to each of their operands.
    """
    policy = POLICIES[method]
    for path, role in roles(unet).items():
        layer = unet.get_submodule(path)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        if policy[role] != "float":
            unet.set_submodule(path, _training_layer(layer, role, method))
    if method == "binarydm":
        for module in unet.modules():
            if isinstance(module, ExplicitAttention):
                module.quantizers = nn.ModuleDict({name: binarydm.LSQActivation() for name in OPERANDS})


def make_inference(unet: nn.Module) -> None:
    """Replace, in place, every training layer by its `to_inference()`."""
    for path, module in _outermost(unet):
        unet.set_submodule(path, module.to_inference())


def _outermost(module: nn.Module, prefix: str = "") -> list[tuple[str, Any]]:
    """Return (path, layer) of the training layers that are not themselves part of one."""
    found: list[tuple[str, Any]] = []
    for name, child in module.named_children():
        if hasattr(child, "to_inference"):
            found.append((prefix + name, child))
        else:
            found += _outermost(child, f"{prefix}{name}.")
    return found


def _training_layer(layer: nn.Conv2d | nn.Linear, role: Role, method: Method) -> nn.Module:
    if method == "binarydm":
        if isinstance(layer, nn.Conv2d):
            return binarydm.BinaryWeightConv2d(layer)
        return binarydm.BinaryWeightLinear(layer)
    if isinstance(layer, nn.Conv2d):
        return bidm.BinaryConv2d(layer, learn_filter=method == "bidm")
    return bidm.BinaryLinear(layer, learn_threshold=role != "res_time")
