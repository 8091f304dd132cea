"""What a file of torch.save names for its reader to call, told from its pickles without running them.

torch's restricted unpickler keeps code out and takes numbers at their word: `bytearray`, storages and tensor classes
make as many bytes as a file of some hundred asks for, and `_codecs.encode` twice as many as it is given, again and
again. So only the names that tensors, numbers, text and containers of them need are let through to it. It also lets a
tensor grow its storage; and of the older form, which has its tensors' numbers behind the pickles, it makes whatever
storages are claimed and fills those alone that the file lists. These claims are held against the file first.
"""

import io
import mmap
import pickletools
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch._weights_only_unpickler import Unpickler
from torch.utils._python_dispatch import TorchDispatchMode

from edgedm.models.importers.pickle_extent import Extent

_LEGACY_PICKLES = 5  # magic number, protocol, facts of the system, the content, the keys of its storages
_ALLOWED = {
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


def check_storages(path: Path, zipped: bool) -> None:
    """Hold the storages that a file's pickles name against the file; `foreign` must have found nothing in it.

    ValueError where they, or the tensors in them, take more bytes than the file has, and where a file of the older form
    does not hold one; whatever torch's restricted unpickler raises. Nothing is allocated: the storages have no numbers.
    """
    claims = _Claims()
    if zipped:
        claims.load(io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")))
        claims.check(path.stat().st_size)
        return
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for _ in range(_LEGACY_PICKLES):
            held = claims.load(cast(IO[bytes], content))
        if not isinstance(held, list) or any(type(key) is not str for key in held) or claims.keys - set(held):
            raise ValueError("its tensors use storages that it does not hold")
        claims.check(len(content))


class _Claims(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The storages that pickles name, without numbers, and as large as the tensors in them make them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: set[str] = set()
        self._named: dict[str, Any] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def load(self, content: IO[bytes]) -> Any:
        """What the pickle at `content` holds."""
        unpickler: Any = Unpickler(content, encoding="utf-8")  # as torch.load calls it
        unpickler.persistent_load = self._storage
        try:
            with self:
                return unpickler.load()
        finally:
            torch._utils._sparse_tensors_to_validate.clear()  # torch checks those with numbers, not these

    def check(self, size: int) -> None:
        """Raise ValueError where they take more than `size` bytes."""
        claimed = sum(storage.nbytes() for storage in self._storages.values())
        if claimed > size:
            raise ValueError(f"its storages take {claimed} bytes, the file has {size}")

    def _storage(self, saved: Any) -> Any:
        """The storage of a persistent id: its kind, key, device, number of elements, and in the older form a view."""
        _, kind, key, _, count, *view = saved
        if type(key) is not str or type(count) is not int or view not in ([], [None]):
            raise ValueError("expected whole storages, each a key of text and a number of elements")
        if key not in self._named:
            untyped: Any = torch.UntypedStorage
            typed: Any = torch.storage.TypedStorage
            memory = untyped(count * kind.dtype.itemsize, device="meta")
            self._named[key] = typed(wrap_storage=memory, dtype=kind.dtype, _internal=True)
            self._storages[memory._cdata] = memory
            self.keys.add(key)
        return self._named[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take note of each storage that a tensor is set to, and so may make larger."""
        result = func(*args, **(kwargs or {}))
        for each in args:
            if isinstance(each, torch.UntypedStorage):
                self._storages[each._cdata] = each
        return result


def _collect(content: bytes | IO[bytes], names: set[str]) -> None:
    """Add what the pickle at `content` names; Python 2, as which torch.save writes, had its builtins elsewhere.

    What `Extent` raises where its values hold too much.
    """
    extent = Extent()
    for opcode, argument, _ in pickletools.genops(content):
        extent.follow(opcode, argument)
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", ".").replace("__builtin__.", "builtins."))
