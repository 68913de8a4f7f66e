"""The page around the sections: head, contents, footer and the style sheet. No script, nothing from outside."""

from __future__ import annotations

import html
from collections.abc import Sequence

import lingua_synth
from lingua_synth.report.blocks import Picture, Section, block_html

CSS = """\
:root { color-scheme: light; --ink: #1c1c1c; --soft: #5a5a5a; --rule: #d9d9d9; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 17px/1.55 Charter, "Bitstream Charter", "Source Serif 4", Georgia, "DejaVu Serif", serif; }
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; font-weight: 600; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.75rem 0 .75rem; padding-top: .9rem; font-weight: 600;
  border-top: 1px solid var(--rule); overflow-wrap: anywhere; }
p { margin: 0 0 .9rem; overflow-wrap: anywhere; }
a { color: #0a4d8c; text-underline-offset: 2px; }
nav ol { columns: 2; column-gap: 2rem; margin: 0; padding: 0 0 0 1.4rem; font-size: .9rem; line-height: 1.7; }
ul { margin: 0 0 .9rem; padding-left: 1.2rem; }
li { margin-bottom: .35rem; overflow-wrap: anywhere; }
dl { margin: 0 0 .9rem; }
dt, .lead { font-weight: 600; margin: .6rem 0 0; }
.lead + ul { margin-top: .3rem; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.75rem 0 2rem; }
.drawing svg { display: block; width: 100%; height: auto; }
figcaption, .caption { font-size: .9rem; line-height: 1.45; color: var(--soft); }
figcaption { margin-top: .5rem; }
figcaption b { color: var(--ink); }
.caption { margin: 1.25rem 0 .4rem; }
.scroll { overflow: auto; max-height: 32rem; margin-bottom: 1.25rem; border-top: 1.5px solid var(--ink);
  border-bottom: 1.5px solid var(--ink); }
table { border-collapse: collapse; min-width: 100%; font-size: .84rem; line-height: 1.4;
  font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .3rem .75rem .3rem 0; text-align: left; vertical-align: top; white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; font-weight: 600; box-shadow: 0 1px 0 var(--ink); }
tbody tr + tr td { border-top: 1px solid #eee; }
td:last-child { min-width: 21rem; white-space: normal; }
td.n:last-child { min-width: 0; }
.n { text-align: right; }
pre { font: .8rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; background: #f7f7f5;
  border-left: 3px solid var(--rule); padding: .7rem .9rem; margin: 0 0 1.1rem; max-height: 24rem; overflow: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.judgement { border-left: 4px solid #8a8a8a; padding: .1rem 0 .1rem .9rem; margin: 0 0 1.1rem; }
.judgement p { margin: 0 0 .25rem; }
.judgement ul { font-size: .84rem; line-height: 1.45; color: var(--soft); margin: 0; padding-left: 1.1rem; }
.judgement li { margin-bottom: .15rem; }
.verdict { font-size: .78rem; letter-spacing: .02em; padding: .1rem .45rem; border-radius: .2rem; color: #fff;
  background: #5f5f5f; white-space: nowrap; }
.supported { border-color: #00664a; }
.supported .verdict { background: #00664a; }
.rejected { border-color: #a63c00; }
.rejected .verdict { background: #a63c00; }
footer { margin-top: 3rem; border-top: 1px solid var(--rule); padding-top: .8rem; font-size: .85rem;
  color: var(--soft); }
@media (max-width: 34rem) {
  body { font-size: 16px; }
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  nav ol { columns: 1; }
  td:last-child { min-width: 11rem; }
  td.n:last-child { min-width: 0; }
}
@media print { .scroll, pre { max-height: none; overflow: visible; } main { max-width: none; } }
"""


def page_html(title: str, sections: Sequence[Section], svgs: dict[str, str]) -> str:
    """The whole page; `svgs` holds the `<svg>` of every picture by name. Figures are numbered in order."""
    number = 0
    parts = []
    for k, section in enumerate(sections):
        blocks = []
        for block in section.body:
            number += isinstance(block, Picture)
            blocks.append(block_html(block, svgs, number))
        inner = "\n".join(blocks)
        parts.append(f'<section id="section-{k + 1}">\n<h2>{html.escape(section.title)}</h2>\n{inner}\n</section>')
    contents = "".join(
        f'<li><a href="#section-{k + 1}">{html.escape(section.title)}</a></li>' for k, section in enumerate(sections)
    )
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
{CSS}</style>
</head>
<body>
<main>
<header>
<h1>{html.escape(title)}</h1>
<nav aria-label="Contents"><ol>{contents}</ol></nav>
</header>
{body}
<footer>
<p>Written by lingua_synth {html.escape(lingua_synth.__version__)} from the runs table at its end.
The numbers drawn in every figure lie beside it as CSV, in the folder “figures”.</p>
</footer>
</main>
</body>
</html>
"""
