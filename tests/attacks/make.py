"""Write the hostile files of this folder: python tests/attacks/make.py

Each is a small sound file with one thing changed. The tests open the committed files; this says how each came about.
"""

import shutil
from pathlib import Path

import make_arrays
import make_authors
import make_checkpoints
import make_gates
import make_graphs
import make_json

FILES = Path(__file__).parent / "files"


def main() -> None:
    """Write all of them anew."""
    shutil.rmtree(FILES, ignore_errors=True)
    for module in (make_checkpoints, make_graphs, make_json, make_authors, make_arrays, make_gates):
        module.write(FILES)
    sizes = [path.stat().st_size for path in FILES.rglob("*") if path.is_file()]
    print(f"{len(sizes)} files, {sum(sizes)} bytes")


if __name__ == "__main__":
    main()
