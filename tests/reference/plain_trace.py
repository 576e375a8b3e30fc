"""Causal tracing as published: for every (token, layer) one pass of the whole prompt, 1 clean and n corrupted rows."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch


def first_of(value):
    return value[0] if isinstance(value, tuple) else value


@contextmanager
def changing(model, path, change, rows):
    """What a module gives is changed by ``change(hidden [rows, tokens, d])``, in a copy."""

    def hook(_module, _args, output):
        hidden = first_of(output)
        changed = hidden.clone()
        change(changed.view(rows, -1, hidden.shape[-1]))  # OPT's MLP works on rows and tokens as one dimension
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def plain_cell(model, embedding, row, targets, prompt_length, span, corrupted, *, restored=(), held=None):
    """Log-probability of the whole continuation in each corrupted row [n], with some modules' outputs put back.

    Args:
        row: ids of the prompt and all but the last token of the continuation. targets: ids of the continuation.
        corrupted: what the subject's embeddings are in the corrupted rows [n, tokens, d].
        restored: (module path, positions): there the corrupted rows get what the clean one has.
        held: (module path, position) -> [n, d]: what the corrupted rows get there.
    """
    ids = torch.tensor([list(row)] * (1 + len(corrupted)))

    def corrupt(hidden):
        hidden[1:, span[0] : span[1]] = corrupted

    with ExitStack() as stack:
        stack.enter_context(changing(model, embedding, corrupt, len(ids)))
        for path, places in restored:

            def restore(hidden, places=places):
                hidden[1:, places] = hidden[:1, places]

            stack.enter_context(changing(model, path, restore, len(ids)))
        for (path, place), value in (held or {}).items():

            def hold(hidden, place=place, value=value):
                hidden[1:, place] = value

            stack.enter_context(changing(model, path, hold, len(ids)))
        logs = model(input_ids=ids).logits.float().log_softmax(-1)
    return sum(logs[1:, prompt_length - 1 + j, token] for j, token in enumerate(targets))


@torch.no_grad()
def plain_outputs(model, embedding, row, span, corrupted, paths, position):
    """What modules give at a position in the corrupted rows: path -> [n, d]."""
    seen, rows = {}, len(corrupted)

    def corrupt(hidden):
        hidden[:, span[0] : span[1]] = corrupted

    with ExitStack() as stack:
        stack.enter_context(changing(model, embedding, corrupt, rows))
        for path in paths:

            def keep(hidden, path=path):
                seen[path] = hidden[:, position].clone()

            stack.enter_context(changing(model, path, keep, rows))
        model(input_ids=torch.tensor([list(row)] * rows))
    return seen
