"""What a layer's keys look like on ordinary text: corpora, second moments and their factors."""

from errata.statistics.corpora import Corpus, open_corpus
from errata.statistics.null_space import null_space
from errata.statistics.second_moments import SecondMoment, cache_folder, enough_tokens, second_moments

__all__ = [
    "Corpus",
    "SecondMoment",
    "cache_folder",
    "enough_tokens",
    "null_space",
    "open_corpus",
    "second_moments",
]
