"""The section on GPUs of docs/performance.md, between two markers, from the reports."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.candidates import SPARSITIES
from benchmarks.gpu import gpu_tests
from benchmarks.gpu.report import Report, Result, Timed
from benchmarks.gpu.sizes import ROOT
from benchmarks.learning_steps import WAYS
from benchmarks.measure import shown
from patch.errors import InputError
from patch.files.io import atomic_file, read_json_object

PAGE = ROOT / "docs/performance.md"
BEGIN = "<!-- gpu: begin, written by `make gpu` -->"
END = "<!-- gpu: end -->"
EMPTY = "No GPU has been measured."
PUBLISHED = ROOT / "config/published.json"
# The key of the published throughput, which names the batch and the prompt.
THROUGHPUT = "throughput_tok_s_bs16_prompt128"
PACKED = [f"{sparsity}%" for sparsity in SPARSITIES]
LIBRARIES = ["cuSPARSELt", "CUTLASS"]


def check_page(page: Path, reports: Sequence[Report]) -> None:
    """Refuse numbers of a CPU on the project's own page.

    Raises:
        InputError: One of the reports is of a rehearsal, and the page is docs/performance.md or a link to it.
    """
    if any(report.rehearsal for report in reports) and page.exists() and os.path.samefile(page, PAGE):
        raise InputError(f"the numbers of a rehearsal are not of a GPU; {page} does not show them")


def copy_page(folder: Path) -> Path:
    """Return the path of a copy of the page in a folder, for a rehearsal.

    Raises:
        InputError: The folder is that of the page itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / PAGE.name
    if page.exists() and os.path.samefile(page, PAGE):
        raise InputError(f"--folder is {str(folder)!r}, whose {PAGE.name} is the project's own; give another folder")
    if not page.exists():
        shutil.copyfile(PAGE, page)
    return page


def write_page(page: Path, reports: Sequence[Report]) -> None:
    """Replace the text between the markers of a page.

    Raises:
        InputError: A marker is missing, or `check_page` refuses.
    """
    check_page(page, reports)
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{page}: `{END if begin else BEGIN}` is missing")
    parts = [section(report) for report in reports if report.results or report.not_measured]
    with atomic_file(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts or [EMPTY]) + f"\n\n{END}{after}")


def section(report: Report) -> str:
    """Return the subsection of one card."""
    by_step: dict[str, dict[str, Result]] = {}
    for name, entry in report.results.items():
        step, _, rest = name.partition("/")
        by_step.setdefault(step, {})[rest] = entry.result
    card, versions = report.card, sorted({entry.software for entry in report.results.values()})
    facts = [f"{card.memory_gb:.0f} GB", *(f"{name} {value}" for name, value in card.facts.items())]
    lines = [f"### {card.name}", "", f"{', '.join(facts)}; {'; '.join(versions)}. {report.seconds / 60:.0f} minutes."]
    for step, render in RENDERED.items():
        if step in by_step:
            lines += ["", *render(by_step[step])]
    if missing := _missing(report):
        lines += ["", "Not measured:", "", *(f"- {', '.join(names)}: {why}" for why, names in missing.items())]
    return "\n".join(lines)


def _missing(report: Report) -> dict[str, list[str]]:
    """Return each reason why something was not measured, with the names."""
    found: dict[str, list[str]] = {}
    for name, entry in report.results.items():
        # The notes of the tests are their failures.
        notes = {} if name.startswith(f"{gpu_tests.NAME}/") else entry.result.notes
        for subject, reason in notes.items():
            found.setdefault(reason, []).append(f"{name} ({subject})")
    for name, reason in report.not_measured.items():
        found.setdefault(reason, []).append(name)
    return found


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    align = ["left"] * texts + ["right"] * (len(headers) - texts)
    return tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def _quantity(timed: Timed | None, name: str, decimals: int, factor: float = 1.0) -> str:
    return shown(timed.quantities[name].model_dump(), name in timed.noisy, decimals, factor) if timed else "-"


def _tests(results: dict[str, Result]) -> list[str]:
    values = results["gpu"].values
    counts = [f"{int(values[name])} {name}" for name in ("passed", "failed", "skipped")]
    failures = [f"- {name}: {message}" for name, message in results["gpu"].notes.items()]
    return [f"Tests that need a GPU: {', '.join(counts)}.", *(["", *failures] if failures else [])]


def _layers(results: dict[str, Result]) -> list[str]:
    headers = ["Layer", "Rows", "", "Dense", *PACKED, *(f"{name}, 50%" for name in LIBRARIES)]
    rows = []
    for name, result in results.items():
        shape, _, count = name.partition("/")
        timed = [result.timed.get(candidate) for candidate in ("dense", *PACKED, *LIBRARIES)]
        rows.append([shape, count, "ms", *(_quantity(one, "seconds", 4, 1e3) for one in timed)])
        rows.append(["", "", "speedup", *(_quantity(one, "speedup", 2) for one in timed)])
        limits = [one.facts.get("limit") if one else None for one in timed]
        rows.append(["", "", "limit of bytes", *(f"{limit:.2f}" if limit else "-" for limit in limits)])
    text = (
        "Packed layers in bf16, PyTorch's dense layer, and its semi-structured formats of the weight that is 2:4 "
        "everywhere: milliseconds, and speedups over the dense layer in the same turn, with half the interquartile "
        "range. The limit is the ratio of the bytes of the weights. † marks a range over a fifth of the median."
    )
    return ["#### Layers", "", text, "", _table(headers, rows, 3)]


def _generation(results: dict[str, Result]) -> list[str]:
    rows = []
    for name, result in results.items():
        sparsity, _, batch = name.partition("/")
        dense, packed = result.timed["dense"], result.timed[sparsity]
        speeds = [_quantity(one, "tokens_per_second", 1) for one in (dense, packed)]
        ratio = f"{packed.facts['layer_bytes']:.3f}"
        graphs = "both" if dense.facts["graph"] and packed.facts["graph"] else "not both"
        rows.append([sparsity, batch, *speeds, _quantity(packed, "speedup", 2), ratio, graphs])
    for card, numbers in read_json_object(PUBLISHED)[THROUGHPUT].items():
        speeds = numbers["gen128"]
        for sparsity in sorted(speeds.keys() - {"0"}, key=int):
            ratio = f"{speeds[sparsity] / speeds['0']:.2f}"
            row = [
                f"{sparsity}%, published, {card}",
                "16",
                f"{speeds['0']:.1f}",
                f"{speeds[sparsity]:.1f}",
                ratio,
                "-",
                "-",
            ]
            rows.append(row)
    headers = ["Sparsity", "Batch", "Dense, tokens/s", "Packed, tokens/s", "Speedup", "Bytes of layers", "CUDA graphs"]
    text = (
        "Generation by a model of LLaMA-2-7B's size with random weights: prompt of 128 tokens, 128 new tokens; and the "
        "paper's numbers."
    )
    return ["#### Generation", "", text, "", _table(headers, rows)]


def _learning(results: dict[str, Result]) -> list[str]:
    rows = []
    for name, result in results.items():
        size, _, way = name.partition("/")
        timed = result.timed[way]
        memory = [timed.facts.get("peak_mb"), timed.facts.get("plan_mb")]
        gigabytes = [f"{value / 1000:.2f}" if value is not None else "-" for value in memory]
        rows.append([size, way, _quantity(timed, "seconds", 4), *gigabytes])
    order = {way: number for number, way in enumerate(WAYS)}
    sizes = {name: number for number, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    rows.sort(key=lambda row: (sizes[row[0]], order[row[1]]))
    text = (
        "A learning step of one sequence of 4096 tokens, weights in bf16; `reference` is the straightforward "
        "formulation of `benchmarks/learn_step.py`, `plan` the estimate of the cost model."
    )
    return ["#### Learning", "", text, "", _table(["Size", "Step", "Seconds", "Peak GB", "Plan GB"], rows, 2)]


def _pretrained(results: dict[str, Result]) -> list[str]:
    values = results["grid"].values
    names = ("perplexity", "accuracy", "seconds")
    runs = dict.fromkeys(name.rpartition("/")[0] for name in values)
    rows = [[run, *(_plain(values.get(f"{run}/{name}"), name) for name in names)] for run in runs]
    headers = ["Run", "Perplexity", "Accuracy", "Seconds of pruning or learning"]
    text = "SmolLM2-135M, `benchmarks/gpu/pretrained.yaml`."
    return ["#### Pretrained model", "", text, "", _table(headers, rows)]


def _plain(value: float | None, name: str) -> str:
    decimals = {"perplexity": 3, "accuracy": 4, "seconds": 1}[name]
    return "-" if value is None else f"{value:.{decimals}f}"


RENDERED: dict[str, Callable[[dict[str, Result]], list[str]]] = {
    "tests": _tests,
    "layers": _layers,
    "generation": _generation,
    "learning": _learning,
    "pretrained": _pretrained,
}
