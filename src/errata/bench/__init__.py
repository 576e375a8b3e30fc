"""Methods measured on cases: the three protocols, and the quick look before and after one patch."""

from errata.bench.evaluate import PROTOCOLS, evaluate, prepare

__all__ = ["PROTOCOLS", "evaluate", "prepare"]
