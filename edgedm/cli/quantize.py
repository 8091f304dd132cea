"""`edgedm quantize`: train or fine-tune a low-bit checkpoint."""

import json
import os
from typing import Any

import click

from edgedm.cli.common import OK, show_figures, verb
from edgedm.errors import UnsupportedError
from edgedm.outcome import Outcome

# Written out, because the recipes import torch and `--help` shall answer at once.
METHODS = {
    "binarydm": "W1A4: learned bases, distillation in a low-rank space (arXiv 2404.05662)",
    "bidm": "W1A1: cross-timestep connection, patch distillation (arXiv 2412.05926)",
    "efficientdm": "W4A4 and others, data-free: low-rank updates, a row a timestep (arXiv 2310.03270)",
    "dilatequant": "W4A4 and others, data-free: weight dilation, block-wise (arXiv 2409.14307)",
    "xnor": "W1A1 baseline: XNOR-Net (arXiv 1603.05279)",
    "dorefa": "W1A1 baseline: DoReFa-Net (arXiv 1606.06160)",
    "reactnet": "W1A1 baseline: ReActNet (arXiv 2003.03488)",
    "lsq": "W4A4 baseline: learned step sizes (arXiv 1902.08153)",
    "ptq": "W4A4 baseline: calibrated, not trained",
}


def _show(outcome: Outcome) -> None:
    if "finished" in outcome.details:
        click.echo(f"{outcome.details['finished']}: finished already with these settings; nothing to do")
        return
    if "tables" not in outcome.details:
        show_figures(outcome)
        return
    from edgedm.inspection import render

    render(outcome)


@click.command(
    name="quantize",
    short_help="train / fine-tune a low-bit checkpoint",
    epilog="\b\nMethods:\n" + "\n".join(f"  {name:<12} {text}" for name, text in METHODS.items()),
)
@click.option("--method", required=True, type=click.Choice(list(METHODS)), metavar="NAME", help="One of those below.")
@click.option(
    "--base",
    default="zoo:digits-fp32",
    show_default=True,
    help="The full-precision model: zoo:NAME, preset:NAME, a checkpoint folder, or a local folder of diffusers.",
)
@click.option(
    "--null-class",
    type=click.IntRange(0),
    help="Of a folder of diffusers with classes: the label that means none, which the folder does not say.",
)
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help="digits, folder:PATH (PNG, JPEG; class folders become labels), cifar10:PATH (binary version), or none.",
)
@click.option("--conditions", metavar="FILE", help="Of a base that reads text: prompts as .npy, float32 [N, T, D].")
@click.option("--negative", metavar="FILE", help="Its negative prompt as .npy, float32 [T, D] (default: zeros).")
@click.option(
    "--policy",
    metavar="NAME",
    help="Which choice of layers and bits, such as paper or code (default: the method's first; see --describe).",
)
@click.option("--bits", help="The policy at another width, such as W6A6.")
@click.option(
    "--option",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the method, which wins over what the policy implies; repeatable. See --describe.",
)
@click.option(
    "--iterations",
    type=click.IntRange(1),
    help="Training iterations, of dilatequant those of each block (default: the method's).",
)
@click.option("--batch", type=click.IntRange(1), help="Samples a process and iteration (default: the method's).")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="Peak learning rate; of efficientdm and dilatequant a factor of their rates (default: the method's).",
)
@click.option(
    "--ema",
    type=click.FloatRange(0, 1, max_open=True),
    help="Decay of the weights' average, 0 for none (default: the method's).",
)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="Of the forward passes (default: the method's).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random.")
@click.option("--save-every", type=click.IntRange(1), help="Iterations between saved states (default: the method's).")
@click.option(
    "--runs",
    type=click.Path(file_okay=False),
    help="Where states and curves live, in a folder METHOD (default: OUTPUT.training beside the output).",
)
@click.option("--log", type=click.Path(file_okay=False), help="Write TensorBoard events to this folder.")
@click.option("--restart", is_flag=True, help="Discard the states of an earlier training that did not end.")
@click.option("--overwrite", is_flag=True, help="Replace the finished checkpoint at OUTPUT.")
@click.option("--dry-run", is_flag=True, help="Show each layer's bits and why, and sizes; train nothing.")
@click.option("--describe", is_flag=True, help="Show the method's options and policies; train nothing.")
@click.option("-o", "--output", type=click.Path(file_okay=False), help="The checkpoint to write.")
@verb(_show)
def command(
    method: str,
    base: str,
    data: str,
    policy: str | None,
    bits: str | None,
    pairs: tuple[str, ...],
    dry_run: bool,
    describe: bool,
    output: str | None,
    runs: str | None,
    log: str | None,
    restart: bool,
    overwrite: bool,
    null_class: int | None,
    conditions: str | None,
    negative: str | None,
    **loop: Any,
) -> Outcome:
    """Train a low-bit checkpoint from a full-precision one.

    The same command goes on where a killed one stopped: its states lie in OUTPUT.training (or --runs) until the
    checkpoint is written; the loss curves stay there. Once it is written, the same command does nothing.

    \b
    Many GPUs: accelerate launch --num_processes 4 -m edgedm.cli quantize ...
    Many processes on CPUs: torchrun --nproc_per_node 4 -m edgedm.cli quantize ...
    """
    if not (dry_run or describe or output):
        raise click.UsageError("Missing option '-o' / '--output' (or --dry-run, --describe).")
    from edgedm.training import api, plan, processes

    options = _parse(pairs)
    chosen = api.choose_policy(method, policy, bits)
    if describe:
        return plan.describe(method, None if policy is None and bits is None else chosen)
    if dry_run:
        settings = api.loop_options(method, **loop)
        return plan.plan(
            base,
            method,
            chosen,
            options=options,
            data=data,
            loop=settings,
            null_class=null_class,
            conditions=conditions,
            negative=negative,
        )
    try:
        outcome = api.train_checkpoint(
            base,
            method,
            chosen,
            data=data,
            output=str(output),
            options=options,
            runs=runs,
            log=log,
            restart=restart,
            overwrite=overwrite,
            null_class=null_class,
            conditions=conditions,
            negative=negative,
            **loop,
        )
    finally:
        processes.leave()
    if os.environ.get("RANK", "0") != "0":  # set by launchers: only the main process speaks
        raise SystemExit(OK)
    return outcome


def _parse(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read NAME=VALUE texts; lists are written as JSON. The method's `Options` gives values their types."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UnsupportedError(f"--option: expected NAME=VALUE, got {pair!r}")
        options[name] = value
        if value == "null" or value[:1] in ("[", "{"):
            try:
                options[name] = json.loads(value)
            except ValueError as error:
                raise UnsupportedError(f"--option {name}: {value!r} is no JSON: {error}") from error
    return options
