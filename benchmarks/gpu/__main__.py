"""Command line: `python -m benchmarks.gpu [--rehearse] [--folder FOLDER] [--minutes N]`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

from benchmarks.gpu.card import describe
from benchmarks.gpu.page import PAGE, check_page, copy_page, write_page
from benchmarks.gpu.report import Report, file_name, read_report, update, write_report
from benchmarks.gpu.runner import Clock, run_steps
from benchmarks.gpu.sizes import ROOT, full_sizes, rehearsal_sizes
from patch.errors import InputError

FOLDER = ROOT / "docs/gpu"
MINUTES = 25.0


def main() -> int:
    """Run the measurements that are missing, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="run everything on the CPU, with tiny sizes")
    parser.add_argument("--folder", type=Path, help="folder of gpu-CARD.json (docs/gpu; for a rehearsal, a new one)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"limit of this run ({MINUTES:g})")
    options = parser.parse_args()
    try:
        return _run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    clock = Clock(time.monotonic(), 60 * options.minutes)
    if options.rehearse:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        if find_spec("triton"):
            os.environ["TRITON_INTERPRET"] = "1"
        folder = options.folder or Path(tempfile.mkdtemp(prefix="gpu-rehearsal-"))
        sizes, page = rehearsal_sizes(), copy_page(folder)
    else:
        sizes, page, folder = full_sizes(), PAGE, options.folder or FOLDER
    # In a process of its own, since it would hold memory of the GPU until it ends.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        card = pool.submit(describe, sizes.device).result()
    path = folder / file_name(card)
    if not path.exists():
        write_report(path, Report(card=card))
    check_page(page, [read_report(path)])
    print(f"{clock.elapsed()} {card.name}: {path}", flush=True)
    # A time limit of a cluster interrupts, too; a command in the background ignores interrupts unless it sets them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    interrupted = False
    try:
        run_steps(path, sizes, clock)
    except KeyboardInterrupt:
        interrupted = True
    report = read_report(path)
    update(path, seconds=report.seconds + time.monotonic() - clock.started)
    write_page(page, [read_report(one) for one in sorted(folder.glob("gpu-*.json"))])
    counts = f"{len(report.results)} measured, {len(report.not_measured)} not measured"
    print(f"{clock.elapsed()} {counts}: {page}", flush=True)
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
