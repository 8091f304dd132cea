"""Which runner serves a bundle on this machine."""

from pathlib import Path

from edgedm.bundle import Bundle, load
from edgedm.errors import UnsupportedError
from edgedm.runtime.choice import choose, is_local
from edgedm.runtime.exec_runner import ExecRunner
from edgedm.runtime.local import LocalRunner
from edgedm.runtime.runner import Runner
from edgedm.targets import resolve


def require_native(bundle: Bundle) -> None:
    """Raise UnsupportedError unless the bundle's code runs here without an emulator, whose times would say nothing."""
    if not is_local(bundle):
        names = ", ".join(bundle.manifest.variants())
        machine = "adb SERIAL" if resolve(bundle.manifest.target.name).base.system == "android" else "ssh HOST"
        run_on = f"`edgedm run-on {machine} {bundle.path}`"
        elsewhere = run_on if bundle.is_program else f"`edgedm web {bundle.path}`"
        raise UnsupportedError(
            f"{bundle.path} is compiled for {names}, which this machine is not: time it there, with {elsewhere}"
        )


def open_runner(bundle: Bundle | str | Path, threads: int = 1, lanes: int = 0, variant: str | None = None) -> Runner:
    """Open a bundle: its library in this process where it can be loaded, its probe under an emulator elsewhere.

    Of several variants of its kernels `variant` runs, or the one that EDGEDM_FEATURES names, or the best that can.
    Raises InvalidModelError for an altered bundle, UnsupportedError for a variant that is not there, ToolchainError
    where nothing here can run it.
    """
    opened = choose(bundle if isinstance(bundle, Bundle) else load(bundle), variant)
    return LocalRunner(opened, threads, lanes) if is_local(opened) else ExecRunner(opened, threads, lanes)
