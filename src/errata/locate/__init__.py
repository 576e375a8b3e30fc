"""Where a fact, a behaviour or a bias lives in a model, as numbers and pictures."""

from errata.locate.knowledge_neurons import FactPrompts, NeuronOptions, knowledge_neurons
from errata.locate.knowledge_result import KnowledgeNeurons
from errata.locate.lens import Lens, logit_lens
from errata.locate.neurons import Neuron, rewrite_neurons, scale_neurons
from errata.locate.result import Located, Table, save
from errata.locate.value_result import ValueVectors, value_vectors

__all__ = [
    "FactPrompts",
    "KnowledgeNeurons",
    "Lens",
    "Located",
    "Neuron",
    "NeuronOptions",
    "Table",
    "ValueVectors",
    "knowledge_neurons",
    "logit_lens",
    "rewrite_neurons",
    "save",
    "scale_neurons",
    "value_vectors",
]
