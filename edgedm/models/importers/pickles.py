"""What a file of torch.save names for its reader to call, told from its pickles without running them.

torch's restricted unpickler keeps code out and takes numbers at their word: `bytearray`, storages and tensor classes
make as many bytes as a file of some hundred asks for, and `_codecs.encode` twice as many as it is given, again and
again. So only the names that tensors, numbers, text and containers of them need are let through to it.
"""

import mmap
import pickletools
from pathlib import Path
from typing import IO, cast

import torch

_LEGACY_PICKLES = 5  # magic number, protocol, facts of the system, the content, the keys of its storages
_ALLOWED = {
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    *(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)),
    *(
        f"torch.{name}"
        for name in vars(torch)
        if name.endswith("Storage") and name not in ("TypedStorage", "UntypedStorage")
    ),
}


def foreign(path: Path, zipped: bool) -> list[str]:
    """Names in the file at `path`, an archive or of the older form, that no tensor needs; whatever its reader may do.

    ValueError, or what torch's reader of archives raises, where the pickles cannot be told apart.
    """
    found: set[str] = set()
    if zipped:
        _collect(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"), found)
    else:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                for _ in range(_LEGACY_PICKLES):
                    _collect(cast(IO[bytes], content), found)  # reads no further than the file, whatever is claimed
            except ValueError:
                if not found - _ALLOWED:
                    raise
    return sorted(found - _ALLOWED)


def _collect(content: bytes | IO[bytes], names: set[str]) -> None:
    """Add what the pickle at `content` names; Python 2, as which torch.save writes, had its builtins elsewhere."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", ".").replace("__builtin__.", "builtins."))
