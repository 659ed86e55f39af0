"""Command line of the stages: `python -m patch.stages STAGE --spec JSON --input ... --output ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from patch.launch import is_launched
from patch.stages._run import run_stage, stage_names
from patch.warm import run_warm

# The stages that may reach a hub; all others run offline.
ONLINE = ("fetch_corpus", "fetch_mask", "fetch_model", "fetch_tasks")


def main(arguments: Sequence[str]) -> int:
    """Run one stage, through a warm server where there is one; returns the exit code.

    A process of a stage that has several starts by itself: the server has no part in how they find each other.
    """
    names = stage_names()
    if not arguments or arguments[0] not in names:
        print(f"usage: python -m patch.stages STAGE [--help]\nstages: {', '.join(names)}", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    if arguments[0] in ONLINE:
        return run_stage(arguments)
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    code = None if is_launched() else run_warm(arguments)
    return run_stage(arguments) if code is None else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
