"""Where a fact, a behaviour or a bias lives in a model, as numbers and pictures."""

from errata.locate.result import Located, Table, save

__all__ = ["Located", "Table", "save"]
