"""Figures and one self-contained page from a runs table and its fits.

`figures` draws, each function from the table to matplotlib Axes; `write_report` puts the figures, the tables and the
findings in plain sentences on one page. The table may come from anywhere: this room knows columns, not trainings.
matplotlib is imported only when something is drawn.
"""

from lingua_synth.report import figures
from lingua_synth.report.blocks import Block, Bullets, Picture, Sample, Section, Table, Terms
from lingua_synth.report.page import write_report

__all__ = [
    "Block",
    "Bullets",
    "Picture",
    "Sample",
    "Section",
    "Table",
    "Terms",
    "figures",
    "write_report",
]
