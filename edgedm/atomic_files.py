"""Write several files that belong together (a graph and its companions): all of them new, or all as they were.

No file system renames several files at once. So the new ones are first written whole beside their targets, then a
journal `.<name of the first>.commit` that lists them appears, and from then on the new ones count: the next writer
finishes the renames that a killed one left (`settle`). A reader changes nothing, for the folder may be a stranger's,
journal and all: it refuses what is half-renamed (`check_settled`). Renames are done under a lock of the folder, so two
writers don't mix their files and a reader waits for one that is at work.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgedm.atomic import check_file_place, locked, read_mark, sync_folder, write_scratch
from edgedm.errors import InvalidModelError

COMPANIONS = (".golden.safetensors", ".layers.safetensors", ".decoder.onnx")
"""What may lie beside a graph, under its name; a write without one removes that of an earlier graph."""
_RENAMED = (*COMPANIONS, ".prepare.onnx")
_MOST_JOURNAL_BYTES = 1 << 16


def write_together(files: Mapping[Path, bytes | None]) -> None:
    """Write `files` of one folder, whole or not at all; None removes a companion that earlier ones may have left.

    The first is the one that readers ask for. Raises ValueError for a name that is none of its companions',
    `InvalidModelError` where a folder or a file stands in the way, OSError where the disk refuses; then the old files
    are untouched.
    """
    main = next(iter(files))
    for path in files:
        check_file_place(path)
        assert path.parent == main.parent, "files that belong together lie together"
        if path.name not in _names(main):
            raise ValueError(f"{path}: no companion of {main.name}; expected {', '.join(sorted(_names(main)))}")
    main.parent.mkdir(parents=True, exist_ok=True)
    settle(main)
    scratches: dict[Path, Path] = {}
    listing: Path | None = None
    try:
        for path, data in files.items():
            if data is not None:
                scratches[path] = write_scratch(path, data)
        entries = [[scratches[path].name if path in scratches else "", path.name] for path in files]
        with locked(main.parent):
            _finish(main)  # of a writer that was quicker
            journal = _journal(main)
            listing = write_scratch(journal, json.dumps({"files": entries}).encode())
            os.replace(listing, journal)
            sync_folder(main.parent)  # it lasts before the first rename that it is for
            _finish(main)
    finally:
        if listing is None or listing.exists():  # once it has its name, they are the journal's, whatever ended us
            for scratch in (*scratches.values(), *([listing] if listing else [])):
                scratch.unlink(missing_ok=True)


def _names(main: Path) -> set[str]:
    """The names that a journal of `main` may rename files to."""
    return {main.name, *(main.with_suffix(suffix).name for suffix in _RENAMED)}


def check_settled(main: str | os.PathLike[str]) -> None:
    """Raise `InvalidModelError` where a killed writer left `main` and its companions half-renamed; changes nothing.

    To be called before reading them. Waits for a writer that is renaming.
    """
    main = Path(main)
    if not _journal(main).is_file():
        return
    with locked(main.parent):
        if any(_pending(scratch, target) or _lost(scratch, target) for scratch, target in _listed(main)):
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
    """Do the journal's renames, as often as it takes: what is done is skipped."""
    journal = _journal(main)
    if not journal.is_file():
        return
    for scratch, target in _listed(main):
        if not _pending(scratch, target):  # it is done
            continue
        if scratch is None:
            target.unlink()
        else:
            os.replace(scratch, target)
    sync_folder(main.parent)
    journal.unlink(missing_ok=True)
    sync_folder(main.parent)


def _pending(scratch: Path | None, target: Path) -> bool:
    """Whether the entry's removal (without a scratch) or renaming is still to be done."""
    return _is_regular(target if scratch is None else scratch)


def _lost(scratch: Path | None, target: Path) -> bool:
    """Whether the entry's file was neither renamed nor is it waiting: somebody removed it."""
    return scratch is not None and not scratch.exists() and not target.exists()


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _listed(main: Path) -> Iterator[tuple[Path | None, Path]]:
    """A journal that came with somebody's folder may name nothing but what a writer of `main` replaces anyway."""
    listed = read_mark(_journal(main), _MOST_JOURNAL_BYTES).get("files")
    ours = _names(main)
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) for name in entry):
            scratch, target = entry
            if target in ours and "/" not in scratch and (not scratch or scratch.startswith(f".{target}.")):
                yield (main.parent / scratch if scratch else None), main.parent / target


def _journal(main: Path) -> Path:
    return main.with_name(f".{main.name}.commit")
