"""Jobs of an experiment, with their outputs, inputs and resources, as the rules of the workflow define them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from patch.pipeline.resources.cost import CostModel, Job
from patch.pipeline.resources.disk import NOTHING, DiskModel, Space
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run
from patch.pipeline.runs.store import Statistics, Windows

# Rows of the printed plan and the rules of each row.
STAGES = {
    "fetch": ("fetch_corpus", "fetch_model", "fetch_mask", "fetch_tasks", "make_tasks", "make_tokenizer"),
    "tokenize": ("calibrate", "tokenize"),
    "train": ("train_model",),
    "statistics": ("statistics",),
    "import": ("import_mask",),
    "prune": ("prune",),
    "update": ("update_weights",),
    "learn": ("learn",),
    "quantize": ("quantize",),
    "evaluate": ("evaluate",),
    "speedup": ("speedup",),
    "tabulate": (
        "collect",
        "compare",
        "table",
        "pareto",
        "density",
        "curves",
        "speedup_figure",
        "overview",
        "summary",
    ),
}
# Assumes a download at 50 MB/s.
DOWNLOADED_MB_PER_MINUTE = 3000
# Memory of a job without its own estimate: libraries and little data.
LIGHT_MB = 1000


@dataclass(frozen=True, eq=False)
class Node:
    """One job.

    Attributes:
        rule: Rule of the workflow.
        name: Name of the artifact that the rule makes, such as a corpus, a model or a run.
        model: Model that the job belongs to, or None if models share it.
        outputs: Paths that the job writes.
        inputs: Paths that the job reads.
        cost: GPUs, memory and minutes.
        space: Disk space.
        run: Run that the job belongs to, else None.
    """

    rule: str
    name: str
    model: str | None
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    cost: Job
    space: Space = NOTHING
    run: Run | None = None

    @property
    def stage(self) -> str:
        """Row of the printed plan."""
        return next(stage for stage, rules in STAGES.items() if self.rule in rules)


class JobList:
    """List of all jobs of an experiment, each after the jobs that it depends on."""

    def __init__(self, plan: Plan, costs: CostModel, disk: DiskModel) -> None:
        self.plan, self.costs, self.disk = plan, costs, disk

    def nodes(self) -> list[Node]:
        """Return the jobs of shared artifacts, of runs, and of tables and figures."""
        return [*self._store_nodes(), *self._run_nodes(), *self._speedup_nodes(), *self._table_nodes()]

    def _light(self, minutes: int = 1) -> Job:
        return Job(gpus=0, mem_mb=LIGHT_MB, gpu_mem_mb=0, minutes=minutes)

    def _fetching(self, space: Space) -> Job:
        return self._light(1 + int(max(space.kept, space.cache) / DOWNLOADED_MB_PER_MINUTE))

    def _store_nodes(self) -> Iterable[Node]:
        store, experiment = self.plan.store, self.plan.experiment
        trained = [name for name, model in experiment.models.items() if model.source.kind == "train"]
        for name in experiment.corpora:
            space = self.disk.corpus(name)
            yield Node("fetch_corpus", name, None, (store.corpus_path(name),), (), self._fetching(space), space)
        tokenizers = {store.tokenizer_path(name): experiment.models[name].source.corpus for name in trained}
        for path, corpus in tokenizers.items():
            yield Node("make_tokenizer", Path(path).name, None, (path,), (store.corpus_path(corpus),), self._light())
        for name in experiment.models:
            if name not in trained:
                space = self.disk.model(name)
                yield Node("fetch_model", name, name, (store.model_path(name),), (), self._fetching(space), space)
        for windows in self.plan.windows.values():
            yield self._windows_node(windows)
        for name in trained:
            inputs = (store.tokenizer_path(name), store.training_windows(name).path)
            cost, space = self.costs.train(name), self.disk.model(name)
            yield Node("train_model", name, name, (store.model_path(name),), inputs, cost, space)
        for statistics in self.plan.statistics.values():
            yield self._statistics_node(statistics)
        for name in self._fetched_masks():
            space = self.disk.fetched_mask(name)
            yield Node("fetch_mask", name, None, (store.mask_source(name),), (), self._fetching(space), space)
        space, made = self.disk.tasks(), experiment.evaluation.include_path is not None
        inputs = (store.corpus_path(experiment.evaluation.task_use.corpus),) if made else ()
        rule = "make_tasks" if made else "fetch_tasks"
        yield Node(rule, "tasks", None, (store.tasks_path(),), inputs, self._fetching(space), space)

    def _fetched_masks(self) -> list[str]:
        used = {run.imported for run in self.plan.masks.made if run.imported}
        return sorted(name for name in used if self.plan.experiment.imports[name].source.kind == "hub")

    def _windows_node(self, windows: Windows) -> Node:
        store, experiment = self.plan.store, self.plan.experiment
        models = [name for name in experiment.models if store.tokenizer_path(name) == windows.tokenizer]
        rule = "calibrate" if windows.settings.kind == "calibration" else "tokenize"
        model = models[0] if len(models) == 1 else None
        inputs = (windows.corpus, windows.tokenizer)
        cost, space = self.costs.windows(windows.settings), self.disk.windows(windows, models[0])
        return Node(rule, windows.key, model, (windows.path,), inputs, cost, space)

    def _statistics_node(self, statistics: Statistics) -> Node:
        model, gram = statistics.model, statistics.settings.gram
        inputs = (self.plan.store.model_path(model), statistics.windows.path)
        cost, space = self.costs.statistics(model, gram), Space(kept=self.disk.statistics(model, gram))
        return Node("statistics", statistics.key, model, (statistics.path,), inputs, cost, space)

    def _run_nodes(self) -> Iterable[Node]:
        plan, layout = self.plan, self.plan.layout
        for run in plan.masks.made:
            mask, space = plan.masks.mask(run), Space(kept=self.disk.mask(run))
            if run.definition.stage == "prune":
                yield self._run_node("prune", run, [mask], plan.prune_inputs(run), self.costs.prune(run), space)
            elif run.definition.stage == "import":
                inputs, cost = plan.import_inputs(run), self.costs.import_mask(run)
                yield self._run_node("import_mask", run, [mask], inputs, cost, space)
            else:
                inputs = plan.learn_inputs(run) | plan.prior_inputs(run)
                outputs = [mask, plan.masks.curve(run)]
                yield self._run_node("learn", run, outputs, inputs, self.costs.learn(run), self.disk.learn(run))
        for run in plan.updated_runs:
            inputs = plan.prune_inputs(run) | {"mask": plan.masks.mask(run)}
            yield self._run_node("update_weights", run, [layout.weights(run)], inputs, self.costs.prune(run))
        for run in plan.grid.runs:
            if run.quantization:
                inputs, outputs = plan.quantize_inputs(run), [layout.quantized(run)]
                yield self._run_node("quantize", run, outputs, inputs, self.costs.quantize(run))
            inputs = plan.evaluate_inputs(run)
            outputs = [layout.record(run), layout.samples(run)]
            yield self._run_node("evaluate", run, outputs, inputs, self.costs.evaluate(run))

    def _run_node(
        self, rule: str, run: Run, outputs: list[str], inputs: dict[str, str], cost: Job, space: Space = NOTHING
    ) -> Node:
        return Node(rule, run.id, run.model, tuple(outputs), tuple(inputs.values()), cost, space, run)

    def _speedup_nodes(self) -> Iterable[Node]:
        plan = self.plan
        for model in plan.timed_models:
            inputs = (plan.store.model_path(model), *plan.speedup_inputs(model)["masks"])
            cost = self.costs.speedup(model, plan.timed_runs(model))
            yield Node("speedup", model, model, (plan.layout.speedup(model),), inputs, cost)

    def _table_nodes(self) -> Iterable[Node]:
        plan, root = self.plan, self.plan.layout.root
        records = tuple(plan.layout.record(run) for run in plan.grid.runs)
        samples = tuple(plan.layout.samples(run) for run in plan.grid.runs)
        results, differences = f"{root}/results.csv", f"{root}/differences.csv"
        yield Node("collect", "results", None, (results,), records, self._light())
        yield Node("compare", "differences", None, (differences,), samples, self._light())
        speedups = tuple(plan.layout.speedup(model) for model in plan.timed_models)
        for table in plan.tables():
            paths = tuple(f"{root}/tables/{table}.{kind}" for kind in ("csv", "md", "tex", "html"))
            inputs = (results, differences, *(speedups if table == "speedup" else ()))
            yield Node("table", table, None, paths, inputs, self._light())
        for model in plan.models:
            inputs = {
                "pareto": (results,),
                "density": tuple(plan.layout.record(run) for run in plan.hybrid_runs(model)),
                "curves": tuple(plan.masks.curve(run) for run in plan.learned_runs(model)),
                "speedup": (results, plan.layout.speedup(model)),
            }
            for figure in plan.figures(model):
                paths = tuple(f"{root}/figures/{model}/{figure}.{kind}" for kind in ("svg", "pdf", "png"))
                # The rule `speedup` measures the speed; another rule draws the figure.
                rule = "speedup_figure" if figure == "speedup" else figure
                yield Node(rule, model, model, paths, inputs[figure], self._light())
        pages = tuple(f"{root}/overview/{page}.html" for page in ("cost", "environment"))
        yield Node("overview", "pages", None, pages, records, self._light())
        told = (*records, results, differences, *speedups)
        yield Node("summary", "README.md", None, (f"{root}/README.md",), told, self._light())
