"""Fuzzing of everything that this software reads: `python -m tests.fuzz --minutes 20`.

Each attack is a module with a function `attack(rng, folder)` that damages a file, reads it, and returns a word for the
outcome; it raises an error if the outcome is not allowed. ``folder`` is empty, or holds the files that the module's
`prepare(folder)` made once. Attacks take turns in child processes, so that a crash by a signal is detected too. Use
`--attack NAME --seed N --cases 1` to repeat a failed case.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

ATTACKS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")))
TURN_SECONDS = 60.0
FAILED = "FAILED"


def run_cases(name: str, first: int, cases: int, seconds: float) -> None:
    """Run cases of one attack in this process; print a JSON line before and after each."""
    module = importlib.import_module(f"tests.fuzz.{name}")
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder:
        if prepare := getattr(module, "prepare", None):
            prepare(Path(folder))
        end = time.monotonic() + seconds
        for seed in range(first, first + cases):
            if time.monotonic() > end:
                break
            print(json.dumps({"seed": seed}), flush=True)
            try:
                with nullcontext(folder) if prepare else tempfile.TemporaryDirectory(dir=folder) as place:
                    outcome = module.attack(random.Random(seed), Path(place))
            except Exception:  # noqa: BLE001 - any exception is a failed case
                outcome = FAILED
                traceback.print_exc()
            print(json.dumps({"seed": seed, "outcome": outcome}), flush=True)


def run_turn(name: str, first: int, cases: int, seconds: float, outcomes: Counter[str]) -> int:
    """Run a process with cases of one attack, count its outcomes, and return the next seed."""
    command = [sys.executable, "-m", "tests.fuzz", "--child", "--attack", name]
    command += ["--seed", str(first), "--cases", str(cases), "--minutes", str(seconds / 60)]
    with tempfile.TemporaryFile("w+") as errors:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
        lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"seed"')]
        found = Counter(line["outcome"] for line in lines if "outcome" in line)
        last = lines[-1]["seed"] if lines else first
        if run.returncode:
            reason = signal.Signals(-run.returncode).name if run.returncode < 0 else f"exit code {run.returncode}"
            found[f"{FAILED}: {reason}"] += 1
            print(f"{name}: seed {last}: {reason}", flush=True)
        if any(outcome.startswith(FAILED) for outcome in found):
            errors.seek(0)
            print(errors.read()[-20_000:], flush=True)
            seeds = [line["seed"] for line in lines if line.get("outcome") == FAILED]
            print(f"{name}: failed seeds {seeds}", flush=True)
    outcomes.update(found)
    return last + 1


def main() -> int:
    """Run the command line; return 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="minutes of all attacks together (1)")
    parser.add_argument("--attack", action="append", choices=ATTACKS, help="run only this attack; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case (0)")
    parser.add_argument("--cases", type=int, default=10**9, help="largest number of cases of each attack in one turn")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.attack or list(ATTACKS)
    if options.child:
        run_cases(names[0], options.seed, options.cases, 60 * options.minutes)
        return 0
    seeds, outcomes = dict.fromkeys(names, options.seed), {name: Counter() for name in names}
    turn = min(TURN_SECONDS, 60 * options.minutes / len(names))
    end = time.monotonic() + 60 * options.minutes
    while True:
        for name in names:
            seeds[name] = run_turn(name, seeds[name], options.cases, turn, outcomes[name])
            counts = ", ".join(f"{outcome} {count}" for outcome, count in outcomes[name].most_common())
            print(f"{name}: {sum(outcomes[name].values())} cases: {counts}", flush=True)
        if time.monotonic() + turn > end or options.cases < 10**9:
            break
    return int(any(outcome.startswith(FAILED) for found in outcomes.values() for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
