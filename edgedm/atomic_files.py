"""Write several files that belong together (a graph and its companions): all of them new, or all as they were.

No file system renames several files at once. So the new ones are first written whole beside their targets, then a
journal `.<name of the first>.commit` that lists them with their SHA-256 appears, and from then on the new ones count:
the next writer finishes the renames that a killed one left (`settle`). A reader changes nothing, for the folder may be
a stranger's, journal and all: it refuses what is half-renamed, and what cannot be finished because somebody removed a
part of it (`check_settled`). Renames are done under a lock of the folder, so two writers don't mix their files and a
reader waits for one that is at work.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgedm.atomic import check_file_place, locked, read_mark, sync_folder, write_scratch
from edgedm.errors import InvalidModelError

COMPANIONS = (".prepare.onnx", ".decoder.onnx", ".golden.safetensors", ".layers.safetensors")
"""What may lie beside a graph, under its name."""
_MOST_JOURNAL_BYTES = 1 << 16


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write `files` of one folder, whole or not at all; companions that are none of them go, as of an earlier graph.

    Of a symbolic link the link goes. The first is the one that readers ask for. Raises ValueError for a name that is
    none of its companions', `InvalidModelError` where a folder or a file stands in the way or somebody removes a new
    one before it has its name, OSError where the disk refuses; then the old files are untouched. Only when it refuses a
    rename, some may be new: readers refuse those, and the next writer finishes them.
    """
    main = next(iter(files))
    names = _names(main)
    for path in files:
        assert path.parent == main.parent, "files that belong together lie together"
        if path.name not in names:
            raise ValueError(f"{path}: no companion of {main.name}; expected {', '.join(names)}")
    for name in names:
        check_file_place(main.with_name(name))
    main.parent.mkdir(parents=True, exist_ok=True)
    settle(main)
    scratches: dict[Path, Path] = {}
    listing: Path | None = None
    try:
        for path, data in files.items():
            scratches[path] = write_scratch(path, data)
        new = {path.name: [scratches[path].name, path.name, _digest(data)] for path, data in files.items()}
        entries = [new.get(name, ["", name, ""]) for name in names]
        with locked(main.parent):
            _finish(main)  # of a writer that was quicker
            superseded = [entry.scratch for entry in _listed(main) if entry.scratch and entry.pending]
            journal = _journal(main)
            listing = write_scratch(journal, json.dumps({"files": entries}).encode())
            os.replace(listing, journal)
            sync_folder(main.parent)  # it lasts before the first rename that it is for
            _finish(main)
            for scratch in superseded:
                scratch.unlink(missing_ok=True)
        check_settled(main)
    finally:
        if listing is None or listing.exists():  # once it has its name, they are the journal's, whatever ended us
            for scratch in (*scratches.values(), *([listing] if listing else [])):
                scratch.unlink(missing_ok=True)


def _names(main: Path) -> list[str]:
    """The names that a journal of `main` may rename files to: its own, then its companions'."""
    return [main.name, *(main.with_suffix(suffix).name for suffix in COMPANIONS)]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_settled(main: str | os.PathLike[str]) -> None:
    """Raise `InvalidModelError` where a killed writer left `main` and its companions half-renamed; changes nothing.

    To be called before reading them. Waits for a writer that is renaming.
    """
    main = Path(main)
    if not _journal(main).is_file():
        return
    with locked(main.parent):
        if any(entry.pending or entry.lost for entry in _listed(main)):
            raise InvalidModelError(
                f"{main}: a write of it and the files beside it was cut short; write it again with the verb that made "
                f"it (`edgedm export` or `edgedm optimize`), which finishes that one first, or delete {_journal(main)}"
                " if the files came from elsewhere"
            )


def settle(main: str | os.PathLike[str]) -> None:
    """Finish what a killed writer of `main` and its companions left half-renamed; for who is about to write them."""
    main = Path(main)
    if _journal(main).is_file():
        with locked(main.parent):
            _finish(main)


def _finish(main: Path) -> None:
    """Do the journal's renames, as often as it takes: what is done is skipped.

    Where a part is lost, nothing changes and the journal stays: readers refuse what is there until all are written
    anew, or until somebody deletes the journal to have what is there (the old ones, if none was renamed yet).
    """
    journal = _journal(main)
    if not journal.is_file():
        return
    entries = list(_listed(main))
    if any(entry.lost for entry in entries):
        return
    for entry in entries:
        if not entry.pending:  # it is done
            continue
        if entry.scratch is None:
            entry.target.unlink()
        else:
            os.replace(entry.scratch, entry.target)
    sync_folder(main.parent)
    journal.unlink(missing_ok=True)
    sync_folder(main.parent)


@dataclass(frozen=True)
class _Entry:
    """A renaming of `scratch`, whose contents have `digest`, to `target`; without a scratch a removal of `target`.

    The digest is empty in journals of earlier versions.
    """

    scratch: Path | None
    target: Path
    digest: str

    @property
    def pending(self) -> bool:
        """Whether it is still to be done."""
        if self.scratch is None:
            return self.target.is_symlink() or (self.target.exists() and not self.target.is_dir())
        return _is_regular(self.scratch)

    @property
    def lost(self) -> bool:
        """Whether the file was neither renamed nor is it waiting: somebody removed it, or put another in its place."""
        if self.scratch is None:
            return False
        place = self.scratch if self.pending else self.target
        if not _is_regular(place):
            return True
        if not self.digest:
            return False
        with place.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() != self.digest


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _listed(main: Path) -> Iterator[_Entry]:
    """A journal that came with somebody's folder may name nothing but what a writer of `main` replaces anyway."""
    listed = read_mark(_journal(main), _MOST_JOURNAL_BYTES).get("files")
    ours = _names(main)
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, list) and len(entry) in (2, 3) and all(isinstance(text, str) for text in entry):
            scratch, target, digest = (*entry, "")[:3]
            if target in ours and "/" not in scratch and (not scratch or scratch.startswith(f".{target}.")):
                yield _Entry(main.parent / scratch if scratch else None, main.parent / target, digest)


def _journal(main: Path) -> Path:
    return main.with_name(f".{main.name}.commit")
