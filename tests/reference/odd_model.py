"""A decoder of no known family: odd names, MLP declared before attention, and no key/value cache."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class OddConfig(PretrainedConfig):
    model_type = "errata_odd"

    def __init__(self, vocab_size=512, width=32, inner=48, depth=3, decoys=False, **kw):
        self.vocab_size, self.width, self.inner, self.decoys = vocab_size, width, inner, decoys
        self.num_hidden_layers = depth
        super().__init__(**kw)


class OddMixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fused = nn.Linear(width, 3 * width)
        self.back = nn.Linear(width, width)

    def forward(self, x):
        query, key, value = self.fused(x).chunk(3, -1)
        scores = query @ key.transpose(1, 2) / x.shape[-1] ** 0.5
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.back(scores.masked_fill(later, -1e9).softmax(-1) @ value)


class OddStep(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.shrink = nn.Linear(inner, width, bias=False)  # declared first, run last
        self.widen = nn.Linear(width, inner)
        self.calm = nn.LayerNorm(width)
        self.mix = OddMixer(width)

    def forward(self, x):
        x = x + self.mix(self.calm(x))
        return x + self.shrink(torch.relu(self.widen(x)) ** 2)


class OddModel(PreTrainedModel):
    config_class = OddConfig
    _tied_weights_keys = None

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.trunk = nn.ModuleList(OddStep(config.width, config.inner) for _ in range(config.num_hidden_layers))
        if config.decoys:
            self.spare = nn.ModuleList(OddStep(config.width, config.inner) for _ in range(config.num_hidden_layers))
        self.last = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return self.out

    def forward(self, input_ids, attention_mask=None, use_cache=None, past_key_values=None, **_):
        x = self.words(input_ids)
        for step in self.trunk:
            x = step(x)
        return CausalLMOutput(logits=self.out(self.last(x)))


def odd_model(*, decoys=False, seed=0):
    model = OddModel(OddConfig(decoys=decoys, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.1 * drawn if parameter.ndim == 1 else 0.2 * drawn)
    return model
