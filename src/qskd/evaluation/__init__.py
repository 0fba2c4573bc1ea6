"""How good and how costly a detector is."""
