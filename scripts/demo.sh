#!/usr/bin/env bash
# The whole way on a built-in model, from nothing but Python 3.11: bash scripts/demo.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/environment.sh"
exec edgedm demo "$@"
