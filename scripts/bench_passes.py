"""Measure what each graph pass gives in nodes, bytes moved and time; write docs/bench/passes.md.

    python scripts/bench_passes.py                                     the digits models that have kernels
    python scripts/bench_passes.py --models zoo:digits-bidm-w1a1       only these; the others keep their figures

A page of another machine is not added to: measure all models, or name another --output. A model is a checkpoint
(`preset:ddpm-cifar10,method=efficientdm` is one too) or an exported graph.

Each model is compiled once with the whole pipeline and once without each pass that applies to it; then all variants
take turns in one run, at one thread.
"""

import argparse
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgedm import progress
from edgedm.bench.ablation import ablate, table
from edgedm.export import export
from edgedm.targets import resolve

MODELS = (
    "zoo:digits-bidm-w1a1",
    "zoo:digits-binarydm-w1a4",
    "zoo:digits-efficientdm-w4a4",
    "zoo:digits-dilatequant-w4a4",
)
DOCS = Path(__file__).parents[1] / "docs" / "bench"

HEAD = """# What each pass gives

`python scripts/bench_passes.py` compiles every model with the whole pipeline and once without each pass that applies
to it, then times all of them in turns, one step at one thread {machine}.
A pass that others build on takes their effect with it, so rows do not add up. *Rewrites* is how often a pass applies;
*MB moved* are the bytes of all operands of kernel calls that are no constants; times are first deciles.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="checkpoints, or graphs from `edgedm export`")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each variant")
    parser.add_argument("--output", type=Path, default=DOCS / "passes.md")
    arguments = parser.parse_args()
    progress.enabled = True
    machine = f"(target {resolve('host').name}, {platform.system()})"
    head = HEAD.format(machine=machine)
    held = sections(arguments.output, machine, [title(model) for model in arguments.models])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        with tempfile.TemporaryDirectory(prefix="edgedm-ablation-") as scratch:
            graph = Path(model)
            if graph.suffix != ".onnx":
                graph = Path(scratch) / "model.onnx"
                export(model, graph)
            name = title(model)
            held[name] = f"## {name}\n\n{table(ablate(graph, Path(scratch), arguments.seconds))}\n"
        page = "\n".join([head, *held.values()])
        arguments.output.write_text(page)  # model by model: an interrupted run keeps what it has
    print(arguments.output)


def title(model: str) -> str:
    """The name of a checkpoint's or a graph's section."""
    return Path(model).stem if model.endswith(".onnx") else model.removeprefix("zoo:")


def sections(page: Path, machine: str, measured: Sequence[str]) -> dict[str, str]:
    """The parts of an earlier page of the same machine by model.

    Ends the program where a page of another machine has some that are not `measured` now, which would be lost.
    """
    head, *parts = (page.read_text() if page.is_file() else "").split("\n## ")
    named = {part.partition("\n")[0]: f"## {part}" for part in parts}
    if machine in head:
        return named
    others = named.keys() - set(measured)
    if others:
        raise SystemExit(
            f"{page}: {', '.join(sorted(others))} were measured elsewhere, not on {machine}; "
            "measure all models here, or name another --output"
        )
    return {}


if __name__ == "__main__":
    main()
