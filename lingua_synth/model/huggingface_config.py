"""config.json of Hugging Face's Llama, from a ModelArgs and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from lingua_synth.model.args import ModelArgs, ffn_hidden_dim, head_dim, validate_model_args

CONFIG = "config.json"


def to_config(args: ModelArgs, *, bos_id: int = -1, eos_id: int = -1, dtype: str = "fp32") -> dict[str, Any]:
    """config.json of a model, for `LlamaForCausalLM` of transformers 4.43 and later; an id of -1 is left null.

    Rotary positions are told in both places: `rope_theta` and `rope_scaling` (transformers 4, vLLM) and
    `rope_parameters` (transformers 5). ValueError for what Llama of transformers does not have.
    """
    validate_model_args(args)  # refuses a sliding window
    scaling = None
    if args.rope_scaling_factor != 1:
        scaling = {
            "rope_type": "llama3",
            "factor": args.rope_scaling_factor,
            "low_freq_factor": args.rope_low_freq_factor,
            "high_freq_factor": args.rope_high_freq_factor,
            "original_max_position_embeddings": args.rope_original_seqlen,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos_id if bos_id >= 0 else None,
        "eos_token_id": eos_id if eos_id >= 0 else None,
        "pad_token_id": None,
        "head_dim": head_dim(args),
        "hidden_act": "silu",
        "hidden_size": args.dim,
        "initializer_range": args.init_base_std or args.dim**-0.5,
        "intermediate_size": ffn_hidden_dim(args),
        "max_position_embeddings": args.max_seqlen,
        "mlp_bias": False,
        "num_attention_heads": args.n_heads,
        "num_hidden_layers": args.n_layers,
        "num_key_value_heads": args.n_kv_heads or args.n_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": args.norm_eps,
        "rope_theta": args.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": args.rope_theta},
        "tie_word_embeddings": args.weight_tying,
        "torch_dtype": {"bf16": "bfloat16", "fp32": "float32"}[dtype],
        "use_cache": True,
        "vocab_size": args.vocab_size,
    }


_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "vocab_size",
)
# What a Llama of transformers must not have to be one of ours: key, the value that is ours, what another means.
_PLAIN = {
    "hidden_act": ("silu", "its feed-forward layer has another activation"),
    "attention_bias": (False, "its attention has biases"),
    "mlp_bias": (False, "its feed-forward layer has biases"),
    "sliding_window": (None, "its attention sees a window of tokens only"),
    "partial_rotary_factor": (1.0, "only a part of each head is rotated"),
    "quantization_config": (None, "its weights are quantized"),
}


def from_config(config: Mapping[str, Any]) -> ModelArgs:
    """The model that a config.json describes; `ffn_rule` finds Lingua's two fields for its feed-forward width.

    Takes LlamaForCausalLM, and MistralForCausalLM without its window, which is the same model. ValueError names
    everything by which another differs from the model of this library.
    """
    found = (config.get("architectures") or ["none named"])[0]
    if found not in ("LlamaForCausalLM", "MistralForCausalLM"):
        raise ValueError(f"architecture {found} is not LlamaForCausalLM; only Llama models can be imported")
    required = (*_REQUIRED, "num_key_value_heads") if found == "MistralForCausalLM" else _REQUIRED
    missing = [key for key in required if not isinstance(config.get(key), int | float)]
    if found == "MistralForCausalLM" and "sliding_window" not in config:
        missing.append("sliding_window")  # its default is a window
    if missing:
        raise ValueError(f"{CONFIG} does not say: {', '.join(missing)}")
    differences = [
        f"{why} ({key} is {config[key] if key != 'quantization_config' else 'set'})"
        for key, (ours, why) in _PLAIN.items()
        if config.get(key, ours) not in (ours, None)
    ]
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "llama3"):
        differences.append(f"its rotary frequencies are scaled by the rule {rope_type!r}, not 'llama3'")
    if differences:
        raise ValueError(f"this {found} is another model than ours: {'; '.join(differences)}")
    multiplier, multiple_of = ffn_rule(config["hidden_size"], config["intermediate_size"])
    n_heads, dim = config["num_attention_heads"], config["hidden_size"]
    width = config.get("head_dim") or dim // n_heads
    kv_heads = config.get("num_key_value_heads") or n_heads
    args = ModelArgs(
        dim=dim,
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        head_dim=None if width * n_heads == dim else width,
        n_kv_heads=None if kv_heads == n_heads else kv_heads,
        vocab_size=config["vocab_size"],
        ffn_dim_multiplier=multiplier,
        multiple_of=multiple_of,
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        max_seqlen=config["max_position_embeddings"],
        weight_tying=bool(config.get("tie_word_embeddings", False)),
    )
    if rope_type == "llama3":
        try:
            args.rope_scaling_factor = float(rope["factor"])
            args.rope_low_freq_factor = float(rope["low_freq_factor"])
            args.rope_high_freq_factor = float(rope["high_freq_factor"])
            args.rope_original_seqlen = int(rope["original_max_position_embeddings"])
        except KeyError as error:
            raise ValueError(f"{CONFIG} scales rotary frequencies by 'llama3' without {error}") from None
    validate_model_args(args)
    return args


def ffn_rule(dim: int, hidden: int) -> tuple[float | None, int]:
    """(ffn_dim_multiplier, multiple_of) whose feed-forward width for `dim` is exactly `hidden`.

    The first that fits, multiple by multiple, of: no multiplier, a multiplier of whole tenths (1.3); at last the exact
    quotient, rounded to no multiple. Multiples: 256, 1024, 4096, as in Llama, then powers of two from 2048 down.
    """
    multiples = [256, 1024, 4096, *(2**power for power in range(11, -1, -1))]
    base = int(2 * (4 * dim) / 3)
    if hidden < 1 or base < 1:
        raise ValueError(f"no model has width {dim} and feed-forward width {hidden}")
    short = sorted((k / 10 for k in range(1, 101)), key=lambda f: (abs(f * base - hidden), f))
    quotient = hidden / base
    exact = [quotient, math.nextafter(quotient, math.inf)]  # the product is rounded down
    for multiplier, multiple in itertools.chain(
        ((f, m) for m in multiples for f in (None, *short)), ((f, 1) for f in exact)
    ):
        if ffn_hidden_dim(ModelArgs(dim=dim, ffn_dim_multiplier=multiplier, multiple_of=multiple)) == hidden:
            return multiplier, multiple
    raise AssertionError("the next float above a quotient gives it back")
