"""Self-attention of diffusers' UNets in plain operations, with optional 4-bit quantisers on its four operands.

Written out so that the exported graph shows every product: softmax((q d^-1/4)(k d^-1/4)^T) v, the form of LDM's
`QKVAttentionLegacy`, whose operands BinaryDM quantises (methods.md 1.1).
"""

from typing import Any

import torch
from torch import Tensor, nn

from edgedm.errors import UnsupportedError

OPERANDS = ("query", "key", "weight", "value")


class ExplicitAttention(nn.Module):
    """Attention processor for `diffusers.models.attention_processor.Attention` on feature maps f32[N, C, H, W].

    `quantizers` maps the operands query, key, weight (the softmax's output) and value to modules; absent ones
    stay float.
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
        `UnsupportedError` for cross-attention or a mask.
        """
        del temb
        if encoder_hidden_states is not None or attention_mask is not None:
            raise UnsupportedError("attention: cross-attention and masks are not supported, only plain self-attention")
        result: Tensor = super().__call__(attn, hidden_states)
        return result

    def forward(self, attn: Any, hidden_states: Tensor) -> Tensor:
        """Return attention over the H*W positions plus the residual, f32[N, C, H, W]."""
        batch, channels, height, width = hidden_states.shape
        tokens = attn.group_norm(hidden_states.reshape(batch, channels, height * width)).transpose(1, 2)
        head_dim = channels // attn.heads

        def heads(x: Tensor) -> Tensor:
            return x.reshape(batch, height * width, attn.heads, head_dim).transpose(1, 2)

        scale = head_dim**-0.25
        query = self._quantize("query", heads(attn.to_q(tokens)) * scale)
        key = self._quantize("key", heads(attn.to_k(tokens)) * scale)
        value = self._quantize("value", heads(attn.to_v(tokens)))
        weight = self._quantize("weight", torch.softmax(query @ key.transpose(2, 3), dim=-1))
        mixed = (weight @ value).transpose(1, 2).reshape(batch, height * width, channels)
        out = attn.to_out[0](mixed).transpose(1, 2).reshape(batch, channels, height, width)
        result: Tensor = out + hidden_states
        return result

    def _quantize(self, operand: str, x: Tensor) -> Tensor:
        if operand not in self.quantizers:
            return x
        quantized: Tensor = self.quantizers[operand](x)
        return quantized


def make_attention_explicit(unet: nn.Module) -> dict[str, ExplicitAttention]:
    """Install `ExplicitAttention` in every attention block of `unet`; return {block path: processor}."""
    from diffusers.models.attention_processor import Attention

    installed = {}
    for path, module in unet.named_modules():
        if isinstance(module, Attention):
            module.set_processor(ExplicitAttention())
            installed[path] = module.processor
    return installed
