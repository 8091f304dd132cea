"""How each method trains, one file a method; `RECIPES` names them."""

from collections.abc import Mapping
from types import MappingProxyType

from edgedm.training.objective import Recipe
from edgedm.training.recipes import bidm, binarydm, dilatequant, dorefa, efficientdm, lsq, ptq, reactnet

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "binarydm": binarydm.RECIPE,
        "bidm": bidm.RECIPE,
        "xnor": bidm.XNOR,
        "dilatequant": dilatequant.RECIPE,
        "dorefa": dorefa.RECIPE,
        "reactnet": reactnet.RECIPE,
        "lsq": lsq.RECIPE,
        "ptq": ptq.RECIPE,
        "efficientdm": efficientdm.RECIPE,
    }
)
