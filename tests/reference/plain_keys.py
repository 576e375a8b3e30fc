"""What a module takes and gives at the subject's last token, one row and one full forward pass at a time."""

from __future__ import annotations

import torch

from reference.plain_model import seen_at


def plain_keys(model, rewrites, path):
    """(inputs [edits, contexts, m], outputs [edits, contexts, d]) of a module at the subject's last token."""
    pairs = [[seen_at(model, row.ids, path, row.lookup) for row in rewrite.prompts] for rewrite in rewrites]
    inputs, outputs = (torch.stack([torch.stack([pair[i] for pair in edit]) for edit in pairs]) for i in (0, 1))
    return inputs, outputs


def plain_second_moment(model, windows, path):
    """(mean of k kᵀ in float64, how many k) over every token of the windows but each window's first."""
    total, count = 0.0, 0
    for window in windows:
        for key in seen_at(model, window, path, slice(1, None))[0].double():
            total = total + torch.outer(key, key)
            count += 1
    return total / count, count
