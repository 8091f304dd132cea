"""What is compared: families of rows that add one part of a method at a time, at equal budgets inside a family."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgedm.models.bits import Bits
from edgedm.quant.api import method_options
from edgedm.quant.policy import Policy, policy_of
from edgedm.training.options import LoopOptions
from edgedm.training.recipes import RECIPES

SAMPLES = 500  # images that the figures are of, evenly over the ten digits
STEPS = 50  # DDIM steps they are drawn with
GAP = 20  # timesteps between two of them, which BiDM's connection is trained for


@dataclass(frozen=True)
class Row:
    """One line of the table: a method at some bits with some options and a budget.

    `loop` replaces fields of the recipe's loop. `trace` evaluates the student on the way. `code_changes` reports the
    share of integer weights that training changes, `dilation` what dilation does to each layer.
    """

    family: str
    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    nominal: Bits | None = None
    loop: Mapping[str, Any] = field(default_factory=dict)
    trace: bool = False
    code_changes: bool = False
    dilation: bool = False

    @property
    def key(self) -> str:
        """The row's name in file names and on the command line."""
        return f"{self.family}/{self.name}".replace(" ", "")

    @property
    def policy(self) -> Policy:
        """Bits of every role."""
        return policy_of(self.method, nominal=self.nominal)

    def loop_options(self, seed: int, scale: float = 1.0) -> LoopOptions:
        """Return the budget, its iterations times `scale`."""
        loop = replace(RECIPES[self.method].loop, **{"bf16": False, **self.loop})
        iterations = max(1, round(loop.iterations * scale)) if loop.iterations else 0
        return replace(
            loop,
            iterations=iterations,
            warm_up=min(loop.warm_up, iterations // 10),
            seed=seed,
            save_every=max(1, iterations),
        )

    def configuration(self, seed: int, scale: float, base: str) -> dict[str, Any]:
        """Return all that a cell's figures depend on; `base` is the digest of the float model."""
        return {
            "method": self.method,
            "bits": dict(self.policy.bits),
            "options": method_options(self.method, self.options).model_dump(mode="json"),
            "loop": asdict(self.loop_options(seed, scale)),
            "samples": samples(scale),
            "steps": STEPS,
            "base": base,
            "trace": self.trace,
            "code_changes": self.code_changes,
            "dilation": self.dilation,
        }


def digest(configuration: Mapping[str, Any]) -> str:
    """Return a short hash of a configuration."""
    text = json.dumps(configuration, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def samples(scale: float) -> int:
    """Return how many images a cell draws: `SAMPLES`, fewer where `scale` < 1, at least ten."""
    return max(10, round(SAMPLES * min(1.0, scale)))


_QAT = {"iterations": 500, "batch": 32, "learning_rate": 1e-3, "ema_decay": 0.99}
_BINARYDM = {"lrm": False}
_BIDM = {"filter": "learned", "tbs": False, "distillation": "none", "gap": GAP}
_EFFICIENT = {"trajectory_steps": STEPS}
_EFFICIENT_BARE = {**_EFFICIENT, "scale_aware": False, "talsq": False}
_EFFICIENT_LOOP = {"iterations": 700, "batch": 16}
_DILATE = {"dilate": False, "tpq": False, "bkd": False, "bins": 50, "calibration_samples": 2000}
_DILATE_LOOP = {"iterations": 100, "batch": 32}

ROWS: tuple[Row, ...] = (
    Row("binarydm", "vanilla", "binarydm", {**_BINARYDM, "bases": "none"}, loop=_QAT),
    Row("binarydm", "+LMB", "binarydm", {**_BINARYDM, "bases": "lmb"}, loop=_QAT),
    Row("binarydm", "+LMB+LRM", "binarydm", {"bases": "lmb"}, loop=_QAT),
    Row("binarydm", "+EBB", "binarydm", {**_BINARYDM, "bases": "ebb"}, loop=_QAT),
    Row("binarydm", "+EBB+LRM", "binarydm", {"bases": "ebb"}, loop=_QAT),
    Row("bidm", "XNOR", "bidm", {**_BIDM, "filter": "fixed"}, loop=_QAT),
    Row("bidm", "+learned k", "bidm", _BIDM, loop=_QAT),
    Row("bidm", "+TBS", "bidm", {**_BIDM, "tbs": True}, loop=_QAT),
    Row("bidm", "+SPD", "bidm", {**_BIDM, "distillation": "spd"}, loop=_QAT),
    Row("bidm", "+TBS+SPD", "bidm", {**_BIDM, "tbs": True, "distillation": "spd"}, loop=_QAT),
    Row("w1a1", "DoReFa", "dorefa", loop=_QAT),
    Row("w1a1", "DoReFa signed", "dorefa", {"inputs": "signed"}, loop=_QAT),
    Row("w1a1", "ReActNet", "reactnet", loop=_QAT),
    Row("efficientdm", "PTQ", "ptq", {"weights": "minmax"}),
    Row("efficientdm", "+QALoRA", "efficientdm", _EFFICIENT_BARE, loop=_EFFICIENT_LOOP, code_changes=True),
    Row(
        "efficientdm",
        "+scale-aware",
        "efficientdm",
        {**_EFFICIENT_BARE, "scale_aware": True},
        loop=_EFFICIENT_LOOP,
        code_changes=True,
    ),
    Row("efficientdm", "+TALSQ", "efficientdm", _EFFICIENT, loop=_EFFICIENT_LOOP, code_changes=True, trace=True),
    Row("dilatequant", "PTQ", "dilatequant", _DILATE, loop=_DILATE_LOOP),
    Row("dilatequant", "+TPQ", "dilatequant", {**_DILATE, "tpq": True}, loop=_DILATE_LOOP),
    Row(
        "dilatequant",
        "+TPQ+WD",
        "dilatequant",
        {**_DILATE, "tpq": True, "dilate": True},
        loop=_DILATE_LOOP,
        dilation=True,
    ),
    Row("dilatequant", "+TPQ+BKD", "dilatequant", {**_DILATE, "tpq": True, "bkd": True}, loop=_DILATE_LOOP),
    Row(
        "dilatequant",
        "+TPQ+WD+BKD",
        "dilatequant",
        {**_DILATE, "tpq": True, "bkd": True, "dilate": True},
        loop=_DILATE_LOOP,
    ),
    Row("w4a4", "PTQ mse", "ptq"),
    Row("w4a4", "LSQ", "lsq", loop={"iterations": 800, "learning_rate": 4e-4, "ema_decay": 0.99}, trace=True),
    Row("w2a4", "LSQ W2A4", "lsq", nominal="W2A4", loop={"iterations": 800, "ema_decay": 0.99}),
)
