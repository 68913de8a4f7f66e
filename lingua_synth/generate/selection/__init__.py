"""Selection: which annotated traces to fine-tune on, always beside a random control.

records ──TraceTable──> columns ──expression of selectors──> rows, with probabilities ──> documents and conversations
"""

from lingua_synth.generate.selection.chat import chat_row, plan_thinking
from lingua_synth.generate.selection.expression import Expression, parse_expression, select
from lingua_synth.generate.selection.run import select_traces
from lingua_synth.generate.selection.selectors import SELECTORS, Selection
from lingua_synth.generate.selection.traces import FIELDS, MissingField, TraceTable, TraceView

__all__ = [
    "FIELDS",
    "SELECTORS",
    "Expression",
    "MissingField",
    "Selection",
    "TraceTable",
    "TraceView",
    "chat_row",
    "parse_expression",
    "plan_thinking",
    "select",
    "select_traces",
]
