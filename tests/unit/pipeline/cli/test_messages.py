"""Tests of the messages of `snakemake` for invalid input and unknown targets."""

from __future__ import annotations

from logging import ERROR, LogRecord

import pytest
from snakemake.exceptions import MissingRuleException, format_exception_to_string

from patch.errors import InputError
from patch.pipeline.cli.messages import NAMED, TargetNames, shorten_input_error
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.runs.plan import Plan


def record(error: Exception, lines: dict | None = None) -> LogRecord:
    """Return the record of an exception as Snakemake logs it."""
    text = format_exception_to_string(error, lines or {})
    return LogRecord("snakemake", ERROR, __file__, 1, text, (), None)


@pytest.mark.parametrize("text", ["`tile` is 3: too small", "configuration: `a` is 1\n  `b` is 2"])
def test_an_input_error_is_its_sentence_alone(text: str) -> None:
    def deep() -> None:
        raise InputError(text)

    with pytest.raises(InputError) as raised:
        deep()
    found = record(raised.value, {__file__: dict(enumerate(range(1000)))})
    assert found.msg.startswith('InputError in file "') and found.msg.count('\n  File "') == 2
    assert shorten_input_error(found) and found.msg == f"error: {text}"
    other = record(MissingRuleException("a"))
    before = other.msg
    assert shorten_input_error(other) and other.msg == before


@pytest.fixture
def plan(raw_config: dict) -> Plan:
    raw_config["seeds"] = list(range(30))
    return Plan(validate_experiment(raw_config))


@pytest.mark.parametrize("part", ["export", "records", "masks", "tables"])
def test_an_unknown_target_names_those_that_exist(part: str, plan: Plan) -> None:
    run = next(run for run in plan.exported_runs if run.method == "patch-joint" and run.seed == 7)
    layout = plan.layout
    paths = {name: getattr(layout, name.removesuffix("s"))(run) for name in ("export", "records", "masks")}
    right = (paths | {"tables": "results/tiny/tables/joint.md"})[part]
    wrong = right.replace("joint", "jiont")
    found = record(MissingRuleException(wrong))
    assert TargetNames(plan, ["all"]).filter(found)
    first, closest, *others = found.msg.split("\n  ")
    assert first == f"error: no rule makes {wrong} of experiment `tiny`; known:" and closest == right
    assert len(others) == NAMED or part == "tables"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tabels", "no rule `tabels`; did you mean `tables`? known: all, tables"),
        ("results/tiny/exprot/a", "no rule makes results/tiny/exprot/a of experiment `tiny`"),
        ("results/paper/export/a/b", "the configuration is that of experiment `tiny`; give that of `paper`"),
    ],
)
def test_other_unknown_targets(target: str, message: str, plan: Plan) -> None:
    assert message in TargetNames(plan, ["all", "tables"]).explain(target)
