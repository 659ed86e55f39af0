"""Tests of the forecast that is printed beside the measured cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from patch.errors import InputError
from patch.pipeline.resources.forecast import forecast, read_forecast, write_forecast

from ..conftest import Project


def test_the_forecast_is_of_the_plan(project: Project) -> None:
    graph = project.graph()
    write_forecast("work/tiny/forecast.json", graph)
    found = read_forecast("work/tiny/forecast.json")
    assert found == forecast(graph)
    assert sum(line.jobs for line in found.stages) == len(graph.jobs)
    evaluations = [line for line in found.recorded if line.stage == "evaluate"]
    assert sum(line.jobs for line in evaluations) == len(graph.plan.grid.runs)
    # The masks that only rank tiles have no record.
    assert sum(line.jobs for line in found.recorded if line.of == "sparsegpt" and line.stage == "prune") == 2


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_no_forecast(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "forecast.json").write_text(content)
    with pytest.raises(InputError, match="forecast.json: not a forecast"):
        read_forecast(tmp_path / "forecast.json")
