"""A UNet with the signature of the exported graph: everything that crosses denoising steps is an argument."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgedm.ops import timestep_lookup


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

    def __call__(self, _module: nn.Module, _inputs: Any, feature: Tensor) -> Tensor:
        if self.carry.coefficients is None:
            return feature
        c = self.carry.coefficients[self.column]
        return (1 - c) * feature + c * self.carry.state[self.tap]


class _Record:
    """Forward hook that keeps one feature for the next step."""

    def __init__(self, carry: Carry) -> None:
        self.carry = carry

    def __call__(self, _module: nn.Module, _inputs: Any, feature: Tensor) -> None:
        self.carry.next.append(feature)


class Denoiser(nn.Module):
    """A diffusers `UNet2DModel` plus BiDM's cross-timestep connection (TBS, arXiv 2412.05926 eq. 12).

    At tap j the feature h_j becomes (1 - c) h_j + c h_j^prev, where h_j^prev is what left the same tap in the
    previous (noisier) denoising step and c = `cache_coefficients`[bin of the timestep, j]; on the first step of a
    trajectory (`has_state` 0) nothing is mixed. Without taps it is the UNet alone. `mixes` {module: tap} says which
    modules are mixed, each with what left a tap in the previous step, and orders the table's columns; by default
    every tap is mixed with its own (BiDM's release for CIFAR-10 mixes attention with the upsampler before). A UNet
    without class embedding is `conditional` False: class labels are no input then, and ignored where they are given.
    """

    def __init__(
        self,
        unet: nn.Module,
        taps: list[str] | None = None,
        edges: list[int] | None = None,
        mixes: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.conditional = getattr(unet, "class_embedding", None) is not None
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
        condition = ["class_labels"] if self.conditional else []
        return ["x", "timestep", *condition, *(["has_state", *state] if state else [])]

    @property
    def output_names(self) -> list[str]:
        """Return the names of `forward`'s outputs in order."""
        return ["eps", *(f"state.{path}.next" for path in self.taps)]

    def state_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """Return the shape of each carried tensor for one image of `height` x `width`."""
        parameter = next(self.parameters())
        channels = self.unet.get_parameter("conv_in.weight").shape[1]
        x = torch.zeros(1, channels, height, width, dtype=parameter.dtype)
        zero = torch.zeros(1, dtype=torch.int64)
        with torch.no_grad():
            self.record(x, zero, zero)
        return [tuple(feature.shape) for feature in self.carry.next]

    def zero_state(self, height: int, width: int) -> list[Tensor]:
        """Return zero tensors for the state inputs of a trajectory's first step."""
        return [torch.zeros(shape) for shape in self.state_shapes(height, width)]

    def record(self, x: Tensor, timestep: Tensor, class_labels: Tensor | None) -> Tensor:
        """Run the UNet without mixing and leave the taps' features in `carry.next`."""
        self.carry.coefficients, self.carry.next = None, []
        return self._unet(x, timestep, class_labels)

    def forward(
        self, x: Tensor, timestep: Tensor, *rest: Tensor, class_labels: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return (eps, *next state) of one image x f32[1, C, H, W] at `timestep` int64[1].

        `rest` are the other inputs of `input_names`: `class_labels` int64[1] unless the model is unconditional,
        `has_state` f32[1] of 0 or 1, and one tensor a tap.
        """
        given = list(rest)
        if self.conditional and class_labels is None:
            class_labels = given.pop(0)
        if not self.taps:
            return (self.record(x, timestep, class_labels),)
        has_state, *state = given
        row = timestep_lookup(self.cache_coefficients, self.edges, timestep) * has_state
        return self.mix(x, timestep, class_labels, [row[j] for j in range(len(self.mixes))], state)

    def mix(
        self,
        x: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None,
        coefficients: list[Tensor],
        state: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Run the UNet, mixing `state` into the taps by `coefficients`; return (eps, *next state)."""
        self.carry.coefficients, self.carry.state, self.carry.next = coefficients, state, []
        eps = self._unet(x, timestep, class_labels)
        return (eps, *self.carry.next)

    def _unet(self, x: Tensor, timestep: Tensor, class_labels: Tensor | None) -> Tensor:
        labels = class_labels if self.conditional else None
        eps: Tensor = self.unet(x, timestep, class_labels=labels, return_dict=False)[0]
        return eps
