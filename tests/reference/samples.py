"""Edits and small helpers that several test files use."""

from __future__ import annotations

from errata.records import Edit

# Subjects of one and of several tokens, at the start, in the middle and at the end; targets of one and of several.
EDITS = (
    Edit(prompt="{} is the capital of", subject="Rome", target_new="France"),
    Edit(prompt="The mother tongue of {} is", subject="Maria Gonzalez", target_new="German"),
    Edit(prompt="In the old town, people say of {}", subject="Professor James Whitman", target_new="a captain"),
    Edit(prompt="The river {} flows to", subject="Orla", target_new="Stockholm"),
)

# The subject last, targets of one token: a shift reaches the prediction directly, so even random models learn these.
LATE = (
    Edit(prompt="People say of {}", subject="Rome", target_new="city"),
    Edit(prompt="They called {}", subject="Maria Gonzalez", target_new="German"),
    Edit(prompt="In the old town, people say of {}", subject="Professor James Whitman", target_new="river"),
    Edit(prompt="It was {}", subject="Orla", target_new="newspaper"),
)

CONTEXTS = ("", "The river is wide. ", "Where was she? She was. ")


def one_sentence(error) -> bool:
    """One line that ends as a sentence does and is no dump."""
    text = str(error.value if hasattr(error, "value") else error)
    return "\n" not in text and text.endswith((".", "`.")) and 20 < len(text) < 400


def hooks_on(model) -> int:
    """How many hooks hang on a model's modules, and how many modules have a forward of their own."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(
        sum(len(getattr(module, kind)) for kind in kinds) + ("forward" in module.__dict__) for module in model.modules()
    )
