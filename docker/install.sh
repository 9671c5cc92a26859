#!/bin/sh
# Installs Easel from the checkout in the working directory into a virtual environment of its own: what the
# Dockerfile does, and what a server without containers can do as well.
#
#     docker/install.sh /opt/easel
#
# VARIANT=cuda (the default) takes torch as the package index gives it, on Linux with CUDA. VARIANT=cpu takes
# it from TORCH_INDEX, the address of PyTorch's index of CPU builds, where that is given. EXTRAS are of
# pyproject.toml: EXTRAS=traces,vision. PYTHON is the interpreter.
set -eu

target=${1:?where to?}
python=${PYTHON:-python3}
variant=${VARIANT:-cuda}
extras=${EXTRAS:-}

case $variant in
    cuda | cpu) ;;
    *) echo "VARIANT is cuda or cpu, not $variant" >&2; exit 2 ;;
esac

"$python" -m venv "$target"
pip="$target/bin/python -m pip --disable-pip-version-check --no-cache-dir"
if [ "$variant" = cpu ] && [ -n "${TORCH_INDEX:-}" ]; then
    $pip install --quiet -c constraints.txt --index-url "$TORCH_INDEX" torch
fi
$pip install --quiet -c constraints.txt ".${extras:+[$extras]}"
"$target/bin/easel" --help >/dev/null
