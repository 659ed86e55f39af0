"""Held-out loss of learned masks against the learning rate, for one model and several budgets of tokens.

python benchmarks/learning_rate.py --configfile config/smollm2-135m.yaml --steps 16 60 240 --rates auto 1e-4 3e-4 1e-3
python benchmarks/learning_rate.py --figure learning-rate.png results/learning-rate/*.jsonl

Learns PATCH at 45 % sparsity on the text of the configuration, with its tile and the weight 1 of the kept-norm
regularizer, measures the final mask on the validation split, and adds a line to results/learning-rate/MODEL.jsonl. Runs
that have a line there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.measure import table  # noqa: E402
from patch.pipeline.config.load import load_experiment  # noqa: E402
from patch.pipeline.runs.plan import Plan  # noqa: E402

METHOD, SPARSITY = "patch-joint", 0.45
SEQLEN, HELD_OUT, CALIBRATION = 128, 64, 64
RESULTS = Path("results/learning-rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", help="experiment with the model, which its workflow has made")
    parser.add_argument("--model", help="model of the experiment (default: its first)")
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 120, 480], help="optimizer steps of each budget")
    parser.add_argument("--batch-size", type=int, default=4, help=f"sequences of {SEQLEN} tokens a step")
    parser.add_argument("--rates", nargs="+", default=["auto"], help="`auto` or numbers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of each run")
    parser.add_argument("--set", type=json.loads, default={}, help="further settings of learning, as JSON")
    parser.add_argument("--figure", type=Path, help="draw this figure of the result files, and run nothing")
    parser.add_argument("files", type=Path, nargs="*", help="result files of the figure")
    options = parser.parse_args()
    if options.figure:
        figure(options.figure, options.files)
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measure what is missing, and print all results of the model."""
    plan = Plan(load_experiment(options.configfile))
    name = options.model or plan.models[0]
    study = Study(plan, name)
    path = RESULTS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [key(line) for line in read(path)]
    wanted = [
        {"steps": steps, "batch_size": options.batch_size, "rate": rate, "seed": seed, "set": options.set}
        for seed in options.seeds
        for steps in options.steps
        for rate in options.rates
    ]
    for run in tqdm([run for run in wanted if key(run) not in known], unit="run", disable=None):
        line = {"model": plan.experiment.models[name].title, **run, **study.learn(run)}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print(report(read(path)))


def key(run: dict[str, Any]) -> str:
    """Return what identifies a run."""
    return json.dumps([run[name] for name in ("steps", "batch_size", "rate", "seed", "set")])


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a result file, which need not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Study:
    """Model, text and initial masks of the runs."""

    def __init__(self, plan: Plan, name: str) -> None:
        from patch.data.corpus import read_documents
        from patch.data.sequences import pack_sequences
        from patch.models.loading import load_tokenizer

        self.plan, self.name = plan, name
        self.folder = Path(plan.store.model_path(name))
        if not self.folder.exists():
            sys.exit(f"{self.folder} is missing: make it by `snakemake --cores 2 {self.folder} --configfile ...`")
        corpus = Path(plan.store.corpus_path(plan.experiment.calibration.use.corpus))
        tokenizer = load_tokenizer(self.folder)
        splits = ("train", "calibration", "validation")
        packed = {split: pack_sequences(read_documents(corpus, split), tokenizer, SEQLEN) for split in splits}
        self.train, self.held_out = packed["train"], packed["validation"][:HELD_OUT]
        self.calibration, self.priors, self.references = packed["calibration"], {}, {}

    def load(self) -> Any:
        from patch.models.loading import load_model

        return load_model(self.folder, self.plan.experiment.models[self.name].dtype)

    def loss(self, masks: Any = None) -> float:
        """Return the mean cross-entropy of the model, with ``masks``, on the held-out sequences."""
        import torch

        from patch.learning.objective import cross_entropy
        from patch.masks.packed import apply_masks

        model = self.load()
        if masks is not None:
            apply_masks(model, masks)
        with torch.no_grad():
            rows = [torch.as_tensor(row[None].astype(np.int64)) for row in self.held_out]
            return float(np.mean([cross_entropy(model, row).item() for row in rows]))

    def initial(self, seed: int) -> dict[str, Any]:
        """Return SparseGPT's masks of a seed, 2:4 and unstructured."""
        from patch.masks.nm import NM, Unstructured
        from patch.pruning.prune import prune

        if seed not in self.priors:
            order = np.random.default_rng(seed).permutation(len(self.calibration))[:CALIBRATION]
            patterns = {"pattern_prior": NM(2, 4), "tile_prior": Unstructured(SPARSITY)}
            chosen = self.calibration[order]
            self.priors[seed] = {
                name: prune(self.load(), "sparsegpt", pattern, chosen) for name, pattern in patterns.items()
            }
        return self.priors[seed]

    def learn(self, run: dict[str, Any]) -> dict[str, Any]:
        """Learn a mask and return the rate and the held-out losses: dense, of the 2:4 initial mask, and of the mask."""
        from patch.learning.learn import learn
        from patch.learning.learning_rate import with_rate
        from patch.learning.learning_settings import Learning
        from patch.models.shapes import model_shape, prunable_parameters

        started, initial, size = time.monotonic(), self.initial(run["seed"]), run["batch_size"]
        rate = run["rate"] if run["rate"] == "auto" else float(run["rate"])
        values = {"steps": run["steps"], "batch_size": size, "micro_batch_size": size, "seqlen": SEQLEN, "lr": rate}
        # The study measures other text than the run would.
        settings = Learning(**values | {"weight_reg": 1.0, "held_out_sequences": 0} | run["set"])
        weights = prunable_parameters(model_shape(self.name, self.plan.experiment.models[self.name]))
        settings = with_rate(settings, METHOD, weights)
        with tempfile.TemporaryDirectory() as folder:
            masks = learn(
                self.load(),
                METHOD,
                self.train,
                settings,
                SPARSITY,
                self.plan.experiment.tile,
                run["seed"],
                folder=Path(folder) / "checkpoints",
                curve=Path(folder) / "curve.jsonl",
                **{name: prior.masks for name, prior in initial.items()},
            )
        for name, reference in (("dense", None), (run["seed"], initial["pattern_prior"])):
            if name not in self.references:
                self.references[name] = self.loss(reference)
        return {
            "weights": weights,
            "lr": settings.lr,
            "dense": self.references["dense"],
            "initial": self.references[run["seed"]],
            "loss": self.loss(masks),
            "seconds": round(time.monotonic() - started),
        }


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Return a table of the held-out losses, with the standard deviation where there are several seeds."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: (line["steps"] * line["batch_size"], str(line["set"]), line["lr"])):
        groups.setdefault((line["steps"], line["batch_size"], str(line["set"] or ""), line["rate"]), []).append(line)
    rows = []
    for (steps, size, others, rate), some in groups.items():
        losses = [line["loss"] for line in some]
        spread = f" ± {np.std(losses, ddof=1):.3f}" if len(losses) > 1 else ""
        dense, initial = (np.mean([line[name] for line in some]) for name in ("dense", "initial"))
        tokens = f"{steps * size * SEQLEN:,}"
        best = f"{np.mean(losses):.3f}{spread}"
        rows.append([tokens, steps, others, rate, f"{some[0]['lr']:.2g}", f"{dense:.3f}", f"{initial:.3f}", best])
    return table(["tokens", "steps", "settings", "rate", "lr", "dense", "initial 2:4", "PATCH 45 %"], rows)


def figure(path: Path, files: Sequence[Path]) -> None:
    """Draw a panel for each model: held-out loss against the learning rate, a line for each budget."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from patch.pipeline.reporting import figure_style as style

    colors = ("#E69F00", "#D55E00", "#7B3294")
    with matplotlib.rc_context(style.STYLE):
        drawn = Figure(figsize=(2.3 * len(files), 2.6), layout="constrained")
        for axis, file in zip(drawn.subplots(1, len(files), squeeze=False)[0], files, strict=True):
            lines = [line for line in read(file) if not line["set"]]
            budgets = sorted({line["steps"] * line["batch_size"] * SEQLEN for line in lines})
            for color, tokens in zip(colors, budgets, strict=False):
                some = [line for line in lines if line["steps"] * line["batch_size"] * SEQLEN == tokens]
                means = {
                    rate: np.mean([line["loss"] for line in some if line["lr"] == rate])
                    for rate in sorted({line["lr"] for line in some})
                }
                axis.plot(list(means), list(means.values()), color=color)
                for line in some:
                    kind = (
                        {"marker": "*", "ms": 8, "mec": "black"} if line["rate"] == "auto" else {"marker": "o", "ms": 3}
                    )
                    axis.plot(line["lr"], line["loss"], color=color, mew=0.6, zorder=3, **kind)
                place = (list(means)[0], list(means.values())[0])
                axis.annotate(
                    f"{tokens / 1000:.0f}k",
                    place,
                    (-3, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontsize=8,
                    bbox={"fc": "white", "ec": "none", "pad": 0.5},
                )
            axis.axhline(np.mean([line["initial"] for line in lines]), **style.DENSE_LINE | {"color": style.GREY})
            axis.axhline(np.mean([line["dense"] for line in lines]), **style.DOTTED_LINE)
            axis.set(xscale="log", xlabel="Learning rate", title=lines[0]["model"], xlim=(3e-5, 6e-3))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, position: f"{rate:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        drawn.axes[0].set_ylabel("Held-out loss (nats)")
        handles = [
            Line2D([], [], marker="*", ms=8, mec="black", color="white", label="lr: auto"),
            Line2D([], [], color=colors[0], label="PATCH 45 %, tokens of the run"),
            Line2D([], [], label="initial 2:4 mask", **style.DENSE_LINE | {"color": style.GREY}),
            Line2D([], [], label="dense", **style.DOTTED_LINE),
        ]
        style.add_legend(drawn, handles)
        drawn.savefig(path, dpi=250)


if __name__ == "__main__":
    main()
