"""SHA-256 in C, by the processor's own instructions and without them, against hashlib."""

import ctypes as c
import hashlib

import pytest

from edgedm.lower import toolchain
from edgedm.lower.codegen import TEMPLATES


@pytest.mark.parametrize("fast", ["sha256_fast.c", "none.c"])
def test_every_length_has_hashlibs_digest(tmp_path, fast):
    for name in ("edgedm.h", "runtime.h", "kernel_abi.h", "sha256.h", "sha256.c", "sha256_fast.c"):
        (tmp_path / name).write_text((TEMPLATES / name).read_text())
    (tmp_path / "edgedm_names.h").write_text("")
    (tmp_path / "none.c").write_text('#include "sha256.h"\nedm_absorb_fn edm_fast_absorb(void) { return NULL; }\n')
    arguments = ["-target", toolchain.LINUX_X86_64, *toolchain.COMPILE, *toolchain.WARNINGS, "-fvisibility=default"]
    toolchain.zig_cc([*arguments, "-shared", "-I", ".", "sha256.c", fast, "-o", "sha.so"], tmp_path)
    library = c.CDLL(str(tmp_path / "sha.so"))
    data = bytes(i * 7 % 256 for i in range(5000))
    for length in (*range(0, 260), 4095, 5000):
        digest = (c.c_uint8 * 32)()
        library.edm_sha256(data, c.c_uint64(length), digest)
        assert bytes(digest) == hashlib.sha256(data[:length]).digest()
