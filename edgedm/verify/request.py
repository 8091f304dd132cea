"""What is asked of one run of `verify`: arguments first, then the gate file, then the defaults of edgedm."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedm.errors import UnsupportedError
from edgedm.verify.gate import Gate, Tables, load_gate

STEPS, SAMPLER, IMAGES = 50, "ddim", 10

CHANCE = 1e-3
"""A sign test below this is no chance; with ten runs that takes all of them."""

LEAST_IMAGES = math.ceil(-math.log2(CHANCE))
"""With fewer the sign test cannot fail: 2^-images must be below `CHANCE`."""

SWEEPS = 10
"""Without a number of timesteps, level layer visits all of the schedule and takes so many layers at each that every
layer comes up at about this many: the work of ten timesteps, spread over all of them."""


@dataclass(frozen=True)
class Request:
    """`levels` None: all that fit the artefact. `timesteps` None: all of the schedule, by turns; see `SWEEPS`."""

    levels: tuple[str, ...] | None
    steps: int
    sampler: str
    images: int
    timesteps: int | None
    sample: int | None
    features: Path | None
    chain: Path | None
    bisect: bool
    gate: Gate
    named_by: str = "levels"  # what named the levels: the argument, or a gate file
    illustrated: bool = False  # whether a report will show images, sizes and speed

    def tables(self, method: str) -> Tables:
        """What is demanded of a checkpoint of this method."""
        return self.gate.of_method(method)

    def chosen(self, known: Sequence[str], what: str) -> list[str]:
        """The levels to run, in the order of `known`; UnsupportedError for an unknown one or none."""
        unknown = sorted(set(self.levels or ()) - set(known))
        if unknown or self.levels == ():
            raise UnsupportedError(
                f"{self.named_by}: of {what} there are {', '.join(known)}, got {', '.join(unknown) or 'none'}"
            )
        return [name for name in known if self.levels is None or name in self.levels]

    def visits(self) -> int:
        """How many steps level layer looks at."""
        return self.steps if self.timesteps is None else min(self.timesteps, self.steps)

    def layers_a_visit(self, layers: int) -> int | None:
        """How many of `layers` level layer takes at each of its steps; None: all."""
        if self.timesteps is not None or self.sample is not None or self.steps <= SWEEPS:
            return self.sample
        return -(-layers * SWEEPS // self.steps)


def request_of(
    levels: Sequence[str] | None,
    steps: int | None,
    sampler: str | None,
    images: int | None,
    timesteps: int | None,
    sample: int | None,
    features: str | os.PathLike[str] | None,
    chain: str | os.PathLike[str] | None,
    bisect: bool,
    gate: str | os.PathLike[str] | Gate | None,
    illustrated: bool = False,
) -> Request:
    """Fill in what the arguments leave open; `UnsupportedError` for counts with which nothing would be looked at."""
    for name, count in (("timesteps", timesteps), ("sample", sample), ("steps", steps)):
        if count is not None and count < 1:
            raise UnsupportedError(f"{name}: expected at least 1, got {count}")
    demanded = gate if isinstance(gate, Gate) else load_gate(gate) if gate is not None else Gate()
    beside = Path(gate).parent if isinstance(gate, str | os.PathLike) else Path()
    if features is None and demanded.features is not None:
        features = beside / demanded.features  # named from the gate file's own folder
    given = levels if levels is not None else demanded.levels
    drawn = images if images is not None else demanded.images or IMAGES
    if drawn < LEAST_IMAGES and (given is None or {"step", "trajectory"} & set(given)):
        raise UnsupportedError(f"images: expected at least {LEAST_IMAGES}, with which a fault shows, got {drawn}")
    return Request(
        levels=None if given is None else tuple(given),
        steps=steps or demanded.steps or STEPS,
        sampler=sampler or demanded.sampler or SAMPLER,
        images=drawn,
        timesteps=timesteps or demanded.timesteps,
        sample=sample or demanded.sample,
        features=None if features is None else Path(features),
        chain=None if chain is None else Path(chain),
        bisect=bisect,
        gate=demanded,
        named_by="levels" if levels is not None or isinstance(gate, Gate) else f"{gate}: levels",
        illustrated=illustrated,
    )
