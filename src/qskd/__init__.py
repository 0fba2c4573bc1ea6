"""qskd: make a big detection transformer small, by Knowledge Distillation via Query Selection."""

__version__ = "0.1.0"
