"""Every error Errata raises on purpose.

    ErrataError
    ├── RequestError        an edit cannot be carried out as asked (subject missing, empty target, contradiction)
    ├── DatasetError        a file of cases or texts cannot be read
    ├── ModelError          a model or tokenizer cannot be loaded or used
    │   └── ArchitectureError   its parts could not be told apart, or a layer cannot be edited
    ├── ConfigError         a hyper-parameter, method name or flag is out of range
    ├── NumericalError      an optimisation or a solve gave no finite number
    ├── PatchError          a patch cannot be read, written, applied, reverted or exported
    │   └── FingerprintMismatch the patch was made for other weights
    ├── JudgeError          a judge of responses cannot be loaded or reached
    └── StorageError        a file could not be written (disk full, no permission)

Each message is one sentence: what is wrong, where, and what to do. The command line prints it and exits with code 2.
"""

from __future__ import annotations


class ErrataError(Exception):
    """Base class: catch it to handle everything Errata reports on purpose."""


class RequestError(ErrataError, ValueError):
    """An edit cannot be carried out as it is asked."""


class DatasetError(ErrataError, ValueError):
    """A file of cases, edits or texts cannot be read."""


class ModelError(ErrataError, RuntimeError):
    """A model or its tokenizer cannot be loaded or used."""


class ArchitectureError(ModelError):
    """The parts of a model could not be told apart, or a layer cannot be edited."""


class ConfigError(ErrataError, ValueError):
    """A hyper-parameter, a method's name or a flag is not usable."""


class NumericalError(ErrataError, ArithmeticError):
    """An optimisation or a linear solve did not give finite numbers."""


class PatchError(ErrataError, RuntimeError):
    """A patch cannot be read, written, applied, reverted or exported."""


class FingerprintMismatch(PatchError):
    """The patch was made for other weights than those of this model."""


class JudgeError(ErrataError, RuntimeError):
    """A judge of responses cannot be loaded or reached."""


class StorageError(ErrataError, OSError):
    """A file or folder could not be written."""
