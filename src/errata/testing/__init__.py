"""Tiny models of every architecture family and a tiny tokenizer, for tests: anyone's, not only Errata's.

    from errata.testing import tiny

    model, tokenizer = tiny("gpt2")

Nothing is downloaded and nothing is read from or written to disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from errata.testing.models import FAMILIES, VARIANTS, tiny_model
from errata.testing.tokenizer import tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["FAMILIES", "VARIANTS", "tiny", "tiny_model", "tiny_tokenizer"]


def tiny(family: str, **kw: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Build :func:`tiny_model` with these arguments, and the :func:`tiny_tokenizer` that goes with it."""
    return tiny_model(family, **kw), tiny_tokenizer()
