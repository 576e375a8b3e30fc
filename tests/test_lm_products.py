"""The faster products of frozen linear layers: the same numbers, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from errata.lm import load, products
from errata.lm.activations import frozen
from errata.lm.products import fast_products, gram, has_bfloat16, has_onednn
from errata.testing import FAMILIES, VARIANTS, tiny
from reference.samples import hooks_on

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="oneDNN has no faster product on this processor")
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16 products")
IDS = torch.tensor([[5, 9, 2, 7], [1, 3, 8, 4]])


def replaced(model):
    return [module for module in model.modules() if "forward" in module.__dict__]


@needs_onednn
@pytest.mark.parametrize("family", sorted({*FAMILIES, *VARIANTS}))
def test_the_logits_and_the_gradients_are_the_same(family):
    model = load(tiny(family)).model
    embeddings = model.get_input_embeddings()(IDS).detach()
    results = []
    with frozen(model):
        for fast in (False, True):
            x = embeddings.clone().requires_grad_()
            if fast:
                with fast_products(model):
                    assert replaced(model)
                    logits = model(inputs_embeds=x).logits
                    logits.square().mean().backward()
            else:
                logits = model(inputs_embeds=x).logits
                logits.square().mean().backward()
            results.append((logits.detach(), x.grad))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    assert not replaced(model)


@needs_bfloat16
def test_bfloat16_is_near_and_gives_float32():
    model = load(tiny("llama")).model
    with frozen(model), torch.no_grad():
        plain = model(IDS).logits
        with fast_products(model, "bfloat16"):
            low = model(IDS).logits
    assert low.dtype == torch.float32
    assert not torch.equal(low, plain)
    assert (low - plain).norm() < 0.05 * plain.norm()


@needs_bfloat16
def test_within_another_block_the_inner_precision_holds_and_the_outer_comes_back():
    model = load(tiny("gpt2")).model
    with frozen(model), torch.no_grad(), fast_products(model):
        outer = model(IDS).logits
        with fast_products(model, "bfloat16"):
            assert not torch.equal(model(IDS).logits, outer)
        assert torch.equal(model(IDS).logits, outer)
    assert not replaced(model)


def test_layers_that_learn_are_left_alone():
    model = load(tiny("llama")).model
    with fast_products(model):
        assert not replaced(model)
        model(IDS).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_error_within_leaves_nothing_behind():
    model = load(tiny("llama")).model
    before = hooks_on(model)
    with pytest.raises(RuntimeError), frozen(model), fast_products(model):
        raise RuntimeError("stop")
    assert hooks_on(model) == before


@needs_onednn
def test_a_weight_changed_within_the_block_counts():
    layer = nn.Sequential(nn.Linear(8, 3)).requires_grad_(False)
    x = torch.randn(2, 8)
    with fast_products(layer):
        layer[0].weight.zero_()
        torch.testing.assert_close(layer(x), layer[0].bias.expand(2, 3))
        layer[0].weight = nn.Parameter(torch.ones(3, 8), requires_grad=False)
        torch.testing.assert_close(layer(x), x.sum(1, keepdim=True) + layer[0].bias)


@needs_onednn
def test_subclasses_other_types_and_others_forwards_are_left_alone():
    class Adapted(nn.Linear):
        pass

    own = nn.Linear(4, 4)
    own.forward = lambda x: x
    model = nn.Sequential(Adapted(4, 4), nn.Linear(4, 4).double(), own, nn.Linear(4, 4)).requires_grad_(False)
    with fast_products(model):
        assert replaced(model) == [own, model[3]]
    assert replaced(model) == [own]


def test_without_the_means_the_model_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    monkeypatch.setattr(products, "has_bfloat16", lambda: False)
    model = load(tiny("llama")).model
    for precision in ("float32", "bfloat16"):
        with frozen(model), fast_products(model, precision):
            assert not replaced(model)


@pytest.mark.parametrize("shape", [(50, 7), (1, 3), (0, 4)])
def test_the_gram_matrix_is_the_products(shape):
    rows = torch.randn(shape)
    torch.testing.assert_close(gram(rows), rows.T @ rows, rtol=1e-4, atol=1e-5)
