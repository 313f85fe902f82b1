"""A phantom: female pelves drawn from a seed, scanned by made-up scanners, with clinical rows that fit."""

from parametrium.cohort.phantom.write import write_phantom

__all__ = ["write_phantom"]
