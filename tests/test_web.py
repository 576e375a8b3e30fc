"""The page: whole in one file, safe with any text, and honest about what did not take."""

from __future__ import annotations

import re

import pytest
import torch

from errata.bench.preview import Control, Preview, Row
from errata.errors import StorageError
from errata.lm import load
from errata.patch import LowRank, Patch
from errata.records import Edit
from errata.testing import tiny
from errata.web.page import render, write_before_after

EVIL = '<script>alert("1")</script>'


@pytest.fixture(scope="module")
def patch():
    lm = load(tiny("llama"))
    update = LowRank("model.layers.1.mlp.down_proj.weight", torch.ones(32, 1), torch.ones(1, 72))
    edit = Edit(prompt="{} is in", subject=EVIL, target_new="Rome")
    return Patch.create(lm, [update], method="r-rome", config={"corpus": "self", "layer": 1}, edits=[edit])


def preview(**changes):
    row = {
        "prompt": f"{EVIL} is in", "target": "Rome", "before": EVIL, "after": "Rome & more", "p_before": 0.001,
        "p_after": 0.987, "took": True, "chat_before": EVIL, "chat_after": "Rome",
    }  # fmt: skip
    controls = (Control("Anna lives in", "Marlow", "Marlow", True), Control("Viktor says", "no", EVIL, False))
    return Preview((Row(**{**row, **changes}),), controls, 12.0, 12.6, 1000)


def test_the_page_is_one_file_that_fetches_nothing(tmp_path, patch):
    page = tmp_path / "page.html"
    write_before_after(page, preview=preview(), patch=patch, model_name="tiny")
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert not re.search(r"<(script|link|img|iframe|object|embed)\b", text)
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_prompts_answers_and_names_are_escaped(patch):
    text = render(preview(), patch, EVIL, folder=EVIL)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "Rome &amp; more" in text


def test_what_changed_stands_first(patch):
    text = render(preview(), patch, "tiny")
    assert text.index("Viktor says") < text.index("Anna lives in")
    assert text.count('class="changed"') == 1
    assert "1 of 2" in text
    assert "12.00 → 12.60" in text
    assert "+5.00%" in text


def test_bars_and_facts(patch):
    text = render(preview(), patch, "tiny", "Q4_1", "patches/rome")
    assert "width:98.70%" in text
    assert "expanded from Q4_1" in text
    assert patch.card.base.fingerprint[:12] in text
    assert "--patch patches/rome" in text


def test_an_edit_that_did_not_take_is_called_so(patch):
    text = render(preview(took=False, after="", chat_before=None, chat_after=None), patch, "tiny")
    assert "did not take" in text
    assert "0 of 1 took" in text
    assert "(no answer)" in text
    assert "Asked in a chat" not in text


def test_a_place_that_cannot_be_written(tmp_path, patch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_before_after(tmp_path / "file" / "page.html", preview=preview(), patch=patch, model_name="tiny")
