"""edgedm: run trained low-bit diffusion models on the devices people have.

Every verb of the command line is one function here; they are imported when first used, so that
`import edgedm` needs nothing but the standard library.

    edgedm.export("zoo:digits-bidm-w1a1", "model.onnx")
    edgedm.optimize("model.onnx", "deploy.onnx")
    edgedm.compile("deploy.onnx", "model.bundle", target="host")
    edgedm.verify("model.bundle", against="zoo:digits-bidm-w1a1")
    edgedm.sample("model.bundle", output="images.png", n=16)
"""

import importlib
from typing import Any

from edgedm.errors import EdgedmError, InvalidModelError, ParityError, ToolchainError, UnsupportedError
from edgedm.outcome import Outcome

__version__ = "0.1.0"

# verb -> (module, member); the member `""` is the module itself, a callable one
_VERBS = {
    "demo": ("edgedm.demo", ""),
    "import_checkpoint": ("edgedm.models.importers", "import_checkpoint"),
    "quantize": ("edgedm.training", "quantize"),
    "export": ("edgedm.export", ""),
    "optimize": ("edgedm.passes", "optimize"),
    "compile": ("edgedm.lower", "compile"),
    "sign": ("edgedm.bundle", "sign"),
    "verify": ("edgedm.verify", ""),
    "sample": ("edgedm.sampling", "sample"),
    "bench": ("edgedm.bench", ""),
    "run_on": ("edgedm.runtime.remote", "run_on"),
    "package": ("edgedm.android.aar", "package"),
    "web": ("edgedm.web", ""),
    "inspect": ("edgedm.inspection", "inspect"),
    "targets": ("edgedm.targets", ""),
}

__all__ = [
    "EdgedmError",
    "InvalidModelError",
    "Outcome",
    "ParityError",
    "ToolchainError",
    "UnsupportedError",
    "__version__",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *_VERBS])


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'edgedm' has no attribute {name!r}")
    module, member = _VERBS[name]
    loaded = importlib.import_module(module)
    return getattr(loaded, member) if member else loaded
