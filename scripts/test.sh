#!/usr/bin/env bash
# Lint, types and tests, from nothing but Python 3.11: bash scripts/test.sh [--full]
# --full also runs the slow tests and the demo, and fails where a tool outside pip is missing (scripts/tools.sh).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
full=no
if [ "${1:-}" = --full ]; then full=yes; shift; fi
source "$here/environment.sh"
part() {
    local name=$1 start=$SECONDS
    shift
    echo "== $name"
    "$@"
    echo "== $name: $((SECONDS - start)) s"
}
# One worker a core, each with one thread; a file's tests stay together because they share what its fixtures built,
# and files come in order: the default puts those of few tests last, which are the long ones.
workers=(-n "$(env -u OMP_NUM_THREADS nproc)" --dist loadfile --no-loadscope-reorder) # nproc would take OMP_NUM_THREADS for the cores
export OMP_NUM_THREADS=1
part ruff ruff check .
part mypy mypy
if [ "$full" = yes ]; then
    export EDGEDM_TOOLS_REQUIRED=1
    part demo edgedm demo --output build/demo
    part tests pytest "${workers[@]}" -m '' "$@"
else
    part tests pytest "${workers[@]}" "$@"
fi
