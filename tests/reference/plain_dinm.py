"""DINM as its paper writes it: one row at a time through the whole model, and the weight itself is written and trained.

It shares nothing with the package but the tokens of prompts and answers.
"""

from __future__ import annotations

import copy

import torch

from errata.lm.tokens import prompt_ids, target_ids
from reference.plain_model import plain_logits


def answer_log_probs(model, tokenizer, prompt, answer):
    """Log-probabilities [tokens, vocabulary] where an answer's tokens are predicted, and these, the closing one too."""
    before = list(prompt_ids(tokenizer, prompt))
    wanted = [*target_ids(tokenizer, prompt, answer), tokenizer.eos_token_id]
    return plain_logits(model, [*before, *wanted[:-1]])[len(before) - 1 :].log_softmax(-1), torch.tensor(wanted)


def plain_dinm(model, tokenizer, records, name, *, steps, learning_rate, edit_weight, direction):
    """Tune one weight of a copy; records are (prompt, safe, constraint prompt, constraint answer).

    Returns the change of the weight, and (L_e, L_c) of each step.
    """
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    weight = model.get_parameter(name)
    original = weight.detach().clone()
    base = [answer_log_probs(model, tokenizer, c, a)[0].detach() for _, _, c, a in records]
    weight.requires_grad_(True)
    adam = torch.optim.Adam([weight], lr=learning_rate)
    trace = []
    for _ in range(steps):
        edit, kept = [], []
        for (prompt, safe, constraint, answer), was in zip(records, base, strict=True):
            scores, wanted = answer_log_probs(model, tokenizer, prompt, safe)
            edit.append(-scores[torch.arange(len(wanted)), wanted].mean())
            now, _ = answer_log_probs(model, tokenizer, constraint, answer)
            one, other = (now, was) if direction == "current" else (was, now)
            kept.append((one.exp() * (one - other)).sum(-1).mean())
        trace.append((float(torch.stack(edit).detach().mean()), float(torch.stack(kept).detach().mean())))
        adam.zero_grad()
        (edit_weight * torch.stack(edit).mean() + torch.stack(kept).mean()).backward()
        adam.step()
    return weight.detach() - original, trace
