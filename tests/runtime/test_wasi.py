"""The engine for WebAssembly programs refuses what it cannot run with a line that says why, and exit code 2."""

import sys

import pytest

from edgedm.runtime import wasi

EMPTY = b"\0asm\1\0\0\0"  # a module, without a function


def refused(capsys, *arguments) -> str:
    assert wasi.main([str(each) for each in arguments]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") >= 1 and "Traceback" not in text
    return text


def test_without_a_program_it_tells_its_usage(capsys):
    assert refused(capsys).startswith("usage: python -m edgedm.runtime.wasi PROGRAM.wasm")


def test_without_the_engine_it_says_how_to_get_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wasmtime", None)
    assert refused(capsys, tmp_path / "a.wasm") == (
        f"{tmp_path}/a.wasm: needs the package `wasmtime`: pip install 'edgedm[web]'\n"
    )


@pytest.mark.parametrize("content", [None, b"no module", EMPTY])
def test_what_is_no_program_is_named(capsys, tmp_path, content):
    """A file that is missing, one that is something else, and a module that is a library."""
    if content is not None:
        (tmp_path / "a.wasm").write_bytes(content)
    assert refused(capsys, tmp_path / "a.wasm").startswith(f"{tmp_path}/a.wasm: no WebAssembly program that runs here:")
