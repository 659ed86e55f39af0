"""Messages of `snakemake` for invalid input: one sentence without a traceback, and the targets that exist.

Snakemake's own messages name a line of the Snakefile, which is not where the mistake is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from logging import LogRecord
from typing import TYPE_CHECKING

from patch.errors import suggest

if TYPE_CHECKING:
    from patch.pipeline.runs.plan import Plan

# Maximum number of names in a message.
NAMED = 20
_INPUT_ERROR = re.compile(r'InputError(?: in file "[^\n]*", line \d+)?:\n(.*?)(?:\n  File "[^\n]*)*', re.DOTALL)
_NO_RULE = re.compile(r"MissingRuleException:\nNo rule to produce (.*?) \(if you use input functions [^\n]*")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known names that are closest to an unknown one, each in a line of its own.

    They are those in the folder of ``name``, if it has any. More than `NAMED` are counted.
    """
    names = list(dict.fromkeys(known))
    names = [one for one in names if one.rpartition("/")[0] == name.rpartition("/")[0]] or names
    ordered = get_close_matches(name, names, len(names) or 1, cutoff=0)
    lines = ordered[:NAMED] + ([f"and {len(ordered) - NAMED} more"] if len(ordered) > NAMED else [])
    return "".join(f"\n  {line}" for line in lines)


def shorten_input_error(record: LogRecord) -> bool:
    """Reduce Snakemake's message of an `InputError` to the sentence of the error; a filter of its logger."""
    if found := _INPUT_ERROR.fullmatch(str(record.msg)):
        record.msg = f"error: {found[1]}"
    return True


class TargetNames:
    """Filter of Snakemake's logger that adds the known targets to the message about an unknown one.

    Args:
        plan: Plan of the experiment.
        rules: Names of all rules, which can be targets too.
    """

    def __init__(self, plan: Plan, rules: Sequence[str]) -> None:
        self._plan, self._rules = plan, rules

    def filter(self, record: LogRecord) -> bool:
        """Replace the message about an unknown target."""
        if found := _NO_RULE.fullmatch(str(record.msg)):
            record.msg = f"error: {self.explain(found[1])}"
        return True

    def explain(self, target: str) -> str:
        """Return the message about an unknown target."""
        root, name = self._plan.layout.root, self._plan.experiment.experiment
        results, of = root.removesuffix(name), f"of experiment `{name}`"
        if "/" not in target:
            return f"no rule `{target}`; {suggest(target, list(self._rules))}"
        if target.startswith(results) and not target.startswith(f"{root}/"):
            other = target.removeprefix(results).partition("/")[0]
            return (
                f"no rule makes {target}, since the configuration is that {of}; give that of `{other}` by --configfile"
            )
        paths = {
            "export": map(self._plan.layout.export, self._plan.exported_runs),
            "records": map(self._plan.layout.record, self._plan.grid.runs),
            "masks": map(self._plan.layout.mask, self._plan.masks.made),
            "tables": (f"{root}/tables/{table}.md" for table in self._plan.tables()),
        }
        known = nearest(target, paths.get(target.removeprefix(f"{root}/").partition("/")[0], ()))
        return f"no rule makes {target} {of}{'; known:' if known else ''}{known}"
