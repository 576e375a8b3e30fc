"""Edits from one backward pass: gradients of the answers turned into changes of weights, by rule or by a network."""
