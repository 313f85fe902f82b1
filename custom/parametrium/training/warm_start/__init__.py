"""Weights of another training as the start of a run."""
