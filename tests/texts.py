"""Texts for tests."""

import random


def make_documents(seed, count, alphabet="abcdefgh", words=(5, 60)):
    """Documents of random words over a small vocabulary: learnable within a few steps."""
    from lingua_synth.documents import Document

    rng = random.Random(seed)
    lexicon = ["".join(rng.choices(alphabet, k=rng.randint(2, 6))) for _ in range(40)]
    return [Document(f"{seed}-{i}", " ".join(rng.choices(lexicon, k=rng.randint(*words))), {}) for i in range(count)]
