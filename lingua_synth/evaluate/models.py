"""Opening what is evaluated: a run of ours, a checkpoint of ours or of Meta Lingua, or a Hugging Face folder."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingua_synth.tokens import Tokenizer, build_tokenizer

if TYPE_CHECKING:
    import torch

    from lingua_synth.model.transformer import Transformer

DTYPES = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to be scored, and the vocabulary it was trained with."""

    model: Transformer
    tokenizer: Tokenizer
    folder: Path
    """The checkpoint that was read."""
    dtype: str
    """Compute type: bf16 or fp32."""
    kept: Any = None
    """What must live as long as this."""

    @property
    def context(self) -> int:
        """Most tokens that the model can see."""
        return self.model.args.max_seqlen


def is_huggingface(folder: str | Path) -> bool:
    """Whether `folder` is laid out as Hugging Face's models are."""
    return (Path(folder) / "config.json").is_file() and not (Path(folder) / "params.json").is_file()


def open_model(
    checkpoint: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "auto",
    tokenizer_name: str = "",
    tokenizer_path: str | None = None,
    as_trained: bool = False,
) -> OpenedModel:
    """Open a run folder (its newest checkpoint), a checkpoint, Lingua's `consolidated`, or a Hugging Face folder.

    `tokenizer_name`: the vocabulary, where the checkpoint names none or its file has moved. `dtype` auto: bf16, or with
    `as_trained` the type of the model's training. ValueError for no checkpoint, an unknown or missing vocabulary, and
    one that the model's embedding does not hold.
    """
    import torch

    from lingua_synth.model.checkpoint import PARAMS, load_model
    from lingua_synth.model.huggingface import load_huggingface

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {', '.join(DTYPES)}; got {dtype!r}")
    types = {"bf16": torch.bfloat16, "fp32": torch.float32}
    folder = Path(checkpoint)
    if is_huggingface(folder):
        dtype = "bf16" if dtype == "auto" else dtype
        model = load_huggingface(folder, device, types[dtype])
        given = _named(tokenizer_name, tokenizer_path)
        tokenizer, kept = (given, None) if given else _of_huggingface(folder, model.args.vocab_size)
    else:
        kept = None
        folder, model, params = load_model(folder, device, types.get(dtype))
        if dtype == "auto":
            trained = str((params.get("distributed") or {}).get("model_dtype", "bf16"))
            if as_trained and trained not in types:
                raise ValueError(f"{folder / PARAMS}: model_dtype {trained} is none of {', '.join(types)}; set dtype=")
            dtype = trained if as_trained else "bf16"
            model.compute_dtype = types[dtype]
        named = (params.get("data") or {}).get("tokenizer")
        found = _named(tokenizer_name, tokenizer_path)
        if found is None:
            if not isinstance(named, dict) or not named.get("name"):
                raise ValueError(
                    f"{folder / PARAMS} does not name the tokenizer of its model (data.tokenizer); name it: "
                    "tokenizer.name= tokenizer.path="
                )
            found = build_tokenizer(named["name"], tokenizer_path or named.get("path"))
        tokenizer = found
    if tokenizer.n_words > model.args.vocab_size:
        raise ValueError(
            f"the vocabulary {tokenizer.path or tokenizer.name} has {tokenizer.n_words:,} entries, the model of "
            f"{folder} only {model.args.vocab_size:,}; name the right one: tokenizer.name= tokenizer.path="
        )
    return OpenedModel(model, tokenizer, folder, dtype, kept)


def _named(name: str, path: str | None) -> Tokenizer | None:
    return build_tokenizer(name, path) if name else None


def _of_huggingface(folder: Path, num_words: int) -> tuple[Tokenizer, Any]:
    """The vocabulary of a downloaded model, and the temporary folder of its file, which lives while it is referred
    to."""
    from lingua_synth.tokens.huggingface import find_tokenizer

    temporary = tempfile.TemporaryDirectory()
    found = find_tokenizer(folder, Path(temporary.name) / "tokenizer.model", num_words)
    return build_tokenizer(found.name, found.path), temporary
