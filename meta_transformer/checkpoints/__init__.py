"""Weights in and out: our own and foreign checkpoints, saving, sharing, the model card."""
