"""Hostile files of torch.save, in the archive and the older form, and of safetensors, as authors' checkpoints.

Tensors that are wrong in themselves (NaN, no numbers) need a whole model around them, which is too large for a file
here: `tests/models/importers/test_hostile_imports.py` makes those.
"""

import io
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

NAME = "model.diffusion_model.input_blocks.0.0.weight"


def write(files: Path) -> None:
    """Write `authors`."""
    folder = files / "authors"
    folder.mkdir(parents=True)
    for name, data in attacks().items():
        (folder / name).write_bytes(data)


def attacks() -> dict[str, bytes]:
    """File name -> contents."""
    sound = archive(tensor_pickle(storage_numel=4, size=(4,), stride=(1,)), bytes(16))
    return {
        "code.pt": archive(b"cos\nsystem\n(S'true'\ntR.", b""),
        "code-bare.pt": b"cos\nsystem\n(S'true'\ntR.",
        "shape-beyond-storage.pt": archive(tensor_pickle(4, (1 << 40,), (1,)), bytes(16)),
        "storage-beyond-record.pt": archive(tensor_pickle(1 << 40, (1 << 40,), (1,)), bytes(16)),
        "product-wraps.pt": archive(tensor_pickle(4, (1 << 33, 1 << 33), (1, 1)), bytes(16)),
        "negative-size.pt": archive(tensor_pickle(4, (-4,), (1,)), bytes(16)),
        "negative-stride.pt": archive(tensor_pickle(4, (4,), (-1,)), bytes(16)),
        "huge-bytes.pt": archive(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x7f\x85R.", b""),
        "many-bytes.pt": archive(called("builtins", "bytearray", 1 << 26), b""),
        "many-bytes-bare.pt": called("__builtin__", "bytearray", 1 << 26),
        "many-bytes-last.pt": b"".join([*map(pickle.dumps, (1, 2, 3)), called("builtins", "bytearray", 1 << 26)]),
        "storage-never-filled.pt": older(tensor_pickle(1 << 20, (1 << 20,), (1,), (None,)), []),
        "storage-beyond-file.pt": older(tensor_pickle(1 << 26, (4,), (1,), (None,)), ["0"]),
        "shape-grows-storage.pt": older(
            tensor_pickle(4, (1 << 26,), (1,), (None,)), ["0"], struct.pack("<q", 4) + bytes(16)
        ),
        "tensor-grows.pt": archive(growing(1 << 25), bytes(16)),
        "methods-hidden.pt": archive(with_state({"numel": 5}), bytes(16)),
        "get-hidden.pt": archive(b"\x80\x02ccollections\nOrderedDict\n)R}X\x03\x00\x00\x00getK\x05sbK\x01Ns.", b""),
        "terminal-names.pt": archive(names(b"\x1b]0;title\x07\x1b[2J" + b"y" * 99, 20), b""),
        "storage-called.pt": archive(called("torch.storage", "UntypedStorage", 1 << 26), b""),
        "tensor-called.pt": archive(called("torch", "FloatTensor", 1 << 24), b""),
        "twice-as-long.pt": archive(doubled(24), b""),
        "other-case.pt": archive(called("builtins", "bytearray", 1 << 26), b"", name="DATA.PKL"),
        "huge-long.pt": archive(b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.", b""),
        "huge-memo.pt": archive(b"\x80\x02]r\xff\xff\xff\x7f.", b""),
        "deep.pt": archive(b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", b""),
        "shared-lists.pt": archive(laughs(40), b""),
        "shared-tuples.pt": archive(shared_tuples(40), b""),
        "shared-tuples-bare.pt": shared_tuples(40),
        "one-hash.pt": archive(pickle.dumps(dict.fromkeys((2**61 - 1) * n for n in range(5000)), 2), b""),
        "one-hash-tuples.pt": archive(tuples_of_one_hash(101), b""),
        "complex-keys.pt": archive(called("builtins", "complex", 3), b""),
        "deep-key.pt": archive(b"\x80\x02}K\x01" + b"\x85" * 200_000 + b"K\x01s.", b""),
        "compressed.pt": archive(tensor_pickle(4, (4,), (1,)), bytes(1 << 16), zipfile.ZIP_DEFLATED),
        "names-outside.pt": archive(tensor_pickle(4, (4,), (1,)), bytes(16), folder="../../x"),
        "truncated.pt": sound[:-20],
        "record-twice.pt": archive(tensor_pickle(4, (4,), (1,)), bytes(16), twice=True),
        "directory-beyond-end.pt": sound[:-6] + struct.pack("<I", 2**31) + sound[-2:],
        "tar.pt": tar_file(),
        "length-beyond-end.safetensors": struct.pack("<Q", 1 << 50) + b"{}",
        "name-twice.safetensors": safetensors(f'{{"a":{ENTRY},"a":{ENTRY}}}', bytes(4)),
        "hole.safetensors": safetensors(f'{{"a":{ENTRY.replace("0,4", "4,8")}}}', bytes(8)),
        "product-wraps.safetensors": safetensors(f'{{"a":{ENTRY.replace("[1]", f"[{1 << 62},4]")}}}', bytes(4)),
    }


def tuples_of_one_hash(count: int) -> bytes:
    """A dictionary of so many keys, all different and all of one hash, out of four numbers that are stored once.

    CPython hashes a tuple number by number (xxHash), each step of which can be undone: a pair of numbers can be chosen
    that leads back to where it began, so that tuples of any such pairs hash alike.
    """
    wrap, begin = (1 << 64) - 1, 2870177450012600261
    factor, prime = 11400714785074694791, 14029467366897019727

    def rotate(x: int, bits: int) -> int:
        return ((x << bits) | (x >> (64 - bits))) & wrap

    undo_factor, undo_prime = pow(factor, -1, 1 << 64), pow(prime, -1, 1 << 64)
    back, pairs, first = rotate(begin * undo_factor & wrap, 33), [], 1 << 59
    while len(pairs) < 2:
        first += 1
        after = rotate((begin + first * prime) & wrap, 31) * factor & wrap
        second = (back - after) * undo_prime & wrap
        second -= (second >> 63) << 64
        if abs(second) < (1 << 61) - 1:  # such a number is its own hash
            pairs.append((first, second))
    bits = range(count.bit_length())
    keys = [tuple(number for bit in bits for number in pairs[key >> bit & 1]) for key in range(count)]
    assert len(set(keys)) == count and len({hash(key) for key in keys}) == 1
    numbers = [number for pair in pairs for number in pair]
    stored = b"".join(pickle.dumps(number, 2)[2:-1] + b"q" + bytes([at]) for at, number in enumerate(numbers))
    taken = [b"(" + b"".join(b"h" + bytes([numbers.index(number)]) for number in key) + b"tN" for key in keys]
    return b"\x80\x02}((" + stored + b"tN" + b"".join(taken) + b"u."


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def safetensors(header: str, body: bytes) -> bytes:
    """A file with this header."""
    return struct.pack("<Q", len(header)) + header.encode() + body


def tensor_pickle(
    storage_numel: int, size: tuple[int, ...], stride: tuple[int, ...], view: tuple[None, ...] = ()
) -> bytes:
    """The pickle of {NAME: tensor}, as torch writes it, with claims of its own; the older form has a `view` of None."""

    class Global:
        def __init__(self, module: str, name: str) -> None:
            self.module, self.name = module, name

    class Storage:
        pass

    class Call:
        def __reduce__(self) -> Any:
            return rebuild, (Storage(), 0, size, stride, False, {})

    def rebuild(*arguments: Any) -> None:
        raise AssertionError("only pickled")

    class Writer(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python can be told how to save
        def persistent_id(self, value: Any) -> Any:
            kind = Global("torch", "FloatStorage")
            return ("storage", kind, "0", "cpu", storage_numel, *view) if isinstance(value, Storage) else None

        def save(self, value: Any, save_persistent_id: bool = True) -> None:
            if isinstance(value, Global):
                self.write(f"c{value.module}\n{value.name}\n".encode())
            elif value is rebuild:
                self.write(b"ctorch._utils\n_rebuild_tensor_v2\n")
            else:
                super().save(value, save_persistent_id)

    stream = io.BytesIO()
    Writer(stream, protocol=2).dump({"state_dict": {NAME: Call()}})
    return stream.getvalue()


def called(module: str, name: str, count: int) -> bytes:
    """The pickle of what a class makes of a number: so many bytes, however short the file is."""
    return f"\x80\x02c{module}\n{name}\n".encode("latin-1") + b"J" + struct.pack("<i", count) + b"\x85R."


def growing(count: int) -> bytes:
    """The pickle of a tensor that is set to nothing, then to itself with so many numbers."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00(K\x04t(K\x01t\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02" + made + b"q\x01)b(h\x01K\x00(J" + struct.pack("<i", count) + b"t(K\x01ttb."


def older(content: bytes, keys: list[str], storages: bytes = b"") -> bytes:
    """A file of the form before archives: pickles, then each listed storage as its count and its numbers."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    first = [pickle.dumps(each, protocol=2) for each in (0x1950A86A20F9469CFC6C, 1001, facts)]
    return b"".join([*first, content, pickle.dumps(keys, protocol=2), storages])


def with_state(state: dict[str, Any]) -> bytes:
    """The pickle of {NAME: parameter}, of which `state` are attributes."""
    begin, rebuild = b"ctorch._utils\n_rebuild_parameter_with_state\n", b"ctorch._utils\n_rebuild_tensor_v2\n"
    whole = tensor_pickle(4, (4,), (1,))
    at, end = whole.index(rebuild), whole.rindex(b"R") + 1
    hooks = b"\x88}" + pickle.dumps(state, protocol=2)[2:-1]
    return whole[:at] + begin + b"(" + whole[at:end] + hooks + b"tR" + whole[end:]


def names(module: bytes, count: int) -> bytes:
    """The pickle of None that names so many classes before."""
    return b"".join(b"c%s\nname%d\n0" % (module, number) for number in range(count)) + b"N."


def doubled(times: int) -> bytes:
    """The pickle of a text that is written as hexadecimal digits so often."""
    begin, end = b"c_codecs\nencode\n", b"X\x03\x00\x00\x00hex\x86R"
    first = b"X\x02\x00\x00\x00ab" + b"X\x06\x00\x00\x00latin1\x86R"
    return b"\x80\x02" + begin * (times + 1) + first + end * times + b"."


def laughs(levels: int) -> bytes:
    """A list of two of the list before, `levels` times: 2**levels items for whoever copies them."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return pickletools.optimize(pickle.dumps(value, protocol=2))


def shared_tuples(levels: int) -> bytes:
    """A dictionary's key of two of the tuple before, `levels` times: 2**levels hashes."""
    pairs = (b"h" + bytes([level]) + b"\x86q" + bytes([level + 1]) for level in range(levels))
    return b"\x80\x02}K\x01\x85q\x00" + b"".join(pairs) + b"K\x01s."


def archive(
    content: bytes,
    storage: bytes,
    method: int = zipfile.ZIP_STORED,
    folder: str = "x",
    twice: bool = False,
    name: str = "data.pkl",
) -> bytes:
    """An archive of torch.save."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as target:
        records = [(name, content), ("byteorder", b"little"), ("data/0", storage), ("version", b"3\n")]
        for record, data in [*records, *(records[:1] if twice else [])]:
            target.writestr(zipfile.ZipInfo(f"{folder}/{record}"), data, method)
    return stream.getvalue()


def tar_file() -> bytes:
    """The oldest form, a tar, with a link that leaves it."""
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as target:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        target.addfile(link)
    return stream.getvalue()
