"""Checkpoints to Hugging Face's Llama and back.

checkpoint (ours or Meta Lingua's) ──export──> config.json + *.safetensors + tokenizer files + README.md, for
`transformers`, vLLM, lm-evaluation-harness; a local folder of that kind ──import──> run folder with one checkpoint, for
`lingua-synth train checkpoint.init_ckpt_path=...`, `evaluate`, `generate`, and Meta Lingua.

The two differ in names and in one permutation: our rotary positions turn neighbouring pairs of a head's dimensions,
(0, 1), (2, 3), ...; Hugging Face's turn the first half against the second, (0, C/2), (1, C/2 + 1), ... So the rows of
the query and key matrices change places within each head (`to_halves`, `to_pairs`); every other number stays.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lingua_synth.files import atomic_file, atomic_folder, read_json, refuse_path, what_is_there, write_json
from lingua_synth.model.args import ModelArgs, ffn_hidden_dim, head_dim
from lingua_synth.model.checkpoint import (
    CONSOLIDATED,
    FOLDER,
    PARAMS,
    _alone_without_warning,
    _model_args,
    _open_checkpoint,
)
from lingua_synth.model.checkpoint_reading import CheckpointReader, read_state
from lingua_synth.model.huggingface_config import CONFIG, from_config, to_config
from lingua_synth.model.model_card import model_card
from lingua_synth.model.safetensors_format import INDEX, SINGLE, SafetensorsFile, write_safetensors
from lingua_synth.model.transformer import Transformer
from lingua_synth.tokens.args import TokenizerArgs
from lingua_synth.tokens.huggingface import find_tokenizer, write_tokenizer_files
from lingua_synth.tokens.tokenizer import build_tokenizer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Of a tied model Lingua's state has the one matrix under this name too.
_LINGUA_TIED = "output.tied_module.weight"


# ---- names and the permutation ----


def to_halves(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows [n_heads * C, ...] of a query or key matrix from neighbouring pairs to halves: row 2k of a head becomes k,
    row 2k + 1 becomes C/2 + k. `to_pairs` undoes it."""
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def to_pairs(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """The inverse of `to_halves`."""
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class Parameter:
    """One matrix or vector under both names."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    rotated_heads: int = 0
    """Heads whose rows change places; 0: none do."""


def list_parameters(args: ModelArgs) -> list[Parameter]:
    """The parameters of a model in Hugging Face's order; a tied output matrix is not one."""
    width, hidden = head_dim(args), ffn_hidden_dim(args)
    kv_heads = args.n_kv_heads or args.n_heads
    queries, keys = (args.n_heads * width, args.dim), (kv_heads * width, args.dim)
    block = [
        Parameter("attention.wq", "self_attn.q_proj", queries, args.n_heads),
        Parameter("attention.wk", "self_attn.k_proj", keys, kv_heads),
        Parameter("attention.wv", "self_attn.v_proj", keys),
        Parameter("attention.wo", "self_attn.o_proj", queries[::-1]),
        Parameter("feed_forward.w1", "mlp.gate_proj", (hidden, args.dim)),
        Parameter("feed_forward.w3", "mlp.up_proj", (hidden, args.dim)),
        Parameter("feed_forward.w2", "mlp.down_proj", (args.dim, hidden)),
        Parameter("attention_norm", "input_layernorm", (args.dim,)),
        Parameter("ffn_norm", "post_attention_layernorm", (args.dim,)),
    ]
    vocabulary = (args.vocab_size, args.dim)
    parameters = [Parameter("tok_embeddings.weight", "model.embed_tokens.weight", vocabulary)]
    for i, p in itertools.product(range(args.n_layers), block):
        names = f"layers.{i}.{p.ours}.weight", f"model.layers.{i}.{p.theirs}.weight"
        parameters.append(Parameter(*names, p.shape, p.rotated_heads))
    parameters.append(Parameter("norm.weight", "model.norm.weight", (args.dim,)))
    if not args.weight_tying:
        parameters.append(Parameter("output.weight", "lm_head.weight", vocabulary))
    return parameters


# ---- export ----


def export_huggingface(
    checkpoint: str | Path,
    out: str | Path,
    *,
    dtype: str = "bf16",
    max_shard_bytes: int = 5_000_000_000,
    tokenizer_path: str | None = None,
) -> Path:
    """Write a checkpoint as a Hugging Face folder `out`, and return it.

    `checkpoint`: a run folder (its newest checkpoint), one checkpoint folder, or Lingua's `consolidated` folder.
    `dtype`: type of the stored weights, bf16 or fp32 (exact). Weights beyond `max_shard_bytes` are divided over several
    files. `tokenizer_path` replaces the vocabulary file that the checkpoint names, where that has moved. A model that
    was fine-tuned on conversations carries their chat template, and stops at what ended their answers.

    The folder appears whole or not at all; one tensor is in memory at a time. ValueError for an `out` that exists, a
    checkpoint that does not hold its model, a vocabulary that is missing or larger than the model's embedding.
    """
    out = Path(out)
    _refuse_existing(out)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {' or '.join(DTYPES)}; got {dtype!r}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    folder, params = _open_checkpoint(checkpoint)
    args = _model_args(folder, params)
    data = params.get("data") or {}
    if args.max_seqlen < 1:
        args.max_seqlen = int(data.get("seq_len", -1))
    chat: dict[str, Any] | None = params.get("chat")
    named = data.get("tokenizer")
    if not isinstance(named, dict) or not named.get("name"):
        raise ValueError(f"{folder / PARAMS} does not name the tokenizer of its model (data.tokenizer)")
    tokenizer = build_tokenizer(named["name"], tokenizer_path or named.get("path"))
    if args.vocab_size < 1:
        args.vocab_size = tokenizer.n_words
    if tokenizer.n_words > args.vocab_size:
        raise ValueError(
            f"the vocabulary {tokenizer.path or tokenizer.name} has {tokenizer.n_words:,} entries, the model of "
            f"{folder} only {args.vocab_size:,}; name the right file: tokenizer_path="
        )
    config = to_config(args, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, dtype=dtype)
    parameters = list_parameters(args)
    read = _open_weights(folder, parameters)
    with atomic_folder(out) as temporary:
        _write_weights(temporary, parameters, read, DTYPES[dtype], max_shard_bytes)
        write_json(temporary / CONFIG, config)
        ends = {key: config[key] for key in ("bos_token_id", "eos_token_id") if config[key] is not None}
        if chat is not None and (others := sorted(set(chat["end_ids"]) - {tokenizer.eos_id})):
            ends["eos_token_id"] = [*([tokenizer.eos_id] if tokenizer.eos_id >= 0 else []), *others]
        write_json(temporary / "generation_config.json", ends)
        compared = write_tokenizer_files(
            tokenizer, temporary, max_length=args.max_seqlen, add_bos=_begins_with_bos(params), chat=chat
        )
        with atomic_file(temporary / "README.md") as file:
            file.write(model_card(folder, params, args, tokenizer, dtype=dtype, ids_compared=compared))
    return out


def _write_weights(
    folder: Path,
    parameters: list[Parameter],
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    def converted(shard: list[Parameter]) -> Iterator[torch.Tensor]:
        for p in shard:
            weight = read(p.ours)
            yield to_halves(weight, p.rotated_heads) if p.rotated_heads else weight

    sizes = [math.prod(p.shape) * dtype.itemsize for p in parameters]
    shards: list[list[Parameter]] = [[]]
    room = max_shard_bytes
    for p, size in zip(parameters, sizes, strict=True):
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(p)
        room -= size
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        weight_map = {p.theirs: name for name, shard in zip(names, shards, strict=True) for p in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map})
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, {p.theirs: p.shape for p in shard}, dtype, converted(shard))


def _open_weights(folder: Path, parameters: list[Parameter]) -> Callable[[str], torch.Tensor]:
    """What reads a weight of a checkpoint by our name; ValueError if one is missing or of another shape."""
    if (folder / CONSOLIDATED).is_file():
        state = torch.load(folder / CONSOLIDATED, map_location="cpu", mmap=True, weights_only=True)
        weights = state.get("model", state)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items() if torch.is_tensor(weight)}
        read = weights.__getitem__
    elif (folder / ".metadata").is_file():
        entries = CheckpointReader(folder).read_metadata().state_dict_metadata
        shapes = {
            key.removeprefix("model."): tuple(entry.size)
            for key, entry in entries.items()
            if key.startswith("model.") and isinstance(entry, TensorStorageMetadata)
        }

        def read(name: str) -> torch.Tensor:
            state = {"model": {name: torch.empty(shapes[name])}}
            with _alone_without_warning():
                read_state(state, folder, no_dist=True)
            return state["model"][name]

    else:
        raise ValueError(
            f"{folder} has no weights: neither .metadata nor {CONSOLIDATED}; {what_is_there(folder / PARAMS)}"
        )
    expected = {p.ours: p.shape for p in parameters}
    _refuse_other_shapes(folder, expected, shapes, allowed={"output.weight", _LINGUA_TIED})
    return read


def _begins_with_bos(params: Mapping[str, Any]) -> bool:
    """Whether the documents of the run began with BOS: as its shards say, where they still are, else its config."""
    said = []
    for source in ((params.get("synth") or {}).get("sources") or {}).values():
        manifest = Path(str(source.get("path") or "")) / "manifest.json"
        if manifest.is_file():
            said.append(bool(read_json(manifest).get("add_bos", True)))
    return all(said) if said else bool((params.get("data") or {}).get("add_bos", True))


# ---- import ----


def import_huggingface(
    folder: str | Path, out: str | Path, *, tokenizer: TokenizerArgs | None = None, dtype: str = "fp32"
) -> Path:
    """Make a run folder `out` with one checkpoint, of step 0, from a local Hugging Face Llama; return `out`.

    The checkpoint is in Meta Lingua's format: `load_checkpoint` and `checkpoint.init_ckpt_path` read it, and Lingua's
    `load_from_checkpoint`. Weights are stored as fp32, which holds bf16 and fp16 exactly, or as bf16. `tokenizer`: the
    vocabulary to record; None looks for it in the folder (`find_tokenizer`) and copies it to `out`/tokenizer.model.

    The folder appears whole or not at all; memory is that of the stored weights. ValueError for an `out` that exists,
    an architecture that is not ours (every difference is named), weights that are missing, damaged, or of other shapes.
    """
    folder, out = Path(folder), Path(out)
    _refuse_existing(out)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {' or '.join(DTYPES)}; got {dtype!r}")
    config, args, parameters, files = _open_huggingface(folder)
    if tokenizer is not None:
        words = build_tokenizer(tokenizer.name, tokenizer.path).n_words
        if words > args.vocab_size:
            raise ValueError(
                f"tokenizer {tokenizer.name} {tokenizer.path or ''} has {words:,} entries, the model of {folder} only "
                f"{args.vocab_size:,}; it is not this model's"
            )
    with atomic_folder(out) as temporary:
        if tokenizer is None:
            tokenizer = find_tokenizer(folder, temporary / "tokenizer.model", args.vocab_size)
            if tokenizer.path:
                tokenizer.path = os.path.abspath(out / "tokenizer.model")
        checkpoint = temporary / FOLDER / f"{0:010d}"
        checkpoint.mkdir(parents=True)
        _save_weights(checkpoint, args, parameters, files, DTYPES[dtype], out)
        params = {
            "name": folder.resolve().name,
            "model": dataclasses.asdict(args),
            "data": {"seq_len": args.max_seqlen, "tokenizer": {"name": tokenizer.name, "path": tokenizer.path}},
            "distributed": {"model_dtype": "bf16"},
            "imported": {"from": folder.resolve().name, "config": config},
        }
        write_json(checkpoint / PARAMS, params)
    return out


def _open_huggingface(
    folder: Path,
) -> tuple[dict[str, Any], ModelArgs, list[Parameter], dict[str, SafetensorsFile]]:
    """A local Llama: its config, as our args, its parameters and the file of each; ValueError where it is not ours."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; download the model first, then name its folder; {what_is_there(folder)}")
    config = read_json(folder / CONFIG)
    try:
        args = from_config(config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    parameters = list_parameters(args)
    files = _open_safetensors(folder)
    expected = {p.theirs: p.shape for p in parameters}
    shapes = {name: file.shapes[name] for name, file in files.items()}
    # Rotary tables, which old files carry; a tied output matrix.
    allowed = {name for name in shapes if name.endswith("rotary_emb.inv_freq")}
    allowed |= {"lm_head.weight"} if args.weight_tying else set()
    _refuse_other_shapes(folder, expected, shapes, allowed)
    return config, args, parameters, files


def load_huggingface(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Transformer:
    """A local Hugging Face Llama as our model, in eval mode on `device`, without a copy on disk.

    `dtype` is the compute type; None: fp32 on a CPU, bf16 elsewhere. ValueError as for `import_huggingface`.
    """
    _, args, parameters, files = _open_huggingface(Path(folder))
    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    model = Transformer(args, compute_dtype=dtype)
    weights = model.state_dict()
    for p in parameters:
        weight = files[p.theirs].read(p.theirs)
        weights[p.ours].copy_(to_pairs(weight, p.rotated_heads) if p.rotated_heads else weight)
    return model.to(device).eval()


def _save_weights(
    checkpoint: Path,
    args: ModelArgs,
    parameters: list[Parameter],
    files: Mapping[str, SafetensorsFile],
    dtype: torch.dtype,
    out: Path,
) -> None:
    state = {}
    for p in parameters:
        weight = files[p.theirs].read(p.theirs)
        # A copy of what is mapped only where something changes.
        state[p.ours] = (to_pairs(weight, p.rotated_heads) if p.rotated_heads else weight).to(dtype)
    if args.weight_tying:
        state["output.weight"] = state[_LINGUA_TIED] = state["tok_embeddings.weight"]
    free = shutil.disk_usage(checkpoint).free
    try:
        with _alone_without_warning():
            dcp.save({"model": state}, checkpoint_id=checkpoint, no_dist=True)
    except dcp.api.CheckpointException as error:
        reasons = {f"{type(e).__name__}: {str(e).splitlines()[0]}" for e, _ in error.failures.values()}
        raise OSError(
            f"{out} could not be written ({'; '.join(sorted(reasons))}); there were {free:,} bytes free on its disk, "
            "and nothing is left of it: make room and run again"
        ) from None


def _open_safetensors(folder: Path) -> dict[str, SafetensorsFile]:
    """The file of each tensor of a folder."""
    if (folder / INDEX).is_file():
        weight_map: dict[str, str] = read_json(folder / INDEX)["weight_map"]
        names = sorted(set(weight_map.values()))
        for name in names:
            refuse_path(name, folder / INDEX)
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(
                f"{folder} lacks {len(missing)} of the {len(names)} files that {INDEX} names: {', '.join(missing[:4])}"
                "; download them again"
            )
        files = {name: SafetensorsFile(folder / name) for name in names}
        for tensor, name in weight_map.items():
            if tensor not in files[name].shapes:
                raise ValueError(
                    f"{folder / name} does not hold {tensor}, which {INDEX} says it does; download it again"
                )
        return {tensor: files[name] for tensor, name in weight_map.items()}
    if (folder / SINGLE).is_file():
        file = SafetensorsFile(folder / SINGLE)
        return dict.fromkeys(file.shapes, file)
    if any(folder.glob("*.bin")):
        raise ValueError(
            f"{folder} has its weights as pickled .bin files, which run code when they are read; take the model's "
            "safetensors files, or write them with transformers: save_pretrained(folder)"
        )
    raise ValueError(f"no weights in {folder}: neither {SINGLE} nor {INDEX}; {what_is_there(folder / SINGLE)}")


def _refuse_other_shapes(
    where: Path,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    allowed: set[str],
) -> None:
    """ValueError unless exactly the expected tensors, and of the others only those `allowed`, were found."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of the model" for name in found if name not in expected and name not in allowed]
    problems += [
        f"{name} is {found[name]}, not {shape}" for name, shape in expected.items() if found.get(name, shape) != shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"{where} does not hold the model it describes: {'; '.join(problems[:4])}{more}")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists; name another folder, or delete it first")
