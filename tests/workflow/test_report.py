"""`snakemake --report` of a finished experiment, opened in a browser."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import yaml

from patch.pipeline.reporting.escape import escape_markdown

from ..apt import NotInstalled
from .browser import dump, require_chromium, served

WALK = Path(__file__).with_name("walk.js")
FIGURES = ("curves", "density", "pareto", "speedup")


@pytest.fixture(scope="module")
def chromium(request: pytest.FixtureRequest) -> str:
    """Return the path of Chromium, installed if possible."""
    # Show the output of an installation while it runs.
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        try:
            return require_chromium()
        except NotInstalled as missing:
            pytest.skip(str(missing))


@pytest.fixture(scope="module")
def report(finished: Path, snakemake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the unpacked report of the tiny experiment."""
    folder = tmp_path_factory.mktemp("report")
    run = snakemake(finished, "--report", str(folder / "report.zip"))
    assert run.returncode == 0, run.stdout + run.stderr
    with zipfile.ZipFile(folder / "report.zip") as file:
        file.extractall(folder)
    return folder / "report"


@pytest.fixture(scope="module")
def seen(report: Path, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return the visible content after a click on every link, by `walk.js`."""
    page = (report / "report.html").read_text(encoding="utf-8")
    (report / "walked.html").write_text(f"{page}<script>{WALK.read_text()}</script>", encoding="utf-8")
    with served(report) as address:
        document = dump(chromium, f"{address}/walked.html", tmp_path_factory.mktemp("profile"))
    found = re.search(r'<script type="application/json" id="walk">(.*?)</script>', document, re.DOTALL)
    assert found, document[-2000:]
    walk = json.loads(found[1])
    assert "error" not in walk, walk["error"]
    return walk


def test_the_overview_describes_the_experiment(seen: dict, finished: Path) -> None:
    text = " ".join(seen["overview"].split())
    findings = (finished / "results/tiny/findings.txt").read_text(encoding="utf-8").splitlines()
    assert len(findings) >= 3 and text.startswith(f"PATCH: the experiment tiny Findings: {' '.join(findings)} ±:")
    config = (
        "Local (local folder local-model), Trained (trained by the workflow).",
        "3 steps",
        "sequences of 32 tokens",
        "continuation, word_order",
    )
    for words in (*config, "standard error", "Paper (Δ)", "results/tiny/README.md"):
        assert words in text
    assert "System Message" not in text and "{{" not in text and "{%" not in text


def test_every_category_has_its_results(seen: dict, finished: Path) -> None:
    labels = {name: sorted(result["labels"] for result in results) for name, results in seen["categories"].items()}
    tables = sorted(path.stem for path in (finished / "results/tiny/tables").glob("*.html"))
    assert tables and labels == {
        "Tables": [[name] for name in tables],
        "Figures": sorted([model, figure] for model in ("Trained", "Local") for figure in FIGURES),
        "Plan and cost": [["Plan and cost"]],
        "Environment": [["Environment"]],
    }
    for results in seen["categories"].values():
        assert all(len(result["about"].split()) > 8 and "{{" not in result["about"] for result in results)


def test_every_table_is_shown_with_its_runs(seen: dict, finished: Path) -> None:
    for result in seen["categories"]["Tables"]:
        markdown = (finished / f"results/tiny/tables/{result['labels'][0]}.md").read_text()
        rows = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")][2:]
        expected = [cell.replace("**", "").replace("\\", "").strip() for row in rows for cell in row]
        assert [cell for cell in result["cells"] if cell] == [cell for cell in expected if cell]
        assert not result["overflows"], "a wide table scrolls in itself"


def test_every_figure_is_drawn(seen: dict) -> None:
    for result in seen["categories"]["Figures"]:
        assert result["image"].endswith(f"/{result['labels'][1]}.svg")
        assert result["width"] > 300


def test_the_pages_say_what_it_cost_and_where(seen: dict) -> None:
    (cost,), (environment,) = seen["categories"]["Plan and cost"], seen["categories"]["Environment"]
    assert "2 models, 20 runs, 1 seed" in cost["text"] and {"evaluate", "PATCH (tile)"} <= set(cost["cells"])
    assert "20 records" in environment["text"] and {"torch", "Python", "threads"} <= set(environment["cells"])


def test_nothing_comes_from_elsewhere(report: Path) -> None:
    for page in (report / "data").rglob("*.html"):
        assert "://" not in page.read_text(encoding="utf-8"), page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.https?:", (report / "report.html").read_text("utf-8"))


def test_one_file_holds_all_of_it_too(finished: Path, snakemake, tmp_path: Path) -> None:
    run = snakemake(finished, "--report", str(tmp_path / "report.html"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "data:text/html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_title_is_text_in_the_report(copied: Path, snakemake, tmp_path: Path) -> None:
    (copied / "secret").write_text("the contents of another file")
    title = "</script><script>alert(1)</script> {x} `a`_ $^$ \\input{y}"
    settings = yaml.safe_load((copied / "tiny.yaml").read_text())
    settings["models"]["local"]["title"] = title
    settings["models"]["trained"]["title"] = f".. include:: {copied.name}/secret"
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    for arguments in ([], ["--report", str(tmp_path / "report.html")]):
        run = snakemake(copied, *arguments)
        assert run.returncode == 0, run.stdout + run.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "the contents of another file" not in page and "<script>alert(1)" not in page
    results = json.loads(re.search(r"var results = (\{.*\});", page)[1])
    labels = {
        result["labels"]["model"].replace("\u2060", "") for result in results.values() if "model" in result["labels"]
    }
    assert labels == {title, settings["models"]["trained"]["title"]}
    overview = re.search(r"var workflow_desc = (.*);", page)[1]
    assert "&lt;/script&gt;" in overview and ".. include:: copy/secret" in overview and "system-message" not in overview


def test_the_summary_is_beside_it(finished: Path) -> None:
    root = finished / "results/tiny"
    text = (root / "README.md").read_text(encoding="utf-8")
    findings = (root / "findings.txt").read_text(encoding="utf-8").splitlines()
    assert [text.count(escape_markdown(line)) for line in findings] == [1] * len(findings)
    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(images) == 2 * len(FIGURES) and all((root / path).is_file() for path in images)
    for table in (root / "tables").glob("*.md"):
        assert table.read_text(encoding="utf-8").rstrip("\n") in text
    assert "All 20 runs have a record." in text and "snakemake --configfile tiny.yaml" in text
