import re

from patch.pipeline.reporting.overview import cost_page, environment_page
from patch.pipeline.resources.forecast import Forecast
from patch.pipeline.results.record import measured_costs

LINE = {"jobs": 2, "minutes": 3, "device_hours": 0.1, "memory_mb": 900}


def numbers(**changes):
    stages = [{"stage": stage, "of": "", **LINE} for stage in ("prune", "evaluate")]
    recorded = [{"stage": "prune", "of": "wanda", **LINE}, {"stage": "learn", "of": "maskllm", **LINE}]
    return Forecast.model_validate({"device": "cpu", "stages": stages, "recorded": recorded} | changes)


def lines(page):
    """Return the rows of a page's tables as lists of texts."""
    rows = [row.split("</tr>")[0] for row in page.split("<tr>")[1:]]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_measured_stands_beside_planned(one_seed):
    page = cost_page("demo", one_seed.records, numbers())
    cost = measured_costs(one_seed.records)["prune", "wanda"]
    found = {tuple(line[:2]): line[2:] for line in lines(page)}
    assert found["prune", "Wanda"] == [f"{cost.jobs}", f"{cost.seconds:,.1f}", "512 MB", "2", "180", "900 MB"]
    assert found["learn", "MaskLLM"] == ["–", "–", "–", "2", "180", "900 MB"]
    assert found["evaluate", "Dense"][3:] == ["–", "–", "–"]
    assert found["all", "4"] == ["0.2", "900 MB"]
    models = len(one_seed.models)
    assert f"{models} models, {len(one_seed.records)} runs, 1 seed; 4 jobs." in page
    assert "Core-hours" in page and "GPU-hours" in cost_page("demo", one_seed.records, numbers(device="cuda"))


def test_the_environment_is_said_once_or_to_differ(one_seed):
    page = environment_page("demo", one_seed.records)
    count = len(one_seed.records)
    assert f"All {count} records come from one environment." in page
    assert ["torch", "2.5", f"{count}"] in lines(page)
    first, *others = one_seed.records
    environment = first.environment.model_copy(update={"packages": {"torch": "2.6", "numpy": "2"}, "device": "<gpu>"})
    page = environment_page("demo", [first.model_copy(update={"environment": environment}), *others])
    assert "come from different environments, which differ in: device, torch, numpy." in page
    assert ["torch", "2.6", "1"] in lines(page) and ["torch", "2.5", f"{count - 1}"] in lines(page)
    assert ["numpy", "–", f"{count - 1}"] in lines(page)
    assert "<gpu>" not in page and "&lt;gpu&gt;" in page
