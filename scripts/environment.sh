# Sourced by the other scripts: make .venv beside this folder's parent, install edgedm into it, use it.
# A second run with an unchanged pyproject.toml reuses the environment.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "edgedm needs Python 3.11 or newer; $python is $("$python" --version)" >&2
    exit 2
}
stamp=$(sha256sum pyproject.toml | cut -d' ' -f1)
if [ "$(cat .venv/edgedm-stamp 2>/dev/null)" != "$stamp" ]; then
    echo "== installing into .venv (once; about 2 GB with PyTorch and TVM)"
    "$python" -m venv .venv
    # PyTorch's CPU build first: with it in place nothing asks for the CUDA packages.
    .venv/bin/pip install --quiet torch==2.13.0
    .venv/bin/pip install --quiet --editable '.[all,dev]'
    echo "$stamp" > .venv/edgedm-stamp
fi
export PATH="$PWD/.venv/bin:$PATH"
