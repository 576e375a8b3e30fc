"""One row at a time through the whole model, with nothing but torch's own hooks."""

from __future__ import annotations

from contextlib import contextmanager

import torch


def first_of(value):
    return value[0] if isinstance(value, tuple) else value


def plain_logits(model, ids):
    """Logits [tokens, vocabulary] of one unpadded row."""
    return model(input_ids=torch.tensor([list(ids)])).logits[0]


def plain_log_probability(model, prompt_ids, target_ids):
    """Log-probability of each target token [n], given what stands before it."""
    logits = plain_logits(model, [*prompt_ids, *target_ids]).float().log_softmax(-1)
    return torch.stack([logits[len(prompt_ids) - 1 + j, token] for j, token in enumerate(target_ids)])


@contextmanager
def adding(model, path, position, value):
    """A vector is added to a module's output at one position of the only row."""

    def hook(_module, _args, output):
        hidden = first_of(output)
        flat = hidden.reshape(-1, hidden.shape[-1])
        only_there = torch.zeros(len(flat), 1, dtype=flat.dtype)
        only_there[position] = 1.0
        changed = (flat + only_there * value.to(flat.dtype)).view_as(hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def seen_at(model, ids, path, position):
    """What a module takes and gives at one position (or a slice) of one row: (input [m], output [d]), in float32."""
    seen = {}

    def hook(_module, args, kwargs, output):
        given = args[0] if args else kwargs["hidden_states"]
        result = first_of(output)
        seen["given"] = given.detach().reshape(-1, given.shape[-1])[position].clone().float()
        seen["result"] = result.detach().reshape(-1, result.shape[-1])[position].clone().float()

    handle = model.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            plain_logits(model, ids)
    finally:
        handle.remove()
    return seen["given"], seen["result"]
