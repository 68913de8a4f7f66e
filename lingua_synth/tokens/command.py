"""`lingua-synth tokenize`: documents into token shards, their check, and Megatron's files in and out.

lingua-synth tokenize documents=data/corpus out=data/shards tokenizer.name=tiktoken tokenizer.path=tokenizer.model
lingua-synth tokenize documents=chats.jsonl out=data/chats chat_template=plain tokenizer.name=bytes
lingua-synth tokenize verify=data/shards                       (or, the same: tokenize verify out=data/shards)
lingua-synth tokenize export path=data/shards out=data/megatron/web
lingua-synth tokenize import path=data/megatron/web out=data/shards tokenizer.name=tiktoken
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingua_synth.config import parse_args
from lingua_synth.files import what_is_there
from lingua_synth.tokens.args import TokenizerArgs
from lingua_synth.tokens.chat import build_chat
from lingua_synth.tokens.megatron import export_megatron, import_megatron, read_export
from lingua_synth.tokens.shards import read_manifest
from lingua_synth.tokens.source import verify_shards
from lingua_synth.tokens.tokenization import tokenize
from lingua_synth.tokens.tokenizer import build_tokenizer

PROG = "lingua-synth tokenize"
ACTIONS = ("run", "verify", "import", "export")


@dataclass
class TokenizeArgs:
    """Tokenize documents once, for every run and any ratio; killed, the same command goes on from where it was.

    The word before the keys: run (the default), verify, import or export (Megatron's .bin and .idx). `verify=DIR` alone
    is short for `verify out=DIR`.
    """

    documents: str = ""
    """File, folder (recursive), glob or fsspec URL: .jsonl, .jsonl.gz, .jsonl.zst, .parquet; python:// is built in."""
    out: str = ""
    """Folder for the shards and their manifest.json; all that verify needs."""
    tokenizer: TokenizerArgs = field(default_factory=TokenizerArgs)
    """The vocabulary; its hash is carried by the shards."""
    add_bos: bool = True
    """Put BOS before every document."""
    add_eos: bool = True
    """Put EOS after every document."""
    chat_template: str = ""
    """The documents are conversations (messages, or a prompt with its answer), and only answers are scored in training:
    plain, a Jinja file, or the folder of a Hugging Face tokenizer. Empty: the documents are texts."""
    chat_max_tokens: int | None = None
    """Most tokens of a conversation, at least 2; null: any number."""
    chat_overlong: str = "drop"
    """A longer conversation is left out and counted (drop), or ends there (cut)."""
    chat_window_tokens: int | None = None
    """data.seq_len of the training: conversations are packed so that none is cut by a window's border. chat_max_tokens
    is then at most that. null: laid out one behind the other."""
    shuffle_seed: int | None = 0
    """Seed of the permutation of documents; null keeps the order of the input."""
    shard_tokens: int = 1 << 26
    """Most tokens in one file, at least 1; a document is never cut. Each worker holds one file in memory."""
    max_reject_rate: float = 0.01
    """Largest share of input lines, in [0, 1], that may be no documents before the run stops."""
    num_workers: int | None = None
    """Processes; null for one per core. The shards are the same for any number."""
    progress: bool = True
    """Show a progress bar on stderr."""


@dataclass
class VerifyArgs:
    """Check a folder of token shards against its manifest: every file, every byte. `tokenize verify=DIR` is short for
    `tokenize verify out=DIR`.
    """

    out: str = ""
    """Folder of the shards."""


@dataclass
class ExportArgs:
    """Write token shards as Megatron's indexed dataset."""

    path: str = ""
    """Folder of the shards."""
    out: str = ""
    """Prefix of the files: out=data/web writes data/web.bin, data/web.idx and, about the tokenizer, data/web.json."""
    progress: bool = True
    """Show a progress bar on stderr."""


@dataclass
class ImportArgs:
    """Turn Megatron's indexed dataset into token shards."""

    path: str = ""
    """Prefix of the files: path=data/web reads data/web.bin and data/web.idx."""
    out: str = ""
    """Folder for the shards and their manifest.json."""
    tokenizer: TokenizerArgs = field(default_factory=lambda: TokenizerArgs(name=""))
    """The vocabulary that the ids are of; may be left out where an export's PREFIX.json names it."""
    shard_tokens: int = 1 << 26
    """Most tokens in one file, at least 1; a document is never cut."""
    progress: bool = True
    """Show a progress bar on stderr."""


def main(argv: Sequence[str]) -> int | None:
    """Run the verb; returns 0, or 1 when `verify` finds a problem. ValueError for bad input."""
    action, words = (argv[0], argv[1:]) if argv and argv[0] in ACTIONS else ("run", argv)
    if action == "run" and any(word.startswith("verify=") for word in words):
        action, words = "verify", [f"out={word[7:]}" if word.startswith("verify=") else word for word in words]
    return {"run": _run, "verify": _verify, "import": _import, "export": _export}[action](words)


def _run(words: Sequence[str]) -> int:
    args = parse_args(TokenizeArgs, words, prog=f"{PROG} [run|verify|import|export]")
    for key in ("documents", "out"):
        if not getattr(args, key):
            raise ValueError(f"{key}= is missing; `{PROG} --help` lists the keys")
    tokenizer = build_tokenizer(args.tokenizer.name, args.tokenizer.path, args.tokenizer.fast)
    chat = None
    if args.chat_template:
        chat = build_chat(
            tokenizer,
            args.chat_template,
            max_tokens=args.chat_max_tokens,
            overlong=args.chat_overlong,
            window_tokens=args.chat_window_tokens,
        )
    elif (args.chat_max_tokens, args.chat_window_tokens, args.chat_overlong) != (
        None,
        None,
        TokenizeArgs.chat_overlong,
    ):
        raise ValueError("chat_max_tokens and its like are of conversations: name a chat_template, e.g. plain")
    manifest = tokenize(
        args.documents,
        args.out,
        tokenizer,
        add_bos=args.add_bos,
        add_eos=args.add_eos,
        shuffle_seed=args.shuffle_seed,
        shard_tokens=args.shard_tokens,
        max_reject_rate=args.max_reject_rate,
        num_workers=args.num_workers,
        progress=args.progress,
        chat=chat,
    )
    _print_counts(args.out, manifest)
    return 0


def _export(words: Sequence[str]) -> int:
    args = parse_args(ExportArgs, words, prog=f"{PROG} export")
    for key in ("path", "out"):
        if not getattr(args, key):
            raise ValueError(f"{key}= is missing, as in `{PROG} export path=data/shards out=data/megatron/web`")
    record = export_megatron(args.path, args.out, progress=args.progress)
    print(
        f"{args.out}.bin, .idx and .json: {record['documents']:,} documents, {record['tokens']:,} tokens "
        f"as {record['dtype']}"
    )
    return 0


def _import(words: Sequence[str]) -> int:
    args = parse_args(ImportArgs, words, prog=f"{PROG} import")
    for key in ("path", "out"):
        if not getattr(args, key):
            raise ValueError(f"{key}= is missing; `{PROG} import --help` lists the keys")
    name, path = args.tokenizer.name, args.tokenizer.path
    if not name:
        record = read_export(args.path)
        if record is None:
            raise ValueError(f"tokenizer.name= is missing: which vocabulary are the ids of {args.path}.bin of?")
        name, path = record["tokenizer"]["name"], path or record["tokenizer"]["path"]
    tokenizer = build_tokenizer(name, path, args.tokenizer.fast)
    manifest = import_megatron(args.path, args.out, tokenizer, shard_tokens=args.shard_tokens, progress=args.progress)
    _print_counts(args.out, manifest)
    return 0


def _print_counts(out: str, manifest: dict[str, Any]) -> None:
    print(
        f"{out}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens, {manifest['bytes']:,} bytes "
        f"of text ({manifest['bytes'] / manifest['tokens']:.2f} a token) in {len(manifest['files'])} files"
    )
    if (chat := manifest.get("chat")) is not None:
        print(
            f"scored: {manifest['scored_tokens']:,} tokens ({manifest['scored_tokens'] / manifest['tokens']:.1%}) in "
            f"{manifest['conversations']['answers']:,} answers, written by the chat template {chat['name']} "
            f"({chat['template_sha256'][:12]}; system messages {chat['system_role']})"
        )
        words = {
            "cut": "conversations cut at chat_max_tokens",
            "no end": "answers without a token that ends them",
            "rewritten": "answers that the chat template wrote otherwise than they are (without their reasoning?)",
            "padding": f"tokens of padding, behind conversations packed into windows of {chat.get('window_tokens')}",
        }
        for what, described in words.items():
            if what in manifest["conversations"]:
                print(f"{manifest['conversations'][what]:,} {described}")
    for reason, count in manifest["skipped"].items():
        print(f"skipped {count:,}: {reason}")


def _verify(words: Sequence[str]) -> int:
    args = parse_args(VerifyArgs, words, prog=f"{PROG} verify")
    if not args.out:
        raise ValueError(f"out= is missing: the folder to check, as in `{PROG} verify out=data/shards`")
    if not Path(args.out).is_dir():
        raise ValueError(f"no folder {args.out}; {what_is_there(args.out)}")
    problems = verify_shards(args.out)
    for problem in problems:
        print(problem)
    if problems:
        return 1
    manifest = read_manifest(args.out)
    print(f"{args.out}: {len(manifest['files'])} files, {manifest['tokens']:,} tokens, every byte as written")
    return 0
