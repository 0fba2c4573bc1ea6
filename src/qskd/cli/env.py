"""`qskd env`."""

from collections.abc import Sequence

import torch

from qskd.cli.parsing import CommandParser, show
from qskd.runs.folder import environment


def run(arguments: Sequence[str]) -> int:
    """Print versions and devices."""
    CommandParser("env", "Versions and devices, for a bug report.").read(arguments)
    facts = environment()
    facts["threads"] = str(torch.get_num_threads())
    facts["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        show(f"{name.ljust(width)}  {value}")
    return 0
