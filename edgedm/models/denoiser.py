"""A UNet with the signature of the exported graph: everything that crosses denoising steps is an argument."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgedm.ops import timestep_lookup

Feature = Tensor | tuple[Tensor, ...]
"""What a module returns; transformers of diffusers wrap it in a tuple."""


class Carry:
    """What the taps of one forward pass read and write; a plain object, so that tracing sees only tensors.

    `coefficients` holds one tensor a mix that broadcasts to its feature, or is None: then nothing is mixed
    and the features are only recorded.
    """

    def __init__(self) -> None:
        self.coefficients: list[Tensor] | None = None
        self.state: list[Tensor] = []
        self.next: list[Tensor] = []


class _Mix:
    """Forward hook that mixes one feature with a carried one; an object, so that a deep copy of the model has its
    own."""

    def __init__(self, carry: Carry, column: int, tap: int) -> None:
        self.carry, self.column, self.tap = carry, column, tap

    def __call__(self, _module: nn.Module, _inputs: Any, feature: Feature) -> Feature:
        if self.carry.coefficients is None:
            return feature
        c = self.carry.coefficients[self.column]
        mixed = (1 - c) * _tensor(feature) + c * self.carry.state[self.tap]
        return (mixed, *feature[1:]) if isinstance(feature, tuple) else mixed


class _Record:
    """Forward hook that keeps one feature for the next step."""

    def __init__(self, carry: Carry) -> None:
        self.carry = carry

    def __call__(self, _module: nn.Module, _inputs: Any, feature: Feature) -> None:
        self.carry.next.append(_tensor(feature))


def _tensor(feature: Feature) -> Tensor:
    return feature[0] if isinstance(feature, tuple) else feature


class Denoiser(nn.Module):
    """A diffusers `UNet2DModel` or `UNet2DConditionModel` plus BiDM's cross-timestep connection (TBS, arXiv
    2412.05926 eq. 12).

    At tap j the feature h_j becomes (1 - c) h_j + c h_j^prev, where h_j^prev is what left the same tap in the
    previous (noisier) denoising step and c = `cache_coefficients`[bin of the timestep, j]; on the first step of a
    trajectory (`has_state` 0) nothing is mixed. Without taps it is the UNet alone. `mixes` {module: tap} says which
    modules are mixed, each with what left a tap in the previous step, and orders the table's columns; by default
    every tap is mixed with its own (BiDM's release for CIFAR-10 mixes attention with the upsampler before). A UNet
    without class embedding is `conditional` False: class labels are no input then, and ignored where they are given.
    With `condition`, (tokens, size), it reads `encoder_hidden_states` f32[1, tokens, size]; zeros mean "none". In
    training `prompts` f32[N, tokens, size] take the place of classes: a label is a row of them.
    """

    def __init__(
        self,
        unet: nn.Module,
        taps: list[str] | None = None,
        edges: list[int] | None = None,
        mixes: Mapping[str, str] | None = None,
        condition: tuple[int, int] | None = None,
        prompts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.condition = unet, condition
        self.register_buffer("prompts", prompts, persistent=False)
        self.prompts: Tensor | None
        self.conditional = getattr(unet, "class_embedding", None) is not None
        self._reads_context = "encoder_hidden_states" in inspect.signature(unet.forward).parameters
        self.taps = list(taps or [])
        self.mixes = dict(mixes or {path: path for path in self.taps})
        self.carry = Carry()
        self.edges: Tensor
        if self.taps:
            bins = torch.tensor(edges, dtype=torch.int64)
            self.register_buffer("edges", bins)
            self.cache_coefficients = nn.Parameter(torch.zeros(len(bins), len(self.mixes)))
        for column, (path, tap) in enumerate(self.mixes.items()):
            unet.get_submodule(path).register_forward_hook(_Mix(self.carry, column, self.taps.index(tap)))
        for path in self.taps:  # after the mixing: what a module was mixed to is what it leaves
            unet.get_submodule(path).register_forward_hook(_Record(self.carry))

    @property
    def input_names(self) -> list[str]:
        """Return the names of `forward`'s inputs in order."""
        state = [f"state.{path}" for path in self.taps]
        conditions = ["class_labels"] if self.conditional else []
        conditions += ["encoder_hidden_states"] if self.condition else []
        return ["x", "timestep", *conditions, *(["has_state", *state] if state else [])]

    @property
    def output_names(self) -> list[str]:
        """Return the names of `forward`'s outputs in order."""
        return ["eps", *(f"state.{path}.next" for path in self.taps)]

    def state_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """Return the shape of each carried tensor for one image of `height` x `width`."""
        parameter = next(self.parameters())
        config: Any = self.unet.config  # diffusers is untyped
        x = torch.zeros(1, config.in_channels, height, width, dtype=parameter.dtype)
        zero = torch.zeros(1, dtype=torch.int64)
        with torch.no_grad():
            self.record(x, zero, zero)
        return [tuple(feature.shape) for feature in self.carry.next]

    def zero_state(self, height: int, width: int) -> list[Tensor]:
        """Return zero tensors for the state inputs of a trajectory's first step."""
        return [torch.zeros(shape) for shape in self.state_shapes(height, width)]

    def record(
        self, x: Tensor, timestep: Tensor, class_labels: Tensor | None, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        """Run the UNet without mixing and leave the taps' features in `carry.next`."""
        self.carry.coefficients, self.carry.next = None, []
        return self._unet(x, timestep, class_labels, encoder_hidden_states)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        *rest: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return (eps, *next state) of one image x f32[1, C, H, W] at `timestep` int64[1].

        `rest` are the other inputs of `input_names`: `class_labels` int64[1] unless the model is unconditional,
        `encoder_hidden_states` where it reads them, `has_state` f32[1] of 0 or 1, and one tensor a tap. A condition
        may be given by name instead.
        """
        given = list(rest)
        if self.conditional and class_labels is None:
            class_labels = given.pop(0)
        if self.condition and encoder_hidden_states is None:
            encoder_hidden_states = given.pop(0)
        if not self.taps:
            return (self.record(x, timestep, class_labels, encoder_hidden_states),)
        has_state, *state = given
        row = timestep_lookup(self.cache_coefficients, self.edges, timestep) * has_state
        coefficients = [row[j] for j in range(len(self.mixes))]
        return self.mix(x, timestep, class_labels, coefficients, state, encoder_hidden_states)

    def mix(
        self,
        x: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None,
        coefficients: list[Tensor],
        state: list[Tensor],
        encoder_hidden_states: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Run the UNet, mixing `state` into the taps by `coefficients`; return (eps, *next state)."""
        self.carry.coefficients, self.carry.state, self.carry.next = coefficients, state, []
        eps = self._unet(x, timestep, class_labels, encoder_hidden_states)
        return (eps, *self.carry.next)

    def no_condition(self, x: Tensor) -> Tensor:
        """Return the `encoder_hidden_states` that mean "none", for `x`: zeros f32[1, tokens, size]."""
        assert self.condition is not None
        return torch.zeros(1, *self.condition, dtype=x.dtype, device=x.device)

    def _unet(
        self, x: Tensor, timestep: Tensor, class_labels: Tensor | None, encoder_hidden_states: Tensor | None
    ) -> Tensor:
        labels = class_labels if self.conditional else None
        context = encoder_hidden_states
        if self.prompts is not None and context is None:
            assert class_labels is not None
            context = self.prompts[class_labels]
        if self.condition:
            context = self.no_condition(x) if context is None else context
            if len(context) != len(x):  # one condition for all images of a batch
                context = context.expand(len(x), -1, -1)
        # only UNet2DConditionModel has the argument, and wants it even where it has no cross-attention
        named = {"encoder_hidden_states": context} if self._reads_context else {}
        eps: Tensor = self.unet(x, timestep, class_labels=labels, return_dict=False, **named)[0]
        return eps
