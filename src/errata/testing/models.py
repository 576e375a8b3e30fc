"""Tiny models with random weights, one of every architecture family: built in memory, nothing to download.

The weights are drawn so that mistakes show. Biases are not zero, norm gains are not one, and the scale is large enough
that different inputs give clearly different logits; with a library's usual initialisation a forgotten bias or a norm
applied twice would pass unseen. Widths that play different parts differ (hidden 32; MLP 72 or 80; keys 16 or 24 where
query heads share them), so that a matrix used the wrong way round does not fit.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from errata.errors import ConfigError, ModelError
from errata.testing.tokenizer import BOS, EOS, MODEL_MAX_LENGTH, PAD, SPECIAL_TOKENS, VOCABULARY_SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHT_STD = 0.2
VECTOR_STD = 0.1  # of biases around zero and of norm gains around their neutral value
SLIDING_WINDOW = 64
KERNELS = ("attn_implementation", "experts_implementation")  # arguments of the model, not of its config

# Written with Hugging Face's common names; a config that has its own (GPT-2's n_embd) says so in its attribute_map.
COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "use_cache": True,
    "pad_token_id": SPECIAL_TOKENS.index(PAD),
    "bos_token_id": SPECIAL_TOKENS.index(BOS),
    "eos_token_id": SPECIAL_TOKENS.index(EOS),
}
POSITIONS = {"max_position_embeddings": MODEL_MAX_LENGTH}
WIDE = {"intermediate_size": 80, **POSITIONS}
GATED = {"intermediate_size": 72, "num_key_value_heads": 2, **POSITIONS}


@dataclass(frozen=True)
class Recipe:
    """What distinguishes a family's tiny model.

    Attributes:
        config: The name of its config class in ``transformers``.
        options: Arguments of that class besides :data:`COMMON`.
        by_depth: Arguments that depend on the number of layers, as a function of it.
    """

    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    by_depth: Callable[[int], dict[str, Any]] = lambda layers: {}

    def but(self, **options: Any) -> Recipe:
        """The same recipe with some options added or replaced."""
        return Recipe(self.config, {**self.options, **options}, self.by_depth)


def _sliding_then_full(layers: int) -> dict[str, Any]:
    return {"layer_types": _alternate("sliding_attention", "full_attention", layers)}


def _global_then_local(layers: int) -> dict[str, Any]:
    return {"attention_types": [[_alternate("global", "local", layers), 1]]}


def _alternate(first: str, second: str, count: int) -> list[str]:
    return [second if index % 2 else first for index in range(count)]


FAMILY_RECIPES: Mapping[str, Recipe] = {
    "bloom": Recipe("BloomConfig"),  # the MLP is always four times as wide as the hidden state; positions are ALiBi
    "falcon": Recipe("FalconConfig", {"ffn_hidden_size": 80, **POSITIONS}),
    "gemma2": Recipe(
        "Gemma2Config",
        {**GATED, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": SLIDING_WINDOW},
        _sliding_then_full,
    ),
    "gemma3": Recipe(
        "Gemma3TextConfig",
        {**GATED, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": SLIDING_WINDOW},
        _sliding_then_full,
    ),
    "gpt2": Recipe("GPT2Config", {"n_inner": 80, **POSITIONS}),
    "gpt_neo": Recipe("GPTNeoConfig", {**WIDE, "window_size": SLIDING_WINDOW}, _global_then_local),
    "gpt_neox": Recipe("GPTNeoXConfig", WIDE),
    "gptj": Recipe("GPTJConfig", {"n_inner": 80, "rotary_dim": 4, **POSITIONS}),
    "llama": Recipe("LlamaConfig", {**GATED, "tie_word_embeddings": False}),
    "mistral": Recipe("MistralConfig", {**GATED, "sliding_window": SLIDING_WINDOW}),
    "mixtral": Recipe("MixtralConfig", {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": Recipe("Olmo2Config", GATED),
    "opt": Recipe("OPTConfig", {"ffn_dim": 80, **POSITIONS}),
    "phi3": Recipe("Phi3Config", {**GATED, "original_max_position_embeddings": MODEL_MAX_LENGTH}),
    "qwen2": Recipe("Qwen2Config", GATED),
    "qwen3": Recipe("Qwen3Config", {**GATED, "head_dim": 12}),
}

VARIANT_RECIPES: Mapping[str, Recipe] = {
    "falcon_new": FAMILY_RECIPES["falcon"].but(new_decoder_architecture=True, num_kv_heads=2),
    "falcon_serial": FAMILY_RECIPES["falcon"].but(parallel_attn=False),
    "gpt_neox_serial": FAMILY_RECIPES["gpt_neox"].but(use_parallel_residual=False),
    "llama_square": FAMILY_RECIPES["llama"].but(intermediate_size=COMMON["hidden_size"]),
    "llama_tied": FAMILY_RECIPES["llama"].but(tie_word_embeddings=True),
    "opt_postnorm": FAMILY_RECIPES["opt"].but(do_layer_norm_before=False),
}

FAMILIES: tuple[str, ...] = tuple(FAMILY_RECIPES)
"""The architecture families, one tiny model each."""

VARIANTS: tuple[str, ...] = tuple(VARIANT_RECIPES)
"""Further tiny models, each a family with one thing about it changed."""


def tiny_model(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 4, **config_overrides: Any
) -> PreTrainedModel:
    """Build a causal language model of a few thousand weights, in evaluation mode on the processor.

    Equal arguments give equal weights, in every process; another ``dtype`` gives the same weights rounded. The global
    random state is left as it was. The vocabulary and the special ids are those of :func:`tiny_tokenizer`.

    Args:
        family: One of :data:`FAMILIES` or :data:`VARIANTS`.
        seed: Of the weights.
        dtype: Of the weights.
        layers: How many blocks.
        config_overrides: Arguments of the family's config class, by its own or by Hugging Face's common name
            (``hidden_size`` also for GPT-2); ``attn_implementation`` and ``experts_implementation`` are understood too.

    Raises:
        ModelError: There is no such family.
        ConfigError: The family's config has no argument of an override's name, or it is the depth.
    """
    recipe = FAMILY_RECIPES.get(family) or VARIANT_RECIPES.get(family)
    if recipe is None:
        known = (*FAMILIES, *VARIANTS)
        raise ModelError(
            f"There is no tiny model of the family {family!r}{_did_you_mean(family, known)}; "
            f"the families are {', '.join(known)}."
        )
    # Imported here because it takes seconds, and listing the families should not.
    from transformers import AutoModelForCausalLM

    kernels = {name: config_overrides.pop(name) for name in KERNELS if name in config_overrides}
    config = _config(recipe, layers, config_overrides)
    if dtype is torch.float64 and "num_local_experts" in recipe.options:
        kernels.setdefault("experts_implementation", "eager")  # the default, grouped_mm, has no float64
    # The constructor draws weights of its own from the global generator, before they are replaced here.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **kernels)
    _randomise(model, seed)
    return model.eval()


def _config(recipe: Recipe, layers: int, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    import transformers

    config_class = getattr(transformers, recipe.config)
    native: Mapping[str, str] = config_class.attribute_map
    known = {
        *inspect.signature(config_class).parameters,
        *inspect.signature(transformers.PreTrainedConfig).parameters,
        *native,
    }
    depth = native.get("num_hidden_layers", "num_hidden_layers")
    for name in overrides:
        if native.get(name, name) == depth:
            raise ConfigError(f"A tiny model's depth is set by layers, not by {name!r}: pass layers={overrides[name]}.")
        # A config keeps an unknown argument as a plain attribute: a misspelt override would do nothing, silently.
        if name not in known:
            raise ConfigError(f"{recipe.config} has no argument {name!r}{_did_you_mean(name, known)}.")
    layered = {depth: layers, **recipe.by_depth(layers)}
    # Later mappings win; both spellings of an argument meet under the config's own name.
    options = {
        native.get(name, name): value
        for part in (COMMON, recipe.options, layered, overrides)
        for name, value in part.items()
    }
    return config_class(**options)


@torch.no_grad()
def _randomise(model: PreTrainedModel, seed: int) -> None:
    """Draw every parameter anew: matrices around zero, vectors around what they were set to (a gain's 1, a bias's 0).

    Numbers are drawn in float32 and rounded when stored, so that the dtype does not change the draw; tied weights are
    one parameter and are drawn once.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
        parameter.copy_(parameter.float() + VECTOR_STD * drawn if parameter.ndim == 1 else WEIGHT_STD * drawn)


def _did_you_mean(name: str, known: tuple[str, ...] | set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
