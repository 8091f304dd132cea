"""Read a checkpoint of others: tensors and plain containers, never code.

`torch.load(weights_only=True)` or safetensors, nothing else. A file that holds other objects (Lightning saves its
configuration and callbacks along) is refused with the names of their classes, and with the way to convert it where
it was made: whoever trusts the file's origin unpickles it there, not here.
"""

import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from edgedm.errors import InvalidModelError
from edgedm.files import check_regular
from edgedm.models.importers.pickles import UNREAD, check_storages, foreign
from edgedm.tensor_file import read_header

# what torch's restricted unpickler and zip reader raise on files that are cut short or altered
_BROKEN = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
)
_NAMED, _LONGEST = 8, 80  # classes listed in a message, characters of each

_CONVERT = """\
Where it was made, and if you trust it, keep its tensors alone:
    import torch
    content = torch.load({name!r}, map_location="cpu", weights_only=False)
    state = content.get("state_dict", content)
    torch.save({{k: v.detach().clone() for k, v in state.items() if torch.is_tensor(v)}}, {converted!r})
and import {converted}"""


def read(path: str | os.PathLike[str]) -> Any:
    """Return what the file holds: a `.safetensors` file's tensors by name, or the content of a `torch.save` file.

    Raises `InvalidModelError` where the file is missing, damaged, or holds anything but tensors, numbers, text and
    containers of them.
    """
    path = Path(path)
    try:
        check_regular(path)
    except FileNotFoundError:
        raise InvalidModelError(f"{path}: no such file") from None
    if path.suffix == ".safetensors":
        read_header(path)
        try:
            return load_file(str(path))
        except SafetensorError as error:
            raise InvalidModelError(f"{path}: not a whole safetensors file: {error}") from error
    with path.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"  # by which torch tells archives from the older form
    if zipped:
        _check_archive(path)
    try:
        found = foreign(path, zipped)
        if found:
            raise InvalidModelError(_refusal(path, found))
        check_storages(path, zipped)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, *_BROKEN) as error:
        raise InvalidModelError(f"{path}: not a whole file of torch.save: {_first_line(error)}") from error
    _drop_attributes(content)
    return content


def _drop_attributes(content: Any) -> None:
    """Take from dictionaries what is set on them as attributes: it would hide their methods."""
    left, seen = [content], set()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, OrderedDict | Counter):
            vars(each).clear()
        if isinstance(each, dict):
            left.extend(dict.values(each))
        elif isinstance(each, list | tuple):
            left.extend(each)


def _check_archive(path: Path) -> None:
    """Refuse compressed records: torch writes none, and a small file could unpack to any size.

    Also records that stand twice, of which readers take different ones.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
            twice = [name for name, count in Counter(archive.namelist()).items() if count > 1]
    except (zipfile.BadZipFile, *_BROKEN) as error:
        raise InvalidModelError(f"{path}: not a whole file of torch.save: {error}") from error
    if twice:
        raise InvalidModelError(f"{path}: not a whole file of torch.save: record {twice[0]!r} stands twice")
    if packed:
        raise InvalidModelError(f"{path}: record {packed[0]!r} is compressed; torch.save stores them as they are")


def _refusal(path: Path, found: list[str]) -> str:
    if "torch._utils._rebuild_tensor_v3" in found and UNREAD.issuperset(found):
        return (
            f"{path}: holds tensors of a dtype that edgedm does not read, such as float8 or uint16: convert them where "
            "it was made, with v.float() where they are weights"
        )
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    converted = path.with_suffix(".tensors.pt").name
    return (
        f"{path}: holds objects besides tensors: {', '.join(map(_shown, found[:_NAMED]))}{more}. Loading them could "
        "run code from the file or take any amount of memory, so edgedm does not. "
        f"{_CONVERT.format(name=path.name, converted=converted)}"
    )


def _shown(name: str) -> str:
    return repr(name if len(name) <= _LONGEST else name[:_LONGEST] + "...")


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line[: 4 * _LONGEST]
