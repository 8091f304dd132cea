"""Train the zoo, stage by stage, on a CPU; every stage but the classifier keeps its state in --runs and resumes.

for stage in classifier base binarydm bidm xnor efficientdm dilatequant figures; do
    python scripts/train_zoo.py $stage --runs runs
done
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from edgedm.models import load, save
from edgedm.models.checkpoint import ZOO
from edgedm.models.presets import DIGITS
from edgedm.quant.policy import policy_of
from edgedm.training.base import train_base
from edgedm.training.classifier import save_classifier, train_classifier
from edgedm.training.figures import KINDS, classifier_line, evaluate, quality_table, save_figures
from edgedm.training.options import LoopOptions
from edgedm.training.quality import Quality
from edgedm.training.recipes import RECIPES
from edgedm.training.run import run_method

BASE = LoopOptions(iterations=3000, learning_rate=4e-4, batch=64, bf16=True)
FLOAT = "digits-fp32"
DOCS = Path(__file__).parents[1] / "docs" / "zoo"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Model:
    """One low-bit model: its name in the zoo (None: measured, not shipped) and what departs from the defaults."""

    name: str | None
    policy: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    loop: Mapping[str, object] = field(default_factory=dict)


# The 1-bit models also learn the teacher's eps, and BiDM's connection looks as far back as 50 sampling steps do.
MODELS = {
    "binarydm": Model("digits-binarydm-w1a4", "code", {"bases": "none", "lrm": False, "distill": 1.0}),
    "bidm": Model("digits-bidm-w1a1", None, {"distill": 1.0, "gap": 20}),
    "xnor": Model(None),
    "efficientdm": Model("digits-efficientdm-w4a4", loop={"iterations": 8000}),
    "dilatequant": Model("digits-dilatequant-w4a4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["classifier", "base", *MODELS, "figures"])
    parser.add_argument("--runs", type=Path, required=True, help="folder of resumable states and curves")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=500, help="images a figure")
    parser.add_argument("--only", nargs="*", help="figures: only these models")
    parser.add_argument("--kinds", nargs="*", default=KINDS, help="figures: only these kinds of samples")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.stage == "classifier":
        model, accuracy = train_classifier()
        print(f"held-out accuracy {accuracy:.4f}")
        save_classifier(model)
    elif arguments.stage == "base":
        save(train_base(DIGITS, arguments.runs, BASE), ZOO / FLOAT)
    elif arguments.stage == "figures":
        figures(arguments.samples, arguments.only, arguments.kinds, arguments.runs)
    else:
        low_bit(arguments.stage, arguments.runs)


def low_bit(method: str, runs: Path) -> None:
    """Train one low-bit model, ship it, and keep its loss curves beside its figures."""
    model = MODELS[method]
    loop = dataclasses.replace(RECIPES[method].loop, **model.loop)
    policy = policy_of(method, model.policy)
    trained = run_method(load(f"zoo:{FLOAT}"), method, runs / method, policy=policy, options=model.options, loop=loop)
    name = model.name or method
    save(trained.checkpoint, ZOO / name if model.name else runs / method / "checkpoint")
    record = {"loop": dataclasses.asdict(loop), "figures": trained.figures, "curves": trained.curves}
    (DOCS / f"{name}.curve.json").write_text(json.dumps(record, indent=1) + "\n")


def figures(samples: int, only: list[str] | None, kinds: list[str], runs: Path) -> None:
    """Measure the models and write the tables of `docs/zoo.md`."""
    DOCS.mkdir(parents=True, exist_ok=True)
    shipped = [model.name for model in MODELS.values() if model.name]
    sources = {name: f"zoo:{name}" for name in (FLOAT, *shipped)} | {"xnor": str(runs / "xnor" / "checkpoint")}
    for name, source in sources.items():
        if only is None or name in only:
            save_figures(evaluate(source, samples, DOCS / name, kinds), DOCS / f"{name}.json")
    rows = {}
    for name in sources:
        path = DOCS / f"{name}.json"
        if path.exists():
            rows[name] = {kind: Quality(**values) for kind, values in json.loads(path.read_text()).items()}
    text = f"{classifier_line()}\n\n{quality_table(rows)}"
    page = DOCS.with_suffix(".md")
    head, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
