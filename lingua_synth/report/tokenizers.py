"""The section of a page about tokenizers: whether what the page says of one of them holds under the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lingua_synth.report import tokenizer_figures, words
from lingua_synth.report.blocks import Block, Bullets, Judgement, Judgements, Picture, Section, Table
from lingua_synth.scaling.natural import base_mixture
from lingua_synth.scaling.runs import tokenizers
from lingua_synth.scaling.tokenizer_effect import compare_tokenizers_as_matched

if TYPE_CHECKING:
    from lingua_synth.scaling import Runs, TokenizerComparison
    from lingua_synth.scaling.paired_means import PairedMean

TITLE = "Does the tokenizer change this?"
MATCHED = {
    "bytes": "that read equally much text",
    "tokens": "that read equally many tokens",
    "flops": "of equally many FLOPs",
}


def tokenizer_section(runs: Runs, tokenizer: str, target: str, base: str | None = None) -> Section | None:
    """The section for a table of all tokenizers, on a page about one of them; None where the table has no other.

    `target` is the page's column; a loss per token becomes its bits per byte. A table whose tokenizers cannot be
    compared gives a section that says why.
    """
    if len(tokenizers(runs)) < 2:
        return None
    bits = f"bpb_{target.removeprefix('loss_').removeprefix('bpb_').replace('micro', 'macro')}"
    try:
        found = compare_tokenizers_as_matched(runs, tokenizer=tokenizer, base=base_mixture(runs, base), target=bits)
    except ValueError as error:
        return Section(TITLE, [f"The table has other tokenizers, and they are not compared: {error}."])
    return comparison_section(found)


def comparison_section(found: TokenizerComparison) -> Section:
    """Figures, verdicts and tables of a comparison."""
    first, base = found.tokenizers[0], words.quoted(found.base)
    level = f"{100 * found.level:.3g} %"
    body: list[Block] = [
        f"This page is about {words.quoted(first)}. The table also has "
        f"{words.joined(words.quoted(name) for name in found.tokenizers[1:])}. Losses per token of different "
        "tokenizers do not compare, so this section is in bits per byte of the same held-out text, over runs "
        f"{MATCHED[found.match]}. It asks whether the effect of a mixture, its bits per byte less those of {base}, "
        f"depends on the tokenizer by more than {found.margin:g}; the intervals of these answers hold for all of them "
        "at once.",
    ]
    if found.interactions:
        body.append(
            Judgements(
                [
                    Judgement(
                        one.verdict,
                        f"The effect of {words.quoted(one.mixture)} under {words.quoted(one.tokenizer)} differs from "
                        f"that under {words.quoted(first)} by more than {found.margin:g} bits per byte.",
                        [f"{_in_words(one.overall)}; {one.why}."],
                    )
                    for one in found.interactions
                ]
            )
        )
    body += [
        Picture(
            "tokenizers_bytes",
            tokenizer_figures.bits_per_byte(found),
            f"Bits per byte against text read, a colour a tokenizer; filled marks are {base}, hollow ones the other "
            "mixtures. What separates the tokenizers is not the vocabulary alone: models of one size have vocabulary "
            "matrices of different size.",
        )
    ]
    if found.effects:
        body += [
            Picture(
                "tokenizers_effects",
                tokenizer_figures.mixture_effects(found),
                f"What each mixture changes against {base}, under each tokenizer, with {level} intervals; left of 0 is "
                f"better. Grey: ±{found.margin:g}, the margin.",
            )
        ]
    if found.shares:
        body.append(
            Table(
                ("mixture", "tokenizer", "source", "share of the tokens", "share of the text"),
                [
                    (one.mixture, one.tokenizer, one.source, words.percent(one.of_tokens), words.percent(one.of_bytes))
                    for one in found.shares
                ],
                caption="A token of one kind of text may hold more of it than a token of another, so shares of the "
                "tokens are other shares of the text, and by how much depends on the tokenizer.",
            )
        )
    remarks = [
        f"Of {one.num_pairs} pairs of mixtures {words.quoted(one.tokenizer)} and {words.quoted(first)} order "
        f"{one.num_alike} alike; {one.num_told} are told apart under both"
        + (
            f", and ordered the other way round: {'; '.join(f'{a} and {b}' for a, b in one.reversed)}."
            if one.reversed
            else ", none of them the other way round."
        )
        for one in found.agreement
    ]
    remarks += [note[:1].upper() + note[1:] + "." for note in found.notes]
    if remarks:
        body.append(Bullets(remarks))
    return Section(TITLE, body)


def _in_words(mean: PairedMean) -> str:
    shown = f"By {words.signed(mean.value, 4)}"
    if mean.interval is not None:
        shown += f" ({words.signed(mean.interval[0], 4)} to {words.signed(mean.interval[1], 4)})"
    return f"{shown}, {mean.num_pairs} pairs"
