"""Steps, rounds, updates, checkpoints: everything a round needs, without FLARE."""
