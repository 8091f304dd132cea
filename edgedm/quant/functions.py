"""The four differentiable quantisers of low-bit training, with the gradients that their papers define."""

from typing import Any

import torch
from torch import Tensor

INT4_MIN, INT4_MAX = -8, 7


class _SignSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight.abs() <= 1)
        return torch.where(weight >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        inside: Tensor = ctx.saved_tensors[0]
        return grads[0] * inside


class _ScaledSignSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight.abs() <= 1)
        return torch.where(weight >= 0, scale, -scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None


class _SignPolynomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        u: Tensor = ctx.saved_tensors[0]
        return u.abs().mul_(-2).add_(2).clamp_(min=0).mul_(grads[0])


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        scaled = x / step
        code = scaled.round().clamp_(low, high)
        ctx.save_for_backward(scaled, code)
        ctx.limits = (low, high)
        return (code * step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        scaled, code = ctx.saved_tensors
        low, high = ctx.limits
        inside = (scaled >= low) & (scaled <= high)
        slope = (code - scaled.where(inside, 0)).float()
        grad_step = (grads[0].float() * slope).sum() / (scaled.numel() * high) ** 0.5
        return grads[0] * inside, grad_step.reshape(1), None, None


def _apply(function: Any, *inputs: Any) -> Tensor:
    result: Tensor = function.apply(*inputs)  # untyped in torch
    return result


def sign_ste(weight: Tensor) -> Tensor:
    """Return sign(weight) with sign(0) = +1; its gradient passes where |weight| <= 1."""
    return _apply(_SignSTE, weight)


def scaled_sign_ste(weight: Tensor, scale: Tensor) -> Tensor:
    """Return scale sign(weight); the gradient to `weight` has no factor `scale` (BiDM's release), none to `scale`."""
    return _apply(_ScaledSignSTE, weight, scale)


def sign_polynomial(u: Tensor) -> Tensor:
    """Return sign(u) with the piecewise gradient 2 - 2|u| inside [-1, 1] (Bi-Real Net, arXiv 1808.00278 eq. 6)."""
    return _apply(_SignPolynomial, u)


def lsq(x: Tensor, step: Tensor, low: int = INT4_MIN, high: int = INT4_MAX) -> Tensor:
    """Return clamp(round(x / step), low, high) step; `step` f32[1] learns (LSQ, arXiv 1902.08153 eq. 3 and 5).

    The step's gradient is scaled by 1 / sqrt(numel(x) high). Rounding is half to even.
    """
    return _apply(_LSQ, x, step, low, high)


def lsq_initial_step(x: Tensor, high: int = INT4_MAX) -> Tensor:
    """Return LSQ's first step 2 mean|x| / sqrt(high), f32[1]."""
    mean: Tensor = x.detach().float().abs().mean()
    step: Tensor = (mean * (2 / high**0.5)).reshape(1)
    return step
