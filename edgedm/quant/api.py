"""The quantisation API: swap the layers of any `nn.Module` by the training layers of a method, in place.

    quantize_layers(unet, "bidm")                                  the paper's policy
    quantize_layers(unet, "dilatequant", policy_of("dilatequant", nominal="W6A6"))
    quantize_layers(net, "lsq", roles={"body.0": "res_conv", "body.2": "conv_out"})

Then train, and `make_inference(unet)` turns every training layer into the packed one that runs.
`edgedm.models.from_module` makes a checkpoint of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import nn

from edgedm.errors import UnsupportedError
from edgedm.models.attention import attention_blocks, make_attention_explicit
from edgedm.models.roles import Role
from edgedm.models.roles import roles as roles_of
from edgedm.quant.blocks import inside
from edgedm.quant.clock import Clock, find_clock, install_clock
from edgedm.quant.geometry import is_layer
from edgedm.quant.methods import METHODS
from edgedm.quant.methods.method import Options, Site
from edgedm.quant.option_text import complaint
from edgedm.quant.policy import Policy, policy_of

DEFAULT_EDGES = (0,)
_RECORD = "edgedm_quantized"  # a module's attribute, so that its copies have it too


@dataclass(frozen=True)
class Quantized:
    """How `quantize_layers` made a module low-bit: what builds it again."""

    method: str
    bits: Mapping[Role, str]
    options: Mapping[str, Any]
    edges: Sequence[int]


def record_of(model: nn.Module) -> Quantized | None:
    """Return how `model` was made low-bit; None if it was not."""
    return getattr(model, _RECORD, None)


def quantize_layers(
    model: nn.Module,
    method: str,
    policy: Policy | Mapping[Role, str] | None = None,
    *,
    options: Options | Mapping[str, Any] | None = None,
    roles: Mapping[str, Role] | None = None,
    edges: Sequence[int] = DEFAULT_EDGES,
) -> nn.Module:
    """Swap `Conv2d`, `Conv1d`, `Linear` and the operands of diffusers' attention by low-bit ones; return `model`.

    `policy` is a published one (default: the method's first) or a table {role: bits}; a role that it leaves out
    stays float. `options` are the method's own; a policy may imply some that are not given. `roles` names the roles of
    layers that are none of diffusers'. `edges` are the first timesteps of the rows of per-timestep tables, for the
    methods that have them. Nothing is changed if an error is raised. Raises `UnsupportedError` for an unknown method,
    option, role or bits.
    """
    if method not in METHODS:
        raise UnsupportedError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    chosen = METHODS[method]
    table = policy_of(method) if policy is None else policy
    settings = method_options(method, options, table if isinstance(table, Policy) else None)
    bits = dict(table.bits if isinstance(table, Policy) else table)
    installed, ends = find_clock(model), chosen.ends(model, settings)
    clock = installed or Clock()

    def site(path: str, role: Role, heads: int = 1) -> Site:
        return Site(path, role, bits.get(role, "float"), clock, tuple(edges), heads, inside(path, ends))

    swaps: dict[str, nn.Module] = {}
    for path, role in roles_of(model, roles).items():
        layer = model.get_submodule(path)
        if bits.get(role, "float") != "float" and is_layer(layer):
            swaps[path] = chosen.layer(layer, site(path, role), settings)
    blocks = attention_blocks(model) if bits.get("attn_matmul", "float") != "float" else {}
    operands = {
        path: dict(chosen.operands(site(path, "attn_matmul", block.heads), settings)) for path, block in blocks.items()
    }
    # nothing below refuses
    for path, layer in swaps.items():
        model.set_submodule(path, layer)
    if operands:
        attentions = make_attention_explicit(model)
        for path, quantizers in operands.items():
            attentions[path].quantizers = nn.ModuleDict(quantizers)
    if installed is None:
        install_clock(model, clock)
    setattr(model, _RECORD, Quantized(method, bits, settings.model_dump(mode="json"), tuple(edges)))
    return model


def method_options(
    method: str, options: Options | Mapping[str, Any] | None = None, policy: Policy | None = None
) -> Options:
    """Return the method's options, checked: those given, else `policy`'s, else the defaults.

    Of an `Options` those count as given that it was made with. Raises `UnsupportedError` that names the option.
    """
    kind = METHODS[method].options
    if isinstance(options, Options):
        if not isinstance(options, kind):
            raise UnsupportedError(f"options: expected {kind.__name__}, got {type(options).__name__}")
        options = options.model_dump(exclude_unset=True)
    implied = {} if policy is None else policy.options
    try:
        return kind.model_validate({**implied, **(options or {})})
    except ValidationError as error:
        raise UnsupportedError(complaint(error, kind, method)) from error


def make_inference(model: nn.Module) -> None:
    """Replace, in place, every training layer by its `to_inference()`."""
    for path, module in _outermost(model):
        model.set_submodule(path, module.to_inference())


def _outermost(module: nn.Module, prefix: str = "") -> list[tuple[str, Any]]:
    """Return (path, layer) of the training layers that are not themselves part of one."""
    found: list[tuple[str, Any]] = []
    for name, child in module.named_children():
        if hasattr(child, "to_inference"):
            found.append((prefix + name, child))
        else:
            found += _outermost(child, f"{prefix}{name}.")
    return found
