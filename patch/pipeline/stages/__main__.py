"""Command line of the stages: `python -m patch.pipeline.stages STAGE --settings FILE --output ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from patch.pipeline.stages._run import STAGES, run_stage

# Stages that may access a hub; all others run offline.
ONLINE = ("fetch_corpus", "fetch_mask", "fetch_model", "fetch_tasks")


def main(arguments: Sequence[str]) -> int:
    """Run one stage and return the exit code."""
    if not arguments or arguments[0] not in STAGES:
        names = ", ".join(sorted(STAGES))
        print(f"usage: python -m patch.pipeline.stages STAGE [--help]\nstages: {names}", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    if arguments[0] not in ONLINE:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    return run_stage(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
