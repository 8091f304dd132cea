"""Where a block lies in a UNet: BinaryDM treats the first and last ones differently."""

from torch import nn

from edgedm.models.roles import output_blocks


def head_and_tail(model: nn.Module) -> list[str]:
    """Return the blocks whose features are at least half as large as the input, BinaryDM's head and tail.

    They are levels 0 and 1 without the second level's downsampler: input_blocks 0..5 and output_blocks 6..11 of
    LDM-4 (methods.md 1.1). Empty for a model that isn't a UNet of diffusers.
    """
    if not hasattr(model, "down_blocks") or not hasattr(model, "up_blocks"):
        return []
    downs = list(model.get_submodule("down_blocks").children())
    found = ["down_blocks.0"]
    if len(downs) > 1:
        parts = ("resnets", "attentions")
        found += [f"down_blocks.1.{part}" for part in parts if getattr(downs[1], part, None) is not None]
    levels = sorted({path.split(".")[1] for path in output_blocks(model)}, key=int)
    return found + [f"up_blocks.{level}" for level in levels[-2:]]
