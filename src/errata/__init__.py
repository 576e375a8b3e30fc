"""Errata: correct a language model after training, keep the correction as a file, and prove what else changed."""

from __future__ import annotations

__version__ = "0.1.0"
