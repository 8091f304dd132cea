"""Attention of diffusers' denoisers in plain operations, with optional quantisers on its four operands.

Written out so that the exported graph shows every product: softmax((q d^-1/4)(k d^-1/4)^T) v, the form of LDM's
`QKVAttentionLegacy`, whose operands BinaryDM quantises.
"""

from typing import Any

import torch
from torch import Tensor, nn

from edgedm.errors import UnsupportedError

OPERANDS = ("query", "key", "weight", "value")


class ExplicitAttention(nn.Module):
    """Processor for `diffusers.models.attention_processor.Attention`: self-attention on feature maps f32[N, C, H, W]
    or tokens f32[N, L, C], and cross-attention from either to tokens.

    `quantizers` maps the operands query, key, weight (the softmax's output) and value, all [N, heads, L, d], to
    modules; absent ones stay float.
    """

    def __init__(self, quantizers: dict[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.quantizers = nn.ModuleDict(quantizers or {})

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Call `forward`; diffusers reads this signature to learn what a processor takes.

        `temb` is handed to every processor; nothing here depends on the time embedding. Raises
        `UnsupportedError` for a mask.
        """
        del temb
        if attention_mask is not None:
            raise UnsupportedError("attention: masks are not supported")
        result: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states)
        return result

    def forward(self, attn: Any, hidden_states: Tensor, context: Tensor | None = None) -> Tensor:
        """Return attention over positions, projected, plus the residual where `attn` has one; as `hidden_states`."""
        batch, shape = hidden_states.shape[0], hidden_states.shape
        tokens = hidden_states.flatten(2) if hidden_states.ndim == 4 else hidden_states.transpose(1, 2)
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens)
        tokens = tokens.transpose(1, 2)
        if context is None:
            context = tokens
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)

        def heads(x: Tensor) -> Tensor:
            return x.reshape(batch, x.shape[1], attn.heads, x.shape[2] // attn.heads).transpose(1, 2)

        query, key, value = heads(attn.to_q(tokens)), heads(attn.to_k(context)), heads(attn.to_v(context))
        scale = query.shape[-1] ** -0.25
        query, key = self._quantize("query", query * scale), self._quantize("key", key * scale)
        value = self._quantize("value", value)
        weight = self._quantize("weight", torch.softmax(query @ key.transpose(2, 3), dim=-1))
        out: Tensor = attn.to_out[0]((weight @ value).transpose(1, 2).flatten(2))
        if hidden_states.ndim == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + hidden_states
        return out if attn.rescale_output_factor == 1 else out / attn.rescale_output_factor

    def _quantize(self, operand: str, x: Tensor) -> Tensor:
        if operand not in self.quantizers:
            return x
        quantized: Tensor = self.quantizers[operand](x)
        return quantized


def make_attention_explicit(model: nn.Module) -> dict[str, ExplicitAttention]:
    """Install `ExplicitAttention` in every attention block of `model` that lacks it; return {block path: processor}.

    Raises `UnsupportedError` for a block that normalises queries and keys or depends on a spatial norm; none is
    changed then.
    """
    blocks, installed = attention_blocks(model), {}
    for path, block in blocks.items():
        if not isinstance(block.processor, ExplicitAttention):
            block.set_processor(ExplicitAttention())
        installed[path] = block.processor
    return installed


def attention_blocks(model: nn.Module) -> dict[str, Any]:
    """Return the attention blocks of diffusers in `model` by path; raises as `make_attention_explicit` does."""
    from diffusers.models.attention_processor import Attention

    blocks = {path: module for path, module in model.named_modules() if isinstance(module, Attention)}
    for path, block in blocks.items():
        for part in ("norm_q", "norm_k", "spatial_norm", "add_k_proj"):
            if getattr(block, part, None) is not None:
                raise UnsupportedError(f"attention '{path}': {part} is not supported")
    return blocks
