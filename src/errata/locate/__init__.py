"""Where a fact, a behaviour or a bias lives in a model: traces, attributions, value vectors."""
