"""The detection criterion and the distillation terms."""
