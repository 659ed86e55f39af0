"""Command line: `python -m patch COMMAND [--help]`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from patch.errors import InputError

# Command -> its module, whose `main` takes the arguments, and a description.
COMMANDS = {
    "plan": ("patch.pipeline.cli.plan", "estimate jobs, GPU-hours, memory, disk and wall time"),
    "preflight": (
        "patch.pipeline.cli.preflight",
        "check disk, hub and folders before a run on a cluster, or the kernels",
    ),
    "status": ("patch.pipeline.cli.status", "print the state of the jobs"),
    "show": ("patch.pipeline.cli.show", "print the first table and the paths of all results"),
    "memory": ("patch.pipeline.cli.memory", "estimate the GPU memory of mask learning"),
    "add-model": ("patch.pipeline.cli.add_model", "write the block of a configuration for a pretrained model"),
    "export": ("patch.pipeline.cli.export", "write a sparse model to a folder that transformers and vLLM load"),
}


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code."""
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        try:
            return import_module(COMMANDS[name][0]).main(arguments[1:])
        except InputError as error:  # a mistake in the file of a method, found by an import
            print(f"error: {error}", file=sys.stderr)
            return 2
    asked = name in ("-h", "--help")
    lines = ["usage: python -m patch COMMAND [--help]", "", "commands:"]
    lines += [f"  {command:<10} {about}" for command, (_, about) in COMMANDS.items()]
    if not asked and name:
        lines.append(f"error: unknown command {name!r}")
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    # A reader such as `head` that closes the pipe ends the command without a message.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
