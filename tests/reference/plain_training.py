"""Fine-tuning as published: one row at a time through the whole model, and the weight itself is written and trained.

No cache, no padding, no hooks, logits at all positions. It shares nothing with the package but the edits.
"""

from __future__ import annotations

import copy

import torch

from errata.lm.tokens import prompt_ids, target_ids
from reference.plain_model import plain_logits


def plain_loss(model, tokenizer, edit, objective):
    """The mean negative log-likelihood of an edit's target tokens."""
    prompt = list(prompt_ids(tokenizer, edit.text))
    target = list(target_ids(tokenizer, edit.text, edit.target_new))
    if objective == "prompt-last":
        scores = plain_logits(model, prompt)[-1].log_softmax(-1)
        return -torch.stack([scores[token] for token in target]).mean()
    scores = plain_logits(model, [*prompt, *target[:-1]])[len(prompt) - 1 :].log_softmax(-1)
    return -torch.stack([scores[j, token] for j, token in enumerate(target)]).mean()


def plain_training(
    model, tokenizer, edits, name, *, objective, steps, learning_rate, stop_loss=0.0, epsilon=None, weight_decay=0.0
):
    """Train one weight of a copy of the model on all edits at once; returns the copy and the losses of every step."""
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    weight = model.get_parameter(name)
    original = weight.detach().clone()
    weight.requires_grad_(True)
    adam = torch.optim.Adam([weight], lr=learning_rate)
    trace = []
    for _ in range(steps):
        losses = [plain_loss(model, tokenizer, edit, objective) for edit in edits]
        trace.append([float(loss.detach()) for loss in losses])
        if max(trace[-1]) < stop_loss:
            break
        adam.zero_grad()
        pull = weight_decay / 2 * ((weight - original) ** 2).sum()  # its gradient is Adam's own weight decay
        (torch.stack(losses).mean() + pull).backward()
        adam.step()
        if epsilon is not None:
            with torch.no_grad():
                weight.copy_(torch.minimum(torch.maximum(weight, original - epsilon), original + epsilon))
    weight.requires_grad_(False)
    return model, trace


def plain_lora(model, tokenizer, edits, paths, *, rank, alpha, steps, learning_rate, seed, stop_loss=0.0):
    """Train LoRA by ``peft`` alone on a copy of the model; returns the unmerged model and the losses of every step."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    model = copy.deepcopy(model).eval()
    turned = any(isinstance(model.get_submodule(path), Conv1D) for path in paths)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(paths), fan_in_fan_out=turned,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    adam = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=learning_rate)
    trace = []
    for _ in range(steps):
        losses = [plain_loss(adapted, tokenizer, edit, "target") for edit in edits]
        trace.append([float(loss.detach()) for loss in losses])
        if max(trace[-1]) < stop_loss:
            break
        adam.zero_grad()
        torch.stack(losses).mean().backward()
        adam.step()
    return adapted.eval(), trace
