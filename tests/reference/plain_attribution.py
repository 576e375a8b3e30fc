"""Integrated gradients of one token's probability for one layer's neurons: a full pass and a gradient for each node."""

from __future__ import annotations

import torch

from reference.plain_model import plain_logits


def plain_value(logits, token, of):
    logits = logits.double()
    if of == "logit":
        return logits[token]
    value = logits.log_softmax(-1)[token]
    return value.exp() if of == "probability" else value


def plain_activation(model, ids, path):
    """What the out-projection takes at the last token, [m]."""
    seen = {}

    def hook(_module, args):
        seen["a"] = args[0].detach().reshape(-1, args[0].shape[-1])[-1].clone()

    handle = model.get_submodule(path).register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            plain_logits(model, ids)
    finally:
        handle.remove()
    return seen["a"]


def plain_with(model, ids, path, activation, token, of):
    """The token's value when the out-projection takes this activation at the last token."""

    def hook(_module, args):
        flat = args[0].reshape(-1, args[0].shape[-1])
        return (torch.cat([flat[:-1], activation[None]]).view_as(args[0]), *args[1:])

    handle = model.get_submodule(path).register_forward_pre_hook(hook)
    try:
        return plain_value(plain_logits(model, ids)[-1], token, of)
    finally:
        handle.remove()


def plain_attribution(model, ids, token, path, *, nodes, weights, of="probability"):
    """(attributions [m], value with the layer at zero), node by node."""
    base = plain_activation(model, ids, path)
    total = torch.zeros_like(base, dtype=torch.float64)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        leaf = (base * node).detach().requires_grad_(True)
        value = plain_with(model, ids, path, leaf, token, of)
        total += weight * torch.autograd.grad(value, leaf)[0].double()
    with torch.no_grad():
        zero = plain_with(model, ids, path, torch.zeros_like(base), token, of)
    return base.double() * total, float(zero)
