"""The command `llama-interp`: analyses of one prompt from the shell."""

from .root import cli

# the commands enter themselves into the group
from . import (  # noqa: E402, F401  isort: skip
    ablation, attention, attribution, devices, doctor, generate, graph, induction, knockout, lens, paths, rpc_server,
    run, show, sites, stats, sweep,
)

cli.add_command(generate.generate)

__all__ = ["cli", "main"]


def main() -> None:
    """The console script's entry point."""
    cli(prog_name="llama-interp")
