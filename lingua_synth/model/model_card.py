"""The README.md of an exported model: what it is, what it was trained on, how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingua_synth import __version__
from lingua_synth.files import read_json
from lingua_synth.model.args import ModelArgs, ffn_hidden_dim, head_dim
from lingua_synth.model.counts import count_parameters
from lingua_synth.tokens.tokenizer import Tokenizer

RESULT = "result.json"
USES = {
    "vLLM": "vllm serve {folder}",
    "lm-evaluation-harness": "lm_eval --model hf --model_args pretrained={folder} --tasks arc_easy,hellaswag",
}
"""One command for each library that reads an exported folder."""

_TEXT_USE = ('print(tokenizer.decode(model.generate(**tokenizer("Once", return_tensors="pt"), max_new_tokens=40)[0]))',)
_CHAT_USE = (
    'messages = [{"role": "user", "content": "Hello?"}]',
    "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors='pt', "
    "return_dict=True)",
    "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))",
)


def model_card(
    checkpoint: Path,
    params: Mapping[str, Any],
    args: ModelArgs,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    ids_compared: bool,
) -> str:
    """Markdown, from the checkpoint's config and, where this is the run's last checkpoint, from its result.json.

    Names no path of the machine it was trained on.
    """
    counts = count_parameters(args)
    chat = params.get("chat")
    kind = "a base model: it continues text and follows no instructions"
    if chat:
        kind = "fine-tuned on the answers of conversations, which chat_template.jinja wrote"
    name = str(params.get("name") or "model")
    step = checkpoint.name.lstrip("0") or "0"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [llama, lingua-synth, {'fine-tuned' if chat else 'pretrained'}]",
        "---",
        "",
        f"# {name}",
        "",
        f"A Llama of {counts.label} parameters, {kind}. Exported by lingua-synth {__version__} from checkpoint {step}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| shape | width {args.dim}, {args.n_layers} layers, {args.n_heads} heads of {head_dim(args)}, "
        f"{args.n_kv_heads or args.n_heads} key/value heads, feed-forward {ffn_hidden_dim(args)} |",
        f"| parameters | {counts.total:,} in all; {counts.non_embedding:,} without vocabulary matrices, "
        f"{counts.lingua:,} with one |",
        f"| context | {args.max_seqlen:,} tokens |",
        f"| vocabulary | {tokenizer.name}, {tokenizer.n_words:,} entries (embedding: {args.vocab_size:,}), SHA-256 "
        f"{tokenizer.sha256[:16]} |",
        f"| weights | {dtype} |",
    ]
    row = _result(checkpoint)
    if row:
        lines += ["", "## Training", "", *_training(row)]
    elif imported := (params.get("imported") or {}).get("from"):
        lines += ["", "## Training", "", f"Imported from `{imported}`; see there."]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")',
        *(_CHAT_USE if chat else _TEXT_USE),
        "```",
        "",
        *(f"{library}: `{command.format(folder='.')}`\n" for library, command in USES.items()),
    ]
    if not ids_compared:
        lines.append(
            "The ids of tokenizer.json were not compared with those of training (`tokenizers` was not installed)."
        )
    return "\n".join(lines).rstrip() + "\n"


def _training(row: Mapping[str, Any]) -> list[str]:
    lines = [f"Mixture {row.get('mixture')}: {row['tokens']:,} tokens, repeats counted; seed {row.get('seed')}."]
    if "scored_tokens" in row:
        lines[0] += f" Learned from {row['scored_tokens']:,} of them: of conversations, the answers alone."
    sources = [key.removeprefix("unique_tokens_") for key in row if key.startswith("unique_tokens_")]
    if sources:
        lines += ["", "| source | tokens | epochs |", "| --- | --- | --- |"]
        lines += [f"| {s} | {row[f'tokens_{s}']:,} | {row[f'epochs_{s}']:.3f} |" for s in sources]
    domains = [key.removeprefix("bpb_") for key in row if key.startswith("bpb_") and key != "bpb_macro"]
    if domains:
        lines += ["", "| held-out domain | nats per token | bits per byte |", "| --- | --- | --- |"]
        lines += [f"| {d} | {row[f'loss_{d}']:.4f} | {row[f'bpb_{d}']:.4f} |" for d in domains]
    return lines


def _result(checkpoint: Path) -> dict[str, Any] | None:
    """The run's row of the runs table, if the run is complete and this is its last checkpoint."""
    folder = checkpoint.parent if checkpoint.name == "consolidated" else checkpoint
    later = [p for p in folder.parent.iterdir() if p.name.isdigit() and p.name > folder.name]
    path = folder.parent.parent / RESULT
    if later or not path.is_file():
        return None
    row = read_json(path)
    return row if isinstance(row, dict) and "tokens" in row else None
