"""Llama 3's vocabulary, where Meta's package `llama-models` is installed.

The package is never imported (its modules want pydantic, Pillow and a hub client): its folder is looked up and the
file in it read, after its hash. Installed without its dependencies it serves just as well:

    pip install --no-deps llama-models

The file is Meta's and under the Llama 3 Community License; this library does not carry it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lingua_synth.files import sha256_file

PACKAGE = "llama_models"
# SHA-256 of `llama_models/llama3/tokenizer.model` (128,000 lines) in llama-models 0.3.0; the file that Meta publishes
# with the weights of Llama 3, 3.1, 3.2 and 3.3.
FILE_SHA256 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"


def find_llama3_ranks() -> Path:
    """Path of Llama 3's rank file inside the installed package `llama-models`.

    Raises ValueError, naming the two ways out, when the package is not installed or holds no file of that hash.
    """
    ways = (
        "pip install 'lingua-synth[llama3]' (Meta's package, which carries Llama 3's), or name a file: tokenizer.path="
    )
    spec = find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    if not folders:
        raise ValueError(f"tokenizer tiktoken needs a rank file: {ways}")
    # Other places in other releases; Llama 4's file has the same name.
    found = sorted(file for folder in folders for file in folder.rglob("tokenizer.model"))
    for file in found:
        if sha256_file(file) == FILE_SHA256:
            return file
    held = ", ".join(str(file) for file in found) or "no tokenizer.model"
    raise ValueError(
        f"the installed llama-models does not hold Llama 3's rank file (SHA-256 {FILE_SHA256[:12]}...), only {held}; "
        "install llama-models 0.3.0, or name a file: tokenizer.path="
    )
