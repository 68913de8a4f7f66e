"""Tokens: tokenizers by Lingua's names, documents into token shards, and reading shards without a copy.

Document ──Tokenizer──> ids ──tokenize──> shard-NNNNN.arrow + manifest.json ──TokenSource──> windows of ids
messages ──ChatEncoder──> ids and which of them are scored ──┘
"""

from lingua_synth.tokens.chat import ChatEncoder, build_chat
from lingua_synth.tokens.megatron import export_megatron, import_megatron
from lingua_synth.tokens.sentencepiece_training import train_sentencepiece
from lingua_synth.tokens.shards import read_manifest
from lingua_synth.tokens.source import TokenSource, verify_shards
from lingua_synth.tokens.tokenization import tokenize
from lingua_synth.tokens.tokenizer import Tokenizer, build_tokenizer

__all__ = [
    "ChatEncoder",
    "TokenSource",
    "Tokenizer",
    "build_chat",
    "build_tokenizer",
    "export_megatron",
    "import_megatron",
    "read_manifest",
    "tokenize",
    "train_sentencepiece",
    "verify_shards",
]
