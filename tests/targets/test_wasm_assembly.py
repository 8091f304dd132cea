"""The code emitted for WebAssembly: instructions that kernels are made for, in LLVM's text and in a linked bundle."""

import re
import subprocess
from dataclasses import replace

import pytest
import tiny_model
import tools
from test_neon_assembly import CASES, conv, emitted

from edgedm.bundle import load
from edgedm.targets.tuning.wasm_loops import vectors, wasm_loop

TARGET = "wasm32+simd128"
WIDE = conv("QuantConv", 256, bits=8, weight_bits=8)
DOT = replace(conv("QuantConv", 256), family="dot")
PER = 1024


@pytest.mark.parametrize(
    ("case", "instruction"),
    [
        (CASES["BinaryConv"], "i8x16.popcnt"),
        (CASES["BinaryWeightConv"], "i8x16.swizzle"),
        (CASES["QuantConv"], "i8x16.swizzle"),
        (DOT, "i16x8.mul"),
        (CASES["QuantMatMul"], "i16x8.mul"),
        (WIDE, "i32x4.dot_i16x8_s"),
        (CASES["PackBits"], "f32x4.le"),
        (CASES["QuantizeUniform"], "f32x4.div"),
        (CASES["GroupNormSilu"], "f32x4.mul"),
    ],
)
def test_a_kernel_uses_the_instructions_that_it_is_made_for(case, instruction):
    assert f"\t{instruction}\n" in emitted(case, TARGET)


@pytest.mark.parametrize(
    ("case", "counted", "macs", "most"),
    [
        (conv("BinaryConv", 256), "i8x16.popcnt", 128, 28),
        (conv("BinaryWeightConv", 256), "i8x16.swizzle", 64, 65),
        (DOT, "i16x8.mul", 8, 380),
        (WIDE, "i32x4.dot_i16x8_s", 8, 380),
    ],
)
def test_an_inner_loop_has_few_vector_instructions(case, counted, macs, most):
    """The most for 1,024 multiply-accumulates, of which each counted instruction stands for `macs`; loads too."""
    loop = wasm_loop(emitted(case, TARGET), counted)
    assert vectors(loop) * PER <= most * macs * loop.count(counted), loop


@pytest.mark.slow
def test_a_bundle_has_modules_of_vector_instructions_and_nothing_newer():
    """What every browser with simd128 takes: no threads, no relaxed vectors, no 64-bit memory."""
    tools.need("wasm-objdump")
    with tiny_model.compiled_for(TARGET) as folder:
        bundle = load(folder)
        for path in (bundle.library, bundle.sampler, bundle.probe):
            done = subprocess.run(["wasm-objdump", "-d", path], capture_output=True, text=True, check=True)
            assert "i8x16.popcnt" in done.stdout
            assert not re.search(r"\b(atomic|memory64|relaxed)", done.stdout)
        imports = subprocess.run(["wasm-objdump", "-x", "-j", "Import", bundle.library], capture_output=True, text=True)
        modules = set(re.findall(r"<- (\w+)\.", imports.stdout))
        assert modules == {"wasi_snapshot_preview1"}
