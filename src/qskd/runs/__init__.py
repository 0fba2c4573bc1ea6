"""From a configuration to a finished run folder: the one place that wires the rooms together."""
