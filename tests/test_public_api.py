"""The surface that users rely on: a change here is a change of the interface."""

import inspect
import subprocess
import sys

import pytest

import edgedm

VERBS = {
    "demo": ["output"],
    "import_checkpoint": ["path", "layout", "output", "options"],
    "quantize": ("model", "method", "policy", "bits"),  # and those of train_checkpoint, or of quantize_layers
    "export": ["checkpoint", "output", "layer_golden"],
    "optimize": ["graph_path", "output", "dump", "check", "steps", "sampler"],
    "compile": ["graph_path", "output", "target", "steps", "sampler"],
    "sign": ["bundle", "key"],
    "verify": ["artefact", "against", "levels"],
    "sample": ["model", "output", "n", "steps", "sampler", "eta", "seed", "label", "guidance", "threads"],
    "bench": ["bundle", "layers", "against", "threads"],
    "run_on": ["protocol", "host", "bundle", "threads", "steps"],
    "package": ["bundles", "output"],
    "web": ["bundle", "output", "title"],
    "inspect": ["path"],
    "targets": [],
}


def test_dir_lists_every_verb():
    assert set(VERBS) <= set(dir(edgedm))


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_a_function_of_the_package_with_these_arguments(name):
    verb = getattr(edgedm, name)
    assert callable(verb)
    function = getattr(verb, name, verb)  # a verb that is a package forwards to its member of the same name
    assert set(VERBS[name]) <= set(inspect.signature(function).parameters)


def test_importing_the_package_needs_only_the_standard_library():
    script = "import sys, edgedm; print([m for m in ('numpy', 'click', 'pydantic', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = edgedm.nonsense
