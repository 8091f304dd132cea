#!/usr/bin/env bash
# Install the tools outside pip that some tests need, from Debian's packages (as root).
set -euo pipefail
tools=(gcc)
missing=()
for tool in "${tools[@]}"; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
[ ${#missing[@]} -eq 0 ] && exit 0
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
