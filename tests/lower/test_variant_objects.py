"""The kernels of several variants in one object: what they share runs on the machines of all."""

import subprocess

import pytest
import tools
from tvm import te

from edgedm.lower.assemble import _write_kernels
from edgedm.lower.codegen import Graph, Variant, identifier
from edgedm.lower.objects import SYMBOL
from edgedm.lower.plan import Plan
from edgedm.targets import resolve_variants


def variant(target) -> Variant:
    x = te.placeholder((4,), name="x")
    function = te.create_prim_func([x, te.compute((4,), lambda i: x[i] * 3, name="y")])
    functions = {"tripled": function, "again": function}
    plan = Plan(calls=[], chains=[], inputs=[], outputs=[], copies={}, arena_bytes=0, functions=functions)
    return Variant(target, f"edm_test_{identifier(target.name)}_", {"step": Graph("step", plan, [], [])})


@pytest.mark.parametrize("names", ["x86-64-v4,x86-64-v3+avxvnni", "x86-64-v4,x86-64-v3"])
def test_the_helpers_of_all_kernels_have_no_instruction_that_a_variant_lacks(names, tmp_path):
    """Neither of the first two has what the other has; both have AVX, which a lesser machine could not run."""
    tools.need("objdump")
    tools.need("nm")
    variants = [variant(each) for each in resolve_variants(names)]
    sizes = _write_kernels(variants, "edm_test_", tmp_path)
    assert len(sizes) == 2
    symbols = subprocess.run(["nm", tmp_path / "kernels.o"], capture_output=True, text=True, check=True).stdout
    assert all(f" T {SYMBOL}{each.prefix}tripled\n" in symbols for each in variants)
    helpers = [line.split()[-1] for line in symbols.splitlines() if " W " in line]
    assert "__extendhfsf2" in helpers and "__truncsfhf2" in helpers
    for name in helpers:
        command = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={name}", tmp_path / "kernels.o"]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        mnemonics = [line.split("\t")[1].split()[0] for line in code.splitlines() if "\t" in line]
        assert len(mnemonics) > 5
        assert not [each for each in mnemonics if each.startswith(("v", "k", "shlx", "shrx", "sarx", "andn", "bextr"))]
