#!/usr/bin/env bash
# Makes the peer's Python environment in DIR: llama.cpp built for this machine. Minutes on two cores; a finished one is left alone.
#   setup.sh DIR
set -euo pipefail
dir=$1
here=$(cd "$(dirname "$0")" && pwd)
[ -e "$dir/.complete" ] && exit 0
rm -rf "$dir"
mkdir -p "$(dirname "$dir")"
python3 -m venv "$dir"
"$dir/bin/pip" install --quiet --disable-pip-version-check cmake ninja
# From source: wheels are built for machines without AVX-512.
PATH="$dir/bin:$PATH" CMAKE_ARGS="-DGGML_NATIVE=ON" "$dir/bin/pip" install --quiet --disable-pip-version-check \
  --no-cache-dir --no-binary llama-cpp-python -r "$here/requirements.txt"
touch "$dir/.complete"
