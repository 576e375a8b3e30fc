"""Fine-tuning editors: one training loop with three knobs (which weights, which objective, which constraint)."""
