"""Which runner serves a bundle on this machine."""

from pathlib import Path

from edgedm.bundle import Bundle, load
from edgedm.errors import UnsupportedError
from edgedm.runtime.exec_runner import ExecRunner
from edgedm.runtime.local import LocalRunner
from edgedm.runtime.runner import Runner
from edgedm.targets import resolve, runs_natively


def is_local(bundle: Bundle) -> bool:
    """Whether the bundle's library can be loaded here; otherwise its programs run under an emulator, if at all."""
    return runs_natively(resolve(bundle.manifest.target.name))


def require_native(bundle: Bundle) -> None:
    """Raise UnsupportedError unless the bundle's code runs here without an emulator, whose times would say nothing."""
    if not is_local(bundle):
        raise UnsupportedError(
            f"{bundle.path} is compiled for {bundle.manifest.target.name}, which this machine is not: time it there, "
            f"with `edgedm run-on ssh HOST {bundle.path}`"
        )


def open_runner(bundle: Bundle | str | Path, threads: int = 1, lanes: int = 0) -> Runner:
    """Open a bundle: its library in this process where it can be loaded, its probe under an emulator elsewhere.

    Raises InvalidModelError for an altered bundle, ToolchainError where nothing here can run it.
    """
    opened = bundle if isinstance(bundle, Bundle) else load(bundle)
    return LocalRunner(opened, threads, lanes) if is_local(opened) else ExecRunner(opened, threads, lanes)
