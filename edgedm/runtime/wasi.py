"""Run a WebAssembly program: `python -m edgedm.runtime.wasi PROGRAM.wasm ARGUMENTS...`, as if it were native.

It gets the standard streams and, as any program of this user, the file system. The exit code is the program's own;
a trap (what a signal is to a native one) says what it was and ends with 134. What is no program, or cannot be run,
ends with 2 and a line that says why.
"""

import os
import signal
import sys
from pathlib import Path

TRAPPED = 134  # what a shell says of a program that called abort
REFUSED = 2  # what the bundle's own programs end with where they were asked for what cannot be done


def main(arguments: list[str]) -> int:
    """Run arguments[0] with all of them and return its exit code."""
    if not arguments:
        return _refuse("usage: python -m edgedm.runtime.wasi PROGRAM.wasm [ARGUMENT...]")
    try:
        import wasmtime
    except ModuleNotFoundError as error:
        return _refuse(f"{arguments[0]}: needs the package `{error.name}`: pip install 'edgedm[web]'")
    try:
        return _run(arguments)
    except (wasmtime.WasmtimeError, OSError) as error:
        return _refuse(f"{arguments[0]}: no WebAssembly program that runs here: {error}")


def _run(arguments: list[str]) -> int:
    import wasmtime

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would not see Ctrl-C before the program returns
    engine = wasmtime.Engine()
    store, linker, wasi = wasmtime.Store(engine), wasmtime.Linker(engine), wasmtime.WasiConfig()
    wasi.argv = arguments
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    # WASI's C library takes "/" and "." for the same, and follows no ".." out of them: so the folders below the one,
    # those above the other, and it.
    for folder in sorted(each.path for each in os.scandir("/") if each.is_dir() and os.access(each, os.R_OK | os.X_OK)):
        wasi.preopen_dir(folder, folder)
    for depth, above in enumerate(Path.cwd().parents, 1):
        if os.access(above, os.R_OK | os.X_OK):
            wasi.preopen_dir(str(above), "/".join([".."] * depth))
    wasi.preopen_dir(".", ".")
    store.set_wasi(wasi)
    linker.define_wasi()
    program = linker.instantiate(store, wasmtime.Module.from_file(engine, arguments[0]))
    start = program.exports(store).get("_start")
    if not isinstance(start, wasmtime.Func):
        raise OSError("it is a library: it has no _start")
    try:
        start(store)
    except wasmtime.ExitTrap as end:
        return int(end.code)
    except wasmtime.Trap as trap:
        sys.stderr.write(f"{arguments[0]}: {trap}\n")
        return TRAPPED
    return 0


def _refuse(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
