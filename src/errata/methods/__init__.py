"""What changes a model: methods by name, and the call that runs them."""

from errata.methods.base import Method, MethodConfig, MethodInfo, Registered
from errata.methods.conflicts import Conflict, find_conflicts
from errata.methods.editing import default_method, edit
from errata.methods.registry import get_method, get_registered, method_names

__all__ = [
    "Conflict",
    "Method",
    "MethodConfig",
    "MethodInfo",
    "Registered",
    "default_method",
    "edit",
    "find_conflicts",
    "get_method",
    "get_registered",
    "method_names",
]
