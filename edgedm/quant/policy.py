"""Which role gets how many bits: the published policies of the four methods as tables, with the reason of each row."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from edgedm.errors import UnsupportedError
from edgedm.models.bits import Bits, parse_bits
from edgedm.models.roles import FLOAT, ROLES, Role


@dataclass(frozen=True)
class Policy:
    """Bits of every role, and why; `nominal` are the bits that name the method's setting, such as W4A4.

    `options` are those of the method that go with these bits, unless they are given (see `method_options`).
    """

    name: str
    nominal: Bits
    bits: Mapping[Role, Bits]
    reasons: Mapping[Role, str]
    options: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[tuple[Role, Bits, str]]:
        """Return the table: (role, bits, reason) in the order of `ROLES`."""
        return [(role, self.bits[role], self.reasons.get(role, "")) for role in ROLES]

    def at(self, nominal: Bits) -> "Policy":
        """Return the same policy at another width: "W6A6" replaces every "W4A4", and "A6" every "A4".

        Raises `ValueError` for text that is no bit widths.
        """
        _, new = parse_bits(nominal)
        _, old = parse_bits(self.nominal)
        swap = {self.nominal: nominal, f"A{old}": f"A{new}"}
        bits = {role: swap.get(value, value) for role, value in self.bits.items()}
        return replace(self, nominal=nominal, bits=MappingProxyType(bits))


_Rows = dict[Role, tuple[Bits, str]]

_EDGES_FLOAT: _Rows = {
    "conv_in": ("float", "first and last layers decide the image; under 0.1 % of the weights"),
    "time_mlp": ("float", "runs once a step on one vector; an error here reaches every block"),
    "conv_out": ("float", "first and last layers decide the image; under 0.1 % of the weights"),
}

_BINARYDM_BODY: _Rows = {
    "res_conv": ("W1A4", "85 % of the multiply-accumulates"),
    "res_time": ("W1A4", "the released LDM code binarises emb_layers"),
    "shortcut": ("W1A4", "the released LDM code binarises skip_connection"),
    "down": ("W1A4", "the released LDM code binarises Downsample"),
    "up": ("W1A4", "the released LDM code binarises Upsample"),
    "attn_qkv": ("W1A4", "Conv1d there, Linear here: the same product"),
    "attn_out": ("W1A4", "Conv1d there, Linear here: the same product"),
    "attn_matmul": ("A4", "q, k, softmax and v each pass a quantiser (QKVAttentionLegacy.binary_act)"),
    "attn_proj": ("W1A4", "by the same rule: everything but the edges"),
    "feed_forward": ("W1A4", "by the same rule: everything but the edges"),
}

_BIDM: _Rows = {
    **_EDGES_FLOAT,
    "res_conv": ("W1A1", "with threshold, filter k and shortcut"),
    "res_time": ("W1A1", "emb_layers Linear are binary; their forward ignores the threshold"),
    "shortcut": ("float", "skip_connection stays a plain convolution in the release"),
    "down": ("W1A1", "Downsample is binary; its shortcut is a 2x2 mean"),
    "up": ("W1A1", "Upsample is binary"),
    "attn_qkv": ("W1A1", "Conv1d there: no filter, no shortcut"),
    "attn_out": ("W1A1", "Conv1d there: no filter, no shortcut"),
    "attn_matmul": ("float", "the two products of attention are not quantised"),
    "attn_proj": ("W1A1", "by the same rule: everything but edges and shortcuts"),
    "feed_forward": ("W1A1", "by the same rule: everything but edges and shortcuts"),
}

_BIDM_INT8: _Rows = {
    **_BIDM,
    "shortcut": ("W8A8", "not published: in float they take a good part of a step; implies shortcut_bits=W8A8"),
}

_BIDM_SMALL_EDGES: _Rows = {
    "conv_in": ("W8A8", "not published: in float32 what is not binary would take a third of the file"),
    "time_mlp": ("W8A8", "not published: in float32 what is not binary would take a third of the file"),
    "conv_out": ("W8A8", "not published: in float32 what is not binary would take a third of the file"),
}

_BIDM_INT4: _Rows = {
    **_BIDM,
    **_BIDM_SMALL_EDGES,
    "shortcut": ("W4A4", "not published: in float they take most of the file; implies shortcut_bits=W4A4"),
}

_BIDM_BINARY: _Rows = {
    **_BIDM,
    **_BIDM_SMALL_EDGES,
    "shortcut": ("W1A4", "not published: BinaryDM's layer, for the smallest file; implies shortcut_bits=W1A4"),
}

# for the baselines that are held against BiDM at its bits, where the reasons of its release are not theirs
_AS_BIDM: _Rows = {
    **{role: (bits, "as BiDM's comparison has it") for role, (bits, _) in _BIDM.items()},
    **_EDGES_FLOAT,
}

_EDGES_8: _Rows = {
    "conv_in": ("W8A8", "the first layer, 8 bits: its input is the image itself"),
    "time_mlp": ("W8A8", "among the first three layers in module order, which the release keeps at 8 bits"),
    "conv_out": ("W8A8", "the last layer, 8 bits: its error is the image's"),
}

_W4A4_BODY: _Rows = {
    "res_conv": ("W4A4", "85 % of the multiply-accumulates"),
    "res_time": ("W4A4", "every Linear"),
    "shortcut": ("W4A4", "every layer, as the papers compare at this width"),
    "down": ("W4A4", "every layer, as the papers compare at this width"),
    "up": ("W4A4", "every layer, as the papers compare at this width"),
    "attn_qkv": ("W4A4", "every layer, as the papers compare at this width"),
    "attn_out": ("W4A4", "every layer, as the papers compare at this width"),
    "attn_matmul": ("float", "no quantiser on the products of attention"),
    "attn_proj": ("W4A4", "the SpatialTransformer's proj_in and proj_out are quantised"),
    "feed_forward": ("W4A4", "the SpatialTransformer's feed-forward is quantised"),
}

_EFFICIENTDM_CODE: _Rows = {
    **_EDGES_8,
    **_W4A4_BODY,
    "shortcut": ("float", "the release skips names that contain 'skip'"),
    "down": ("float", "the release skips names that contain 'op', which is Downsample's"),
    "attn_qkv": ("float", "Conv1d is never matched by the release: float in the LSUN models"),
    "attn_out": ("float", "Conv1d is never matched by the release: float in the LSUN models"),
}

_DILATEQUANT: _Rows = {
    **_W4A4_BODY,
    "conv_in": ("W8A8", "first and last layers at 8 bits (EDA-DM, which the release builds on)"),
    "time_mlp": ("W4A4", "every layer"),
    "conv_out": ("W8A8", "first and last layers at 8 bits (EDA-DM, which the release builds on)"),
    "attn_matmul": ("A4", "query, key and value with per-head tables; the softmax's output takes 8 bits"),
}


def _policy(name: str, nominal: Bits, table: _Rows, **options: Any) -> Policy:
    reasons = {role: reason for role, (_, reason) in table.items()}
    bits = {**FLOAT, **{role: value for role, (value, _) in table.items()}}
    return Policy(name, nominal, MappingProxyType(bits), MappingProxyType(reasons), MappingProxyType(options))


_BINARYDM_EDGES_8: _Rows = {
    **_EDGES_FLOAT,
    "conv_in": ("W8A8", "the paper: layers closest to input and output at 8 bits"),
    "conv_out": ("W8A8", "the paper: layers closest to input and output at 8 bits"),
}

_BINARYDM_INT8: _Rows = {
    **_BINARYDM_EDGES_8,
    "time_mlp": ("W8A8", "not published: in float32 it would be a fifth of a small model's file"),
}

FULL_PRECISION = _policy("float", "float", {})

# method -> variant -> policy; the first variant of a method is its default
POLICIES: Mapping[str, Mapping[str, Policy]] = MappingProxyType(
    {
        "fp32": {"float": FULL_PRECISION},
        "binarydm": {
            "paper": _policy("binarydm/paper", "W1A4", _BINARYDM_EDGES_8 | _BINARYDM_BODY),
            "code": _policy("binarydm/code", "W1A4", _EDGES_FLOAT | _BINARYDM_BODY),
            "int8": _policy("binarydm/int8", "W1A4", _BINARYDM_INT8 | _BINARYDM_BODY),
        },
        "bidm": {
            "paper": _policy("bidm/paper", "W1A1", _BIDM),
            "int8": _policy("bidm/int8", "W1A1", _BIDM_INT8, shortcut_bits="W8A8"),
            "int4": _policy("bidm/int4", "W1A1", _BIDM_INT4, shortcut_bits="W4A4"),
            "binary": _policy("bidm/binary", "W1A1", _BIDM_BINARY, shortcut_bits="W1A4"),
        },
        "xnor": {"paper": _policy("xnor/paper", "W1A1", _BIDM)},
        "dorefa": {"paper": _policy("dorefa/paper", "W1A1", _AS_BIDM)},
        "reactnet": {"paper": _policy("reactnet/paper", "W1A1", _AS_BIDM)},
        "efficientdm": {
            "paper": _policy("efficientdm/paper", "W4A4", _EDGES_8 | _W4A4_BODY),
            "code": _policy("efficientdm/code", "W4A4", _EFFICIENTDM_CODE),
        },
        "dilatequant": {"paper": _policy("dilatequant/paper", "W4A4", _DILATEQUANT)},
        "lsq": {"paper": _policy("lsq/paper", "W4A4", _EDGES_8 | _W4A4_BODY)},
        "ptq": {"paper": _policy("ptq/paper", "W4A4", _EDGES_8 | _W4A4_BODY)},
    }
)


def policy_of(method: str, variant: str | None = None, nominal: Bits | None = None) -> Policy:
    """Return a published policy: the method's first variant by default, at its own bits or at `nominal`.

    Raises `UnsupportedError` for an unknown method or variant.
    """
    if method not in POLICIES:
        raise UnsupportedError(f"method: expected one of {', '.join(POLICIES)}, got {method!r}")
    variants = POLICIES[method]
    chosen = variant or next(iter(variants))
    if chosen not in variants:
        raise UnsupportedError(f"policy: {method} has {', '.join(variants)}, got {chosen!r}")
    policy = variants[chosen]
    return policy if nominal is None else policy.at(nominal)
