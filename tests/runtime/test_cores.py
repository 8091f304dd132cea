"""Which cores of a machine with fast and slow ones are called big."""

import ctypes as c
import os

import pytest

from edgedm.lower import toolchain
from edgedm.lower.codegen import TEMPLATES


@pytest.mark.parametrize(
    ("figures", "big"),
    [
        ({"cpu_capacity": (400, 1024)}, [1]),
        ({"cpu_capacity": (1024, 160), "cpufreq/cpuinfo_max_freq": (100, 900)}, [0]),
        ({"cpufreq/cpuinfo_max_freq": (2_000_000, 1_200_000)}, [0]),
        ({"cpufreq/cpuinfo_max_freq": (5_000_000, 4_800_000)}, [0, 1]),
        ({"cpu_capacity": (1024, None)}, [0]),
        ({}, [0, 1]),
    ],
)
def test_big_cores_are_those_above_the_middle(tmp_path, figures, big):
    if (os.sysconf("SC_NPROCESSORS_CONF") or 0) < 2:
        pytest.skip("needs two cores")
    for name in ("edgedm.h", "runtime.h", "kernel_abi.h", "cores.c", "errors.c"):
        (tmp_path / name).write_text((TEMPLATES / name).read_text())
    (tmp_path / "edgedm_names.h").write_text("")
    for name, values in figures.items():
        for core, value in enumerate(values):
            path = tmp_path / "cpu" / f"cpu{core}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if value is not None:
                path.write_text(f"{value}\n")
    arguments = ["-target", toolchain.LINUX_X86_64, *toolchain.COMPILE, *toolchain.WARNINGS, "-fvisibility=default"]
    folder = f'-DEDM_CPU_FOLDER="{tmp_path / "cpu"}"'
    toolchain.zig_cc([*arguments, folder, "-shared", "-I", ".", "cores.c", "errors.c", "-o", "cores.so"], tmp_path)
    library, found = c.CDLL(str(tmp_path / "cores.so")), (c.c_int * 1024)()
    count = library.edm_big_cores(found, len(found))
    wanted = big if figures else list(range(os.sysconf("SC_NPROCESSORS_CONF")))
    assert list(found[:count]) == wanted
