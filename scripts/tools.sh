#!/usr/bin/env bash
# Install the tools outside pip that some tests need, from Debian's packages (as root).
set -euo pipefail
declare -A packages=([gcc]="gcc libc6-dev" [make]=make [nm]=binutils [cmake]=cmake [pkg-config]=pkg-config [valgrind]=valgrind
    [qemu-aarch64-static]=qemu-user-static [wasm-objdump]=wabt [chromium]=chromium [chromedriver]=chromium-driver
    [javac]=default-jdk-headless [clang]="clang libclang-rt-dev")
missing=()
for tool in "${!packages[@]}"; do
    command -v "$tool" >/dev/null || missing+=(${packages[$tool]})
done
[ ${#missing[@]} -eq 0 ] && exit 0
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
