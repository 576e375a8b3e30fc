"""Where a fact, a behaviour or a bias lives in a model, as numbers and pictures."""

from errata.locate.causal_trace import trace, trace_bias
from errata.locate.corruption import Corruption
from errata.locate.result import Located, Table, save
from errata.locate.trace_result import BiasTrace, FactTrace, Trace
from errata.locate.tracing import TraceOptions

__all__ = [
    "BiasTrace",
    "Corruption",
    "FactTrace",
    "Located",
    "Table",
    "Trace",
    "TraceOptions",
    "save",
    "trace",
    "trace_bias",
]
