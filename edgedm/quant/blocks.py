"""Where a block lies in a UNet of diffusers: BinaryDM treats the first and last ones differently, and starts in the
middle. Blocks are those of LDM's UNet, given as prefixes of module paths."""

from torch import nn


def head_and_tail(model: nn.Module, count: int | None = None) -> list[str]:
    """Return the modules of the first and last `count` blocks, BinaryDM's head and tail.

    By default they are the blocks whose features are at least half as large as the input: levels 0 and 1 without
    the second level's downsampler, input_blocks 0..5 and output_blocks 6..11 of LDM-4, six at each end. conv_in counts
    as the first input block. Empty for a model that isn't a UNet of diffusers.
    """
    if not _is_unet(model):
        return []
    first, last = input_parts(model), output_parts(model)
    if count is None:
        downs, ups = _children(model, "down_blocks")[:2], _children(model, "up_blocks")[-2:]
        samplers = len(downs) - 1
        heads, tails = 1 + sum(map(_length, downs)) + samplers, sum(map(_length, ups))
    else:
        heads = tails = count
    return [path for part in first[:heads] + last[max(0, len(last) - tails) :] for path in part]


def outwards(model: nn.Module) -> list[list[str]]:
    """Return the modules of the middle block, then those of each level, the deepest first: the warm-up's order.

    A level's input blocks begin with the downsampler that leads to it (LDM's input_blocks 9..11 are the deepest of
    four levels). Empty for a model that isn't a UNet of diffusers.
    """
    if not _is_unet(model):
        return []
    downs, ups = _children(model, "down_blocks"), _children(model, "up_blocks")
    groups = [["mid_block"]]
    for level in reversed(range(len(downs))):
        paths = [f"down_blocks.{level}.resnets", f"down_blocks.{level}.attentions"]
        if level:
            paths.append(f"down_blocks.{level - 1}.downsamplers")
        groups.append([*paths, f"up_blocks.{len(ups) - 1 - level}"])
    return groups


def inside(path: str, prefixes: list[str]) -> bool:
    """Return whether a module lies in one of the modules `prefixes`."""
    return any(path == prefix or path.startswith(prefix + ".") for prefix in prefixes)


def input_parts(model: nn.Module) -> list[list[str]]:
    """Return the modules of each input block: conv_in, residual blocks with their attention, downsamplers."""
    parts = [["conv_in"]]
    for level, block in enumerate(_children(model, "down_blocks")):
        parts += [_part(f"down_blocks.{level}", block, index) for index in range(_length(block))]
        if getattr(block, "downsamplers", None):
            parts.append([f"down_blocks.{level}.downsamplers"])
    return parts


def output_parts(model: nn.Module) -> list[list[str]]:
    """Return the modules of each output block; the last one of a level has the upsampler."""
    parts = []
    for level, block in enumerate(_children(model, "up_blocks")):
        parts += [_part(f"up_blocks.{level}", block, index) for index in range(_length(block))]
        if getattr(block, "upsamplers", None):
            parts[-1].append(f"up_blocks.{level}.upsamplers")
    return parts


def _part(prefix: str, block: nn.Module, index: int) -> list[str]:
    kinds = ("resnets", "attentions")
    return [f"{prefix}.{kind}.{index}" for kind in kinds if getattr(block, kind, None) is not None]


def _is_unet(model: nn.Module) -> bool:
    sides = [getattr(model, name, None) for name in ("down_blocks", "up_blocks")]
    blocks = [block for side in sides if isinstance(side, nn.Module) for block in side.children()]
    return all(sides) and all(isinstance(getattr(block, "resnets", None), nn.Module) for block in blocks)


def _children(model: nn.Module, name: str) -> list[nn.Module]:
    return list(model.get_submodule(name).children())


def _length(block: nn.Module) -> int:
    return len(block.get_submodule("resnets")._modules)
