"""hetsched: a scheduler and runtime for heterogeneous task graphs."""

__version__ = "0.1.0"
