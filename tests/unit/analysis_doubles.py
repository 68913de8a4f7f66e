"""Token shards made of ids instead of text: corpora whose statistics are known because they were planted."""

import numpy as np

from lingua_synth.files import write_json
from lingua_synth.tokens.shards import FORMAT, MANIFEST, VERSION, shard_name, write_shard


def write_tokens(folder, documents, n_words, *, bos_id=-1, eos_id=-1, dtype=None, per_file=None, sha256="planted"):
    """A folder of token shards with `documents` (lists or arrays of ids), `per_file` documents in each file."""
    dtype = np.dtype(dtype or (np.uint16 if n_words <= 1 << 16 else np.uint32))
    folder.mkdir(parents=True, exist_ok=True)
    per_file = per_file or max(1, len(documents))
    entries = []
    for index, first in enumerate(range(0, len(documents), per_file)):
        part = [np.asarray(document, dtype=dtype) for document in documents[first : first + per_file]]
        offsets = np.cumsum([0, *map(len, part)], dtype=np.int64)
        ids = [f"{folder.name}:{first + i}" for i in range(len(part))]
        num_bytes = [3 * len(document) for document in part]
        path = folder / shard_name(index)
        entries.append(write_shard(path, np.concatenate(part), offsets, num_bytes, ids, sha256))
    tokenizer = {"name": "planted", "path": None, "sha256": sha256, "n_words": n_words, "bos_id": bos_id}
    manifest = {"format": FORMAT, "version": VERSION, "dtype": dtype.name, "files": entries}
    manifest["tokenizer"] = {**tokenizer, "eos_id": eos_id}
    for key in ("documents", "tokens", "bytes"):
        manifest[key] = sum(entry[key] for entry in entries)
    write_json(folder / MANIFEST, manifest)
    return folder


def zipf_probabilities(n_words, exponent, shift=0.0):
    """Probabilities of ranks 1 to n_words, proportional to (rank + shift) ** -exponent."""
    weights = (np.arange(1, n_words + 1) + shift) ** -exponent
    return weights / weights.sum()
