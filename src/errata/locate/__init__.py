"""Where a fact, a behaviour or a bias lives in a model, as numbers and pictures."""

from errata.locate.knowledge_neurons import FactPrompts, NeuronOptions, knowledge_neurons
from errata.locate.knowledge_result import KnowledgeNeurons
from errata.locate.neurons import Neuron, rewrite_neurons, scale_neurons
from errata.locate.result import Located, Table, save

__all__ = [
    "FactPrompts",
    "KnowledgeNeurons",
    "Located",
    "Neuron",
    "NeuronOptions",
    "Table",
    "knowledge_neurons",
    "rewrite_neurons",
    "save",
    "scale_neurons",
]
