"""Command line: `python -m patch COMMAND [--help]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

# Command -> its module, whose `main` takes the arguments, and what it does.
COMMANDS = {
    "plan": ("patch.pipeline.cli.plan", "jobs, GPU-hours, memory, disk and wall time of an experiment"),
    "preflight": ("patch.pipeline.cli.preflight", "checks before a run on a cluster"),
    "status": ("patch.pipeline.cli.status", "the state of every job"),
    "show": ("patch.pipeline.cli.show", "the first table, and the paths of all results"),
    "memory": ("patch.pipeline.cli.memory", "memory of each GPU at a learning step"),
    "export": ("patch.inference.export", "a folder with a sparse model that transformers loads"),
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        return import_module(COMMANDS[name][0]).main(arguments[1:])
    asked = name in ("-h", "--help")
    lines = ["usage: python -m patch COMMAND [--help]", "", "commands:"]
    lines += [f"  {command:<10} {about}" for command, (_, about) in COMMANDS.items()]
    if not asked and name:
        lines.append(f"error: no command {name!r}")
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
