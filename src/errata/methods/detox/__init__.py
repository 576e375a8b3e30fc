"""Answering harmful requests safely: DINM and what it is compared with, from examples of safe answers to a patch."""

from errata.methods.detox.base import DetoxMethod, WordedConfig
from errata.methods.detox.detoxing import DEFAULT, detox, get_detox_method
from errata.methods.detox.wording import Wording

__all__ = ["DEFAULT", "DetoxMethod", "WordedConfig", "Wording", "detox", "get_detox_method"]
