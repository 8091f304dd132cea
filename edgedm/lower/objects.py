"""TIR functions -> one object file, every symbol under the bundle's prefix."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm

SYMBOL = "__tvm_ffi_"  # what TVM puts before the name of a function with its calling convention


def write_object(functions: Mapping[str, Any], prefix: str, target: tvm.target.Target, path: Path) -> None:
    """Compile `functions` (name -> PrimFunc) into the object file `path`; symbols are SYMBOL + prefix + name.

    The runtime binds shapes, dtypes and alignment once, so the kernels' own checks of them are left out.
    """
    renamed = {
        tvm.ir.GlobalVar(prefix + name): functions[name].with_attr("global_symbol", prefix + name)
        for name in sorted(functions)
    }
    module = tvm.IRModule(renamed).with_attr("system_lib_prefix", prefix)
    with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
        tvm.tirx.build(module, target=target).write_to_file(str(path))
