"""Token sources in memory whose tokens are their own positions: what was read can be told from the batch alone."""

import numpy as np

BASE = 1_000_000


class ArraySource:
    """Token t of source number `i` is `i * BASE + t`."""

    def __init__(self, i, num_tokens, sha256="v1", fingerprint=None):
        self.num_tokens = num_tokens
        self.tokens = (i * BASE + np.arange(num_tokens)).astype(np.uint32)
        self.fingerprint = fingerprint or f"{i:04d}-{num_tokens:09d}-fingerprint"
        self.manifest = {"tokenizer": {"name": "bytes", "sha256": sha256}}
        self.num_reads = 0

    def window(self, start, length):
        assert start >= 0 and start + length <= self.num_tokens, "a window lies inside its source"
        self.num_reads += 1
        return self.tokens[start : start + length]
