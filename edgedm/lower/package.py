"""What lets C projects find a bundle: a CMake package and a pkg-config file."""

from pathlib import Path

import jinja2

import edgedm
from edgedm.lower.codegen import TEMPLATES
from edgedm.targets import Target

_PLACES = {
    "edgedm-config.cmake": "lib/cmake/edgedm",
    "edgedm-config-version.cmake.j2": "lib/cmake/edgedm",
    "edgedm.pc.j2": "lib/pkgconfig",
}


# What CMake calls a machine, by what a triple begins with.
_PROCESSORS = {"x86_64": "x86_64|amd64|AMD64", "aarch64": "aarch64|arm64|ARM64", "arm": "arm.*", "riscv64": "riscv64"}


def write_package(bundle: Path, target: Target) -> None:
    """Write `lib/cmake/edgedm` and `lib/pkgconfig` of the bundle; both find the rest from where they lie."""
    machine = target.base.triple.partition("-")[0]
    processors = next((each for prefix, each in _PROCESSORS.items() if machine.startswith(prefix)), machine)
    values = {"version": edgedm.__version__, "target": target.name, "processors": processors}
    for name, place in _PLACES.items():
        text = (TEMPLATES / "package" / name).read_text()
        (bundle / place).mkdir(parents=True, exist_ok=True)
        rendered = jinja2.Template(text, keep_trailing_newline=True).render(values)
        (bundle / place / name.removesuffix(".j2")).write_text(rendered)
