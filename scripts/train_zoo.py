"""Train the zoo, stage by stage, on a CPU; every training stage keeps its state in --runs and resumes.

    for stage in classifier base binarydm bidm xnor figures; do
        python scripts/train_zoo.py $stage --runs runs
    done
"""

import argparse
import json
from pathlib import Path

import torch

from edgedm.models import save
from edgedm.models.checkpoint import ZOO
from edgedm.models.presets import DIGITS
from edgedm.training import quantize
from edgedm.training.base import train_base
from edgedm.training.classifier import save_classifier, train_classifier
from edgedm.training.figures import KINDS, classifier_line, curve_table, evaluate, quality_table, save_figures
from edgedm.training.options import LoopOptions
from edgedm.training.quality import Quality
from edgedm.training.recipes import RECIPES

BASE = LoopOptions(iterations=3000, learning_rate=4e-4, batch=64, bf16=True)
FLOAT = "digits-fp32"
NAMES = {"binarydm": "digits-binarydm-w1a4", "bidm": "digits-bidm-w1a1"}
DOCS = Path(__file__).parents[1] / "docs" / "zoo"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["classifier", "base", *RECIPES, "figures"])
    parser.add_argument("--runs", type=Path, required=True, help="folder of resumable states and curves")
    parser.add_argument("--iterations", type=int, help="instead of the recipe's")
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
        figures(arguments.runs, arguments.samples, arguments.only, arguments.kinds)
    else:
        # the baseline is measured, not shipped
        output = ZOO / NAMES[arguments.stage] if arguments.stage in NAMES else arguments.runs / "xnor" / "checkpoint"
        quantize(
            f"zoo:{FLOAT}",
            arguments.stage,
            output=str(output),
            iterations=arguments.iterations,
            runs=str(arguments.runs),
            threads=arguments.threads,
        )


def figures(runs: Path, samples: int, only: list[str] | None, kinds: list[str]) -> None:
    DOCS.mkdir(parents=True, exist_ok=True)
    sources = {FLOAT: f"zoo:{FLOAT}", **{name: f"zoo:{name}" for name in NAMES.values()}}
    sources["xnor"] = str(runs / "xnor" / "checkpoint")
    for name, source in sources.items():
        if only is None or name in only:
            save_figures(evaluate(source, samples, DOCS / name, kinds), DOCS / f"{name}.json")
    rows = {}
    for name in sources:
        path = DOCS / f"{name}.json"
        if path.exists():
            rows[name] = {kind: Quality(**values) for kind, values in json.loads(path.read_text()).items()}
    curves = {
        stage: json.loads((runs / stage / "curve.json").read_text())["curve"]
        for stage in ("base", *RECIPES)
        if (runs / stage / "curve.json").exists()
    }
    text = "\n\n".join([classifier_line(), quality_table(rows), curve_table(curves)])
    page = DOCS.with_suffix(".md")
    head, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
