"""Command line of the stages: `python -m patch.pipeline.stages STAGE --settings FILE --output ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from patch.pipeline.stages.client import run_in_server

# Stages that may access a hub; all others run offline, as the server does.
ONLINE = ("fetch_corpus", "fetch_mask", "fetch_model", "fetch_tasks")


def main(arguments: Sequence[str]) -> int:
    """Run one stage, in the server of this run if there is one, and return the exit code."""
    if arguments and arguments[0] not in ONLINE and (code := run_in_server(arguments)) is not None:
        return code
    # Only now, because the client of a server needs none of its imports.
    from patch.pipeline.stages._run import STAGES, run_stage

    if not arguments or arguments[0] not in STAGES:
        names = ", ".join(sorted(STAGES))
        print(f"usage: python -m patch.pipeline.stages STAGE [--help]\nstages: {names}", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    if arguments[0] not in ONLINE:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    return run_stage(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
