"""Low-bit training from the float base: BinaryDM (W1A4), BiDM (W1A1) and its XNOR-Net baseline."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.models.attention import make_attention_explicit
from edgedm.models.denoiser import Denoiser
from edgedm.models.roles import output_blocks
from edgedm.quant.convert import Method, make_trainable
from edgedm.training.base import LABEL_DROPOUT, Batches
from edgedm.training.loop import LoopOptions, Losses, train
from edgedm.training.losses import spd_loss
from edgedm.training.noising import add_noise

BIN_WIDTH = 10
BINS = 100
INITIAL_MIX = 0.3


@dataclass(frozen=True)
class LowBitOptions:
    """What distinguishes the methods' training.

    `distill` weighs the error to the teacher's eps beside the error to the noise; `spd` weighs BiDM's patch
    distillation; `tbs` adds the cross-timestep connection, whose unroll looks `tbs_gap` timesteps back. The paper
    looks 1 back although sampling with S steps carries the state over 1000 / S; 20 is what 50 steps do.
    """

    method: Method
    batch: int = 32
    distill: float = 0.0
    spd: float = 0.0
    tbs: bool = False
    tbs_gap: int = 20
    label_dropout: float = LABEL_DROPOUT


def tap_paths(unet: nn.Module) -> list[str]:
    """Return the ends of the last two thirds of the output blocks (BiDM: the last 8 of LDM-4's 12)."""
    ends = output_blocks(unet)
    return ends[len(ends) - 2 * len(ends) // 3 :]


def make_student(teacher: nn.Module, options: LowBitOptions) -> Denoiser:
    """Return a trainable low-bit copy of `teacher`, a float UNet."""
    unet = copy.deepcopy(teacher).requires_grad_(True)
    make_attention_explicit(unet)
    make_trainable(unet, options.method)
    taps = tap_paths(unet) if options.tbs else []
    student = Denoiser(unet, taps, list(range(0, BINS * BIN_WIDTH, BIN_WIDTH)))
    if taps:
        nn.init.constant_(student.cache_coefficients, INITIAL_MIX)
    return student


def train_low_bit(
    teacher: nn.Module, low_bit: LowBitOptions, options: LoopOptions, folder: Path
) -> tuple[Denoiser, list[dict[str, float]]]:
    """Train a student of `teacher` (float, frozen, already rounded to float16); return its EMA and the loss curve."""
    torch.manual_seed(options.seed)
    teacher = teacher.eval().requires_grad_(False)
    student = make_student(teacher, low_bit)
    batches = Batches(low_bit.batch, low_bit.label_dropout)
    if low_bit.method == "binarydm" and not (folder / "state.pt").exists():
        _start_steps(student, batches)
    ema = copy.deepcopy(student).requires_grad_(False)
    ours, theirs = Features(student.unet), Features(teacher)

    def loss(generator: torch.Generator) -> Losses:
        images, noise, t, labels, noisy = batches.draw(generator)
        mix: tuple[list[Tensor], list[Tensor]] | None = None
        if low_bit.tbs:
            mix = _unroll(student, images, noise, t, labels, batches.alphas, low_bit.tbs_gap)
        ours.start(low_bit.spd > 0)
        eps = student.record(noisy, t, labels) if mix is None else student.mix(noisy, t, labels, *mix)[0]
        eps = eps.float()
        terms = {"eps": F.mse_loss(eps, noise)}
        total = terms["eps"]
        if low_bit.distill or low_bit.spd:
            theirs.start(low_bit.spd > 0)
            with torch.no_grad():
                target = teacher(noisy, t, class_labels=labels, return_dict=False)[0].float()
            terms["distill"] = F.mse_loss(eps, target)
            total = total + low_bit.distill * terms["distill"]
        if low_bit.spd:
            with torch.autocast("cpu", enabled=False):
                terms["spd"] = spd_loss(ours.kept, theirs.kept)
            total = total + low_bit.spd * terms["spd"]
        return {"loss": total, **terms}

    curve = train(low_bit.method, student, ema, loss, options, folder)
    return ema, curve


class Features:
    """Outputs of the blocks of a UNet (input, middle and output blocks), for distillation."""

    def __init__(self, unet: nn.Module) -> None:
        self.kept: list[Tensor] = []
        self.keep = False
        for path in block_ends(unet):
            unet.get_submodule(path).register_forward_hook(self._hook)

    def start(self, keep: bool) -> None:
        """Forget the features of the last pass; keep those of the next one if `keep`."""
        self.kept, self.keep = [], keep

    def _hook(self, _module: nn.Module, _inputs: object, feature: Tensor) -> None:
        if self.keep:
            self.kept.append(feature)


def block_ends(unet: nn.Module) -> list[str]:
    """Return the modules that end the input, middle and output blocks, LDM's `TimestepEmbedSequential`s."""
    ends = []
    for level, block in enumerate(unet.get_submodule("down_blocks").children()):
        part = "resnets" if getattr(block, "attentions", None) is None else "attentions"
        ends += [f"down_blocks.{level}.{part}.{i}" for i in range(len(block.get_submodule("resnets")._modules))]
        if getattr(block, "downsamplers", None):
            ends.append(f"down_blocks.{level}.downsamplers.0")
    return [*ends, "mid_block", *output_blocks(unet)]


def _unroll(
    student: Denoiser, images: Tensor, noise: Tensor, t: Tensor, labels: Tensor, alphas: Tensor, gap: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the mix coefficients [N, 1, 1, 1] of each tap and the detached features of timestep t + gap.

    A trajectory has no state at its first step, so nothing is mixed where t + gap leaves the schedule.
    """
    before = (t + gap).clamp(max=len(alphas) - 1)
    with torch.no_grad():
        student.record(add_noise(images, noise, before, alphas), before, labels)
    state = [feature.detach() for feature in student.carry.next]
    has_state = (t + gap < len(alphas)).float()[:, None]
    rows = student.cache_coefficients[t // BIN_WIDTH] * has_state
    mixes = [rows[:, j, None, None, None].to(feature.dtype) for j, feature in enumerate(state)]
    return mixes, state


def _start_steps(student: Denoiser, batches: Batches) -> None:
    generator = torch.Generator().manual_seed(0)
    _, _, t, labels, noisy = batches.draw(generator)
    with torch.no_grad():
        student.record(noisy, t, labels)
