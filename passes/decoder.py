"""What becomes of a latent model's decoder: the passes that a float graph without timesteps has a use for."""

from collections.abc import Callable

import onnx_ir as ir

from edgedm.passes.base import GraphPass
from edgedm.passes.check import Checker, random_feeds
from edgedm.passes.fuse_group_norm import FuseGroupNorm
from edgedm.passes.regions import Side
from edgedm.passes.simplify import Simplify

DECODER_PIPELINE: list[Callable[[], GraphPass]] = [Simplify, FuseGroupNorm]


def optimize_decoder(
    model: ir.Model, checker: Checker | None = None, after_each: Callable[[int, str], None] | None = None
) -> None:
    """Run the passes on a decoder in place; `after_each(number, name)` is called after every pass.

    With `checker` every pass is checked on a seeded latent; raises `ParityError` for one that breaks the decoder.
    """
    feeds = [random_feeds(model, {}, 0)]
    side = Side(model) if checker is not None else None
    for number, make in enumerate(DECODER_PIPELINE, start=1):
        each = make()
        each(model)
        if after_each is not None:
            after_each(number, each.name)
        if checker is not None and side is not None:
            side = Checker(feeds, checker.verdicts, "decoder: ").check(each, side, model)
