"""What every test file shares: no test reads or writes the user's cache, and tiny models run on one thread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# The plain reference implementations are imported as `reference.…`; test files themselves are not a package.
sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
