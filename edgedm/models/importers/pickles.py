"""What a file of torch.save names for its reader to call, told from its pickles without running them.

torch's restricted unpickler keeps code out and takes numbers at their word: `bytearray`, storages and tensor classes
make as many bytes as a file of some hundred asks for, and `_codecs.encode` twice as many as it is given, again and
again. So only the names that tensors, numbers, text and containers of them need are let through to it. Of the older
form, which has its tensors' numbers behind the pickles, it also makes whatever storages are claimed, and fills those
alone that the file lists: these claims are held against the file first.
"""

import mmap
import pickletools
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch._weights_only_unpickler import Unpickler

_LEGACY_PICKLES = 5  # magic number, protocol, facts of the system, the content, the keys of its storages
_ALLOWED = {
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
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
# what tensors of the dtypes that torch has no storages of are saved with, float8 and uint16 among them
UNREAD = {"torch._utils._rebuild_tensor_v3", "torch.storage.UntypedStorage"}


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


def check_storages(path: Path) -> None:
    """Hold the storages that a file of the older form names against the file; `foreign` must have found nothing in it.

    ValueError where a storage isn't among those that follow, or all, or the tensors in them, take more bytes than the
    file has; whatever torch's restricted unpickler raises. Nothing is allocated: the storages have no numbers.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        storages: dict[str, Any] = {}
        untyped: Any = torch.UntypedStorage
        typed: Any = torch.storage.TypedStorage

        def named(saved: Any) -> Any:
            _, kind, key, _, count, view = saved
            if type(key) is not str or type(count) is not int or view is not None:
                raise ValueError("expected whole storages, each a key of text and a number of elements")
            if key not in storages:
                memory = untyped(count * kind.dtype.itemsize, device="meta")
                storages[key] = typed(wrap_storage=memory, dtype=kind.dtype, _internal=True)
            return storages[key]

        try:
            for number in range(1, _LEGACY_PICKLES + 1):
                unpickler: Any = Unpickler(content, encoding="utf-8")  # as torch.load calls it
                if number == _LEGACY_PICKLES - 1:
                    unpickler.persistent_load = named
                last = unpickler.load()
        finally:
            torch._utils._sparse_tensors_to_validate.clear()  # torch checks those with numbers, not these
        if not isinstance(last, list) or any(type(key) is not str for key in last) or not storages.keys() <= set(last):
            raise ValueError("its tensors use storages that it does not hold")
        claimed, size = sum(storage.nbytes() for storage in storages.values()), len(content)
        if claimed > size:
            raise ValueError(f"its storages take {claimed} bytes, the file has {size}")


def _collect(content: bytes | IO[bytes], names: set[str]) -> None:
    """Add what the pickle at `content` names; Python 2, as which torch.save writes, had its builtins elsewhere."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", ".").replace("__builtin__.", "builtins."))
