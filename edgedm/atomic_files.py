"""Write several files that belong together (a graph and its companions): all of them new, or all as they were.

No file system renames several files at once. So the new ones are first written whole beside their targets, then a
journal `.<name of the first>.commit` that lists them appears, and from then on the new ones count: whoever comes next,
writer or reader, finishes the renames that a killed writer left (`settle`). Renames are done under a lock of the
folder, so two writers don't mix their files.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgedm.atomic import check_file_place, locked, read_mark, sync_folder, write_scratch

_MOST_JOURNAL_BYTES = 1 << 16


def write_together(files: Mapping[Path, bytes | None]) -> None:
    """Write `files` of one folder, whole or not at all; None removes a companion that earlier ones may have left.

    The first is the one that readers ask for. Raises `InvalidModelError` where a folder or a file stands in the way,
    OSError where the disk refuses; then the old files are untouched.
    """
    main = next(iter(files))
    for path in files:
        check_file_place(path)
        assert path.parent == main.parent, "files that belong together lie together"
    main.parent.mkdir(parents=True, exist_ok=True)
    settle(main)
    scratches: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            if data is not None:
                scratches[path] = write_scratch(path, data)
        entries = [[scratches[path].name if path in scratches else "", path.name] for path in files]
        with locked(main.parent):
            _finish(main)  # of a writer that was quicker
            journal = _journal(main)
            scratches[journal] = write_scratch(journal, json.dumps({"files": entries}).encode())
            os.replace(scratches[journal], journal)
            scratches.clear()  # from here on they are the journal's
            sync_folder(main.parent)  # it lasts before the first rename that it is for
            _finish(main)
    finally:
        for scratch in scratches.values():
            scratch.unlink(missing_ok=True)


def settle(main: str | os.PathLike[str]) -> None:
    """Finish what a killed writer of `main` and its companions left half-renamed; to be called before reading them."""
    main = Path(main)
    if _journal(main).is_file():
        with locked(main.parent):
            _finish(main)


def _finish(main: Path) -> None:
    """Do the journal's renames, as often as it takes: what is done is skipped."""
    journal = _journal(main)
    if not journal.is_file():
        return
    for scratch, target in _entries(main, read_mark(journal, _MOST_JOURNAL_BYTES).get("files")):
        if scratch is None:
            target.unlink(missing_ok=True)
        else:
            with contextlib.suppress(FileNotFoundError):  # it has been renamed
                os.replace(scratch, target)
    sync_folder(main.parent)
    journal.unlink(missing_ok=True)
    sync_folder(main.parent)


def _entries(main: Path, listed: object) -> Iterator[tuple[Path | None, Path]]:
    """A journal that came with somebody's folder may rename nothing but our own files."""
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) for name in entry):
            scratch, target = entry
            ours = target == main.name or target.startswith(f"{main.stem}.")
            if ours and "/" not in scratch + target and (not scratch or scratch.startswith(f".{target}.")):
                yield (main.parent / scratch if scratch else None), main.parent / target


def _journal(main: Path) -> Path:
    return main.with_name(f".{main.name}.commit")
