"""Let a subpackage be called like the public function that it is named after.

`edgedm.export` is both a package (its parts are imported as `edgedm.export.graph_io`) and a verb
(`edgedm.export("zoo:digits-bidm-w1a1", "model.onnx")`). Python sets a submodule as an attribute of its parent
when it is first imported, which would hide a function of the same name; so the module itself forwards calls.
"""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(name: str) -> None:
    """Make module `name` (its `__name__`) forward calls to its member of the same name."""
    sys.modules[name].__class__ = _CallableModule
