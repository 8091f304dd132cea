"""What lets C projects find a bundle: a CMake package and a pkg-config file."""

from pathlib import Path

import jinja2

import edgedm
from edgedm.lower.codegen import TEMPLATES

_PLACES = {
    "edgedm-config.cmake": "lib/cmake/edgedm",
    "edgedm-config-version.cmake.j2": "lib/cmake/edgedm",
    "edgedm.pc.j2": "lib/pkgconfig",
}


def write_package(bundle: Path) -> None:
    """Write `lib/cmake/edgedm` and `lib/pkgconfig` of the bundle; both find the rest from where they lie."""
    for name, place in _PLACES.items():
        text = (TEMPLATES / "package" / name).read_text()
        (bundle / place).mkdir(parents=True, exist_ok=True)
        rendered = jinja2.Template(text, keep_trailing_newline=True).render(version=edgedm.__version__)
        (bundle / place / name.removesuffix(".j2")).write_text(rendered)
