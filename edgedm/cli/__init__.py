"""The command line: one file a verb, each a thin shell over the function of the same name in `edgedm`.

Verbs are imported only when they run or their help is asked for, and import what they need inside, so
`edgedm --help` answers at once.
"""

import importlib

import click

import edgedm

_VERBS = (
    "demo",
    "import",
    "quantize",
    "export",
    "optimize",
    "compile",
    "sign",
    "verify",
    "sample",
    "bench",
    "run-on",
    "package",
    "web",
    "inspect",
    "targets",
)
_MODULES = {"import": "import_checkpoint", "run-on": "run_on"}  # a keyword of Python, and no name of it


class _Verbs(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        command = importlib.import_module(f"edgedm.cli.{_MODULES.get(name, name)}").command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(edgedm.__version__, prog_name="edgedm")
def main() -> None:
    """Run trained low-bit diffusion models on the devices people have.

    \b
    checkpoint --export--> graph --optimize--> graph --compile--> bundle --sample--> images
    `edgedm demo` shows the whole way on a built-in model.

    Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted.
    """
