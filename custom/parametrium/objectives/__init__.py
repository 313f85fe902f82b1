"""Pretext tasks, each a module with its own heads."""
