"""explore.html of a finished experiment, opened in a browser."""

import csv
import json
import re
from pathlib import Path

import pytest

from patch.pipeline.reporting.pareto import pareto_front

from .browser import dump

WALK = Path(__file__).with_name("explore_walk.js")
SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def walked(page: str, chromium: str, folder: Path, size: str = "1400,1000") -> dict:
    """Return what `explore_walk.js` saw on a page that is opened as a file, without a server."""
    (folder / "explore.html").write_text(page.replace("<head>", f"<head><script>{WALK.read_text()}</script>", 1))
    document = dump(chromium, (folder / "explore.html").as_uri(), folder / "profile", size)
    found = re.search(r'<script type="application/json" id="walk">(.*?)</script>', document, re.DOTALL)
    assert found, document[-2000:]
    return json.loads(found[1])


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    return (finished / "results/tiny/explore.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seen(page: str, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return walked(page, chromium, tmp_path_factory.mktemp("explore"))


def points(view: dict) -> list[dict[str, str]]:
    return [dict(part.split(": ", 1) for part in label.split("; ")) for label in view["quality"]["points"]]


def test_nothing_fails_and_nothing_is_loaded(seen: dict) -> None:
    assert seen["errors"] == [] and seen["loaded"] == [] and not seen["overflows"]


def test_the_choices_are_those_of_the_experiment(seen: dict) -> None:
    assert seen["choices"]["Models"] == ["Local", "Trained"]
    assert set(seen["choices"]["Settings"]) == {"plain", "AbsMax", "AbsMax + SLiM-LoRA", "LoRA", "fine-tuning"}
    # Neither model has a published counterpart.
    assert seen["choices"]["Marks"] == ["Standard errors", "Pareto front"]
    assert {"Magnitude, 2:4", "Wanda, unstructured", "PATCH (joint)", "PATCH (tile)"} <= set(seen["choices"]["Methods"])
    assert seen["metrics"][:2] == ["Mean accuracy (%)", "Perplexity"] and "cloze (%)" in seen["metrics"]


def test_every_plain_run_is_a_point_with_its_numbers(seen: dict, finished: Path) -> None:
    with (finished / "results/tiny/results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if not row["quantization"] and not row["finetune"]]
    rows = [row for row in rows if row["method"] != "dense"]
    for view, metric in (("first", "accuracy"), ("metric", "perplexity")):
        values = [row for row in rows if row["metric"] == metric]
        expected = sorted(f"{float(row['value']):.{1 if float(row['value']) >= 100 else 2}f}" for row in values)
        found = sorted(point["Measured"].split(" ± ")[0] for point in points(seen["views"][view]))
        assert [float(value) for value in found] == pytest.approx([float(value) for value in expected], abs=0.11)
        assert {point["Model"] for point in points(seen["views"][view])} == {"Trained", "Local"}
    assert seen["views"]["metric"]["quality"]["axes"] == ["Target sparsity (%)", "Perplexity (log scale)"]


def test_the_front_has_the_points_of_the_figures(seen: dict, page: str) -> None:
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    for view, metric, higher in (("first", "accuracy", True), ("metric", "perplexity", False)):
        fronts = []
        for model in range(2):
            rows = [row for row in data["rows"] if row["model"] == model and row["setting"] == 0]
            rows = [row for row in rows if row["series"] is None or data["series"][row["series"]]["friendly"]]
            shown = [(row["target"], row["values"][metric][0]) for row in rows]
            fronts.append([list(shown[index]) for index in pareto_front(shown, higher)])
        assert seen["views"][view]["quality"]["fronts"] == fronts


def test_a_mark_shows_its_values(seen: dict) -> None:
    point, cell, curve = (dict(seen["tooltips"][name]) for name in ("point", "cell", "curve"))
    assert point["Model"] == "Local" and point["Row"].startswith("magnitude") and "±" in point["Measured"]
    assert set(cell) == {"Projection", "Block", "Density"} and "target 55 %" in cell["Density"]
    assert set(curve) == {"Run", "Step", "Value"} and curve["Step"] == "2"


def test_each_choice_changes_what_is_shown(seen: dict) -> None:
    views = seen["views"]
    first, metric, unmarked = views["first"], views["metric"], views["unmarked"]
    assert first["quality"]["bars"] and first["quality"]["fronts"]
    assert not unmarked["quality"]["bars"] and not unmarked["quality"]["fronts"]
    assert len(unmarked["quality"]["points"]) == len(metric["quality"]["points"])
    removed = views["without_a_method"]
    (gone,) = {p["Method"] for p in points(unmarked)} - {p["Method"] for p in points(removed)}
    assert gone == seen["choices"]["Methods"][-1]
    assert len(removed["density"]["titles"]) == len(first["density"]["titles"]) - 1
    assert len(removed["curves"]["points"]) < len(first["curves"]["points"])
    assert {p["Model"] for p in points(views["without_a_model"])} == {"Trained"}
    assert views["without_a_model"]["curves"]["titles"] == ["Trained"]
    settings = {p.get("Setting") for p in points(views["all_settings"])}
    assert settings == {None, "AbsMax", "LoRA"}
    nothing = views["nothing"]
    assert all(not view["titles"] and "Nothing is chosen" in view["text"] for view in nothing.values())


def test_names_and_published_numbers_on_a_narrow_screen(page: str, chromium: str, tmp_path: Path) -> None:
    mark = 'value="front" checked>'
    page = page.replace(mark, f'{mark}<input type="checkbox" name="mark" value="published" checked>')
    head, body = page.split('id="data">', 1)
    text, tail = body.split("</script>", 1)
    data = json.loads(text)
    data["models"][0] |= {"title": SCRIPT, "published": SCRIPT}
    data["models"][1]["title"] = data["metrics"][0]["title"] = SCRIPT
    for row in data["rows"]:
        row["values"]["accuracy"][2] = 43.21
    hostile = json.dumps(data).replace("<", "\\u003c")
    seen = walked(f'{head}id="data">{hostile}</script>{tail}', chromium, tmp_path, "500,900")
    assert seen["errors"] == [] and not seen["overflows"]
    first, unmarked = (seen["views"][name]["quality"] for name in ("first", "unmarked"))
    assert first["titles"] == [f"{SCRIPT}, measured", f"{SCRIPT}, as published", SCRIPT]
    assert first["axes"] == ["Target sparsity (%)", SCRIPT]
    assert len(first["points"]) == 2 * len(unmarked["points"])
    assert all("Published: 43.21" in point for point in first["points"])
    assert dict(seen["tooltips"]["point"])["Model"] == SCRIPT
