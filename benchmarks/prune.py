"""Benchmark of one-shot pruning: seconds and peak memory of every method, and the savings of a grid by sharing.

python benchmarks/prune.py block      # one block of Llama-2-7B's shape, ours and the published formulation
python benchmarks/prune.py models     # the demo's models, with inputs of the pruned and of the dense model
python benchmarks/prune.py sharing    # jobs of a configuration, and of separate runs
python benchmarks/prune.py            # all three
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import table  # noqa: E402
from patch.pipeline.config.load import load_experiment  # noqa: E402
from patch.pipeline.resources.cost import CostModel  # noqa: E402
from patch.pipeline.runs.plan import Plan  # noqa: E402
from patch.pipeline.runs.run import Run  # noqa: E402
from patch.pipeline.runs.store import calibrated  # noqa: E402

ROOT = Path(__file__).parents[1]
PARTS = ("block", "models", "sharing")
METHODS = ("magnitude", "wanda", "sparsegpt", "thanos")
PATTERNS = ("2:4", "unstructured")
# A separate process isolates the peak memory.
MEASURE = """
import copy, resource, statistics, sys, time
import numpy as np, torch
from transformers import AutoConfig, AutoModelForCausalLM
from patch.pipeline.config.load import load_experiment
from patch.masks.nm import parse_pattern
from patch.pruning.prune import prune
path, name, method, pattern, repeats = sys.argv[1:]
experiment = load_experiment(path)
source, calibration = experiment.models[name].source, experiment.calibration
torch.manual_seed(0)
sizes = source.config | {"vocab_size": source.tokenizer.vocab_size}
config = AutoConfig.for_model(source.architecture, **sizes)
model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
shape = (calibration.samples, calibration.seqlen)
sequences = np.random.default_rng(0).integers(0, source.tokenizer.vocab_size, shape)
prune(copy.deepcopy(model), "magnitude", parse_pattern("2:4", 0.5))  # warm-up
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for propagate in ("pruned", "dense"):
    times = []
    for _ in range(int(repeats)):
        victim = copy.deepcopy(model)
        started = time.perf_counter()
        prune(victim, method, parse_pattern(pattern, 0.5), sequences, calibration.batch_size, propagate=propagate)
        times.append(time.perf_counter() - started)
    print(statistics.median(times))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""


def models(configfile: Path, repeats: int) -> str:
    """Return a table of seconds and peak memory for each method and each trained model of a configuration.

    The weights are random, since the work of a method does not depend on them.
    """
    experiment = load_experiment(configfile)
    names = [name for name, model in experiment.models.items() if model.source.kind == "train"]
    rows = []
    for name in names:
        for method in METHODS:
            for pattern in PATTERNS:
                pruned, dense, memory = _measured(configfile, name, method, pattern, str(repeats))
                times = [f"{pruned:.3f}", f"{dense:.3f}", f"{dense / pruned:.2f}"]
                rows.append([name, method, pattern, *times, f"+{memory:.0f}"])
    return table(("model", "method", "pattern", "s: pruned inputs", "dense inputs", "ratio", "peak MB"), rows)


def _measured(configfile: Path, *arguments: str) -> list[float]:
    command = [sys.executable, "-c", MEASURE, str(configfile), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if run.returncode:
        raise SystemExit(run.stderr)
    return [float(number) for number in run.stdout.split()]


def sharing(configfile: Path) -> str:
    """Return a table of a configuration's cost if each run makes all its inputs, and if the workflow shares them.

    A pass is one forward pass of a model over all its calibration sequences.
    """
    experiment = load_experiment(configfile)
    rows = []
    alone: Counter[str] = Counter()
    for mode in ("pruned", "dense"):
        calibration = experiment.calibration.model_copy(update={"propagate": mode})
        experiment = experiment.model_copy(update={"calibration": calibration})
        plan = Plan(experiment)
        costs = CostModel(plan)
        if mode == "pruned":
            for run in plan.grid.runs:
                alone += _counts(plan, costs, _needed(plan, run))
            rows.append(["separate runs", *_row(alone)])
        made = _counts(plan, costs, plan.grid.closure, shared=True)
        rows.append([f"shared, {mode} inputs", *_row(made)])
    return table(("jobs", "sequence files", "passes", "prunes", "learning runs", "hours of prune and learn"), rows)


def _needed(plan: Plan, run: Run) -> list[Run]:
    """Return a run and all of its dependencies."""
    if run.quantization:
        return [run, *_needed(plan, run.pruned)]
    return [run, *(each for prior in plan.grid.priors(run).values() for each in _needed(plan, prior))]


def _counts(plan: Plan, costs: CostModel, runs: list[Run], shared: bool = False) -> Counter[str]:
    found: Counter[str] = Counter()
    sequences = [plan.store.calibration_sequences(run.model, run.seed).key for run in runs if calibrated(run)]
    found["sequences"] = len(set(sequences))
    for run in runs:
        if run.quantization:
            found["passes"] += 2 * (run.quantization == "slim-lora")
        elif run.definition.stage == "prune":
            found["prunes"] += 1
            found["passes"] += 2 * (calibrated(run) and plan.dense_statistics(run) is None)
            found["minutes"] += costs.prune(run).minutes
        elif run.definition.stage == "learn":
            found["learned"] += 1
            found["minutes"] += costs.learn(run).minutes * max(1, costs.learn(run).gpus)
    if shared:
        found["passes"] += len(plan.statistics)
        found["minutes"] += sum(costs.statistics(each).minutes for each in plan.statistics.values())
    return found


def _row(found: Counter[str]) -> list[str]:
    names = ("sequences", "passes", "prunes", "learned")
    return [*(str(found[name]) for name in names), f"{found['minutes'] / 60:.1f}"]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; without any, all")
    parser.add_argument(
        "--configfile", type=Path, action="append", help="configuration for models and sharing (the demo, the paper)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs; the median counts, for a block the fastest (3)")
    parser.add_argument("--scale", type=int, default=1, help="divisor of the sizes of the block (1)")
    options = parser.parse_args()
    if odd := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {min(odd)!r}; known: {', '.join(PARTS)}")
    parts = options.parts or PARTS
    configfiles = options.configfile or [ROOT / "config/demo.yaml", ROOT / "config/paper.yaml"]
    if "block" in parts:
        sizes = ["--scale", str(options.scale), "--turns", str(options.repeats)]
        subprocess.run([sys.executable, ROOT / "benchmarks/prune_layers.py", *sizes], check=True)
    if "models" in parts:
        print(f"\n{configfiles[0].stem}: whole models of random weights, median of {options.repeats}")
        print(models(configfiles[0], options.repeats), flush=True)
    for configfile in configfiles if "sharing" in parts else []:
        print(f"\n{configfile.stem}: savings by sharing, hours by the cost model\n{sharing(configfile)}", flush=True)


if __name__ == "__main__":
    main()
