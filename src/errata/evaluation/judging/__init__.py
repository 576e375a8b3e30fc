"""Judges of free responses: refused or complied, harmful or not; by rule, by classifier, by another language model."""

from __future__ import annotations

from errata.evaluation.judging.base import COMPLIANCE, EMPTY, FULL, PARTIAL, UNPARSED, Judge, Verdict
from errata.evaluation.judging.registry import get_judge, judge_names

__all__ = [
    "COMPLIANCE",
    "EMPTY",
    "FULL",
    "PARTIAL",
    "UNPARSED",
    "Judge",
    "Verdict",
    "get_judge",
    "judge_names",
]
