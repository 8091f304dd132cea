"""Write the table of mutants into docs/verify.md; `pytest -m slow tests/verify/test_mutants.py` proves what it says."""

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "verify")]

from mutants import MUTANTS  # noqa: E402  (beside the tests that use it)

BEGIN, END = "<!-- mutants -->", "<!-- end of mutants -->"


def table() -> str:
    """One line a mutant."""
    parts = Counter(each.part for each in MUTANTS)
    told = ", ".join(f"{count} in {part}" for part, count in sorted(parts.items()))
    lines = [f"{len(MUTANTS)} mutants: {told}.", "", "| mutant | planted in | found by level |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {each.name} | {each.part} | {each.level} |" for each in MUTANTS)])


def main() -> None:
    path = ROOT / "docs" / "verify.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
