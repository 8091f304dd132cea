"""What all verbs share: `--json`, `--quiet`, the exit codes, and errors as one readable message."""

import dataclasses
import errno
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import click

from edgedm import progress
from edgedm.atomic import check_place
from edgedm.errors import EdgedmError, InvalidModelError, ToolchainError
from edgedm.outcome import Outcome

OK, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_PLACES = ("output", "runs", "log", "dump", "html", "markdown", "junit")  # options that name what is written

_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}

_EXTRA_OF = {
    "torch": "train",
    "diffusers": "train",
    "accelerate": "train",
    "sklearn": "train",
    "onnx": "compile",
    "onnx_ir": "compile",
    "onnxscript": "compile",
    "onnxsim": "compile",
    "tvm": "compile",
    "ziglang": "compile",
    "elftools": "compile",
    "jinja2": "compile",
    "rich": "compile",
    "PIL": "train",
    "tensorboard": "train",
    "safetensors": "compile",
    "onnxruntime": "bench",
}


def verb(
    show: Callable[[Outcome], None], complain: Callable[[Outcome], str] | None = None
) -> Callable[[Callable[..., Outcome]], Callable[..., None]]:
    """Turn a function that returns an `Outcome` into the body of a click command.

    Adds `--json` (one object on standard output: ok, figures, details) and `--quiet` (no progress, no
    summary). `show` prints the outcome for people; `complain` says in a line or two what is off, which a failed check
    prints on standard error when `--quiet` leaves out the rest. A place below a file, or that is a pipe, is refused
    before `run` is called.
    """

    def decorate(run: Callable[..., Outcome]) -> Callable[..., None]:
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON object: ok, figures, details.")
        @click.option("--quiet", "-q", is_flag=True, help="No progress and no summary.")
        @functools.wraps(run)
        def body(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> None:
            progress.enabled = not (quiet or as_json)
            try:
                for name in _PLACES:
                    if kwargs.get(name):
                        check_place(kwargs[name])
                outcome = _with_readable_errors(run, *args, **kwargs)
            except KeyboardInterrupt as error:
                click.echo(f"edgedm: {str(error) or 'interrupted; nothing was written'}", err=True)
                sys.exit(INTERRUPTED)
            except EdgedmError as error:
                if as_json:
                    details = {"error": str(error), "kind": type(error).__name__}
                    click.echo(json.dumps({"ok": False, "figures": {}, "details": details}))
                click.echo(f"edgedm: {error}", err=True)
                sys.exit(BAD_INPUT)
            if as_json:
                click.echo(json.dumps(dataclasses.asdict(outcome)))
            elif not quiet:
                show(outcome)
            elif complain is not None and not outcome.ok:
                click.echo(f"edgedm: {complain(outcome)}", err=True)
            sys.exit(OK if outcome.ok else CHECK_FAILED)

        return body

    return decorate


def _with_readable_errors(run: Callable[..., Outcome], *args: Any, **kwargs: Any) -> Outcome:
    """Run, turning a missing extra and an operating system's refusal (full disk, no permission) into ours."""
    try:
        return run(*args, **kwargs)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA_OF:
            raise
        extra = _EXTRA_OF[package]
        raise ToolchainError(
            f"this verb needs the Python package `{package}`: pip install 'edgedm[{extra}]'"
        ) from error
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        unnamed = "output" if error.errno in _OF_WRITING else "a file that was read or written"
        raise InvalidModelError(f"{error.filename or unnamed}: {error.strerror}") from error


def show_figures(outcome: Outcome) -> None:
    """Print the figures, one a line, then the files that were written."""
    for name, value in outcome.figures.items():
        click.echo(f"{name:<40} {value:,.0f}" if float(value).is_integer() else f"{name:<40} {value:,.6g}")
    for path in outcome.details.get("written", []):
        click.echo(f"wrote {path}")
