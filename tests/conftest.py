"""What every test file shares: no test reads or writes the user's cache, and tiny models run on one thread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from errata.cli import main
from errata.testing import tiny

# The plain reference implementations are imported as `reference.…`; test files themselves are not a package.
sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    for part in tiny("llama"):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder; gives (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main.run([str(argument) for argument in arguments])
        seen = capsys.readouterr()
        return leaving.value.code, seen.out, seen.err

    return call
