"""Index of lm-eval's task files, read as text: importing lm-eval and building its own index take ten seconds."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from patch.errors import InputError, suggest
from patch.evaluation.tasks import task_paths
from patch.files.plain import read_plain

# A top-level key of a task file with its value: in the line, in the lines of a list below it, or both.
_KEY = re.compile(rb"""^["']?(class|group|include|tag|task)["']?[ \t]*:(.*(?:\n[ \t]*-[ \t]+.*)*)""", re.MULTILINE)
_COMMENT = re.compile(rb"[ \t]#.*")
_LIST_MARKS = re.compile(rb"\n[ \t]*-[ \t]+|[\[\],\n]")
_IGNORED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}
# Metrics that a record can have, and those of a task without `metric_list`.
MEASURED = ("acc", "exact_match")
_DEFAULT_METRICS = {
    "multiple_choice": ["acc", "acc_norm"],
    "loglikelihood": ["perplexity", "acc"],
    "generate_until": ["exact_match"],
}
EXAMPLE_SPLITS = ("fewshot_split", "training_split", "validation_split")
CLOSE = 3  # names in a hint
MOST_INCLUDES = 20  # files that include each other


class TaskIndex:
    """Task files of a folder. Of two files that declare one name, the first counts, as in lm-eval.

    Attributes:
        paths: file of each task and each group.
    """

    def __init__(self, root: Path) -> None:
        self.paths: dict[str, str] = {}
        self._read = cache(_keys)
        for file in sorted(_yaml_files(str(root))):
            keys = self._read(file)
            names = _words(keys.get(b"task" if b"class" in keys else b"group", b"")) or _words(keys.get(b"task", b""))
            if len(names) == 1:
                self.paths.setdefault(names[0], file)

    @cached_property
    def tags(self) -> dict[str, set[str]]:
        """Tasks of each tag."""
        tags: dict[str, set[str]] = {}
        for name, file in self.paths.items():
            keys = self._read(file)
            if b"group" not in keys or b"class" in keys:
                for tag in self._inherited(file, b"tag"):
                    tags.setdefault(tag, set()).add(name)
        return tags

    def _inherited(self, file: str, key: bytes, depth: int = 0) -> list[str]:
        """Return the value of a key of a file, or else of the last file that it includes and that has the key."""
        keys = self._read(file)
        if key in keys or depth > MOST_INCLUDES:
            return _words(keys.get(key, b""))
        included = (os.path.join(os.path.dirname(file), name) for name in reversed(_words(keys.get(b"include", b""))))
        return next(filter(None, (self._inherited(path, key, depth + 1) for path in included)), [])


@cache
def built_in_tasks() -> TaskIndex:
    """Return the index of the tasks in the installed lm-eval."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("package `lm_eval` is missing; install the project's dependencies: pip install -e .")
    return TaskIndex(Path(next(iter(spec.submodule_search_locations))) / "tasks")


def _yaml_files(root: str) -> list[str]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _IGNORED_FOLDERS]
        found += [f"{folder}/{name}" for name in names if name.endswith(".yaml")]
    return found


def _keys(file: str) -> dict[bytes, bytes]:
    """Return the text of the keys that name tasks; empty for a file that does not exist."""
    try:
        with open(file, "rb") as stream:
            return dict(_KEY.findall(stream.read()))
    except OSError:
        return {}


def _words(text: bytes) -> list[str]:
    """Return the value of a key, a word or a list of words."""
    words = [word.strip(b" \t\r\"'") for word in _LIST_MARKS.split(_COMMENT.sub(b"", text))]
    return [word.decode(errors="replace") for word in words if word]


def check_task_names(names: Sequence[str], include_path: Path | None) -> None:
    """Check that each name is a task or group of lm-eval or of ``include_path``.

    Raises:
        InputError: a name is a tag, or does not exist; the message has the closest names.
    """
    own = task_paths(include_path) if include_path else {}
    for name in names:
        if name in own or name in built_in_tasks().paths:
            continue
        where = f"`evaluation.tasks` names {name!r}"
        if name in built_in_tasks().tags:
            members = ", ".join(sorted(built_in_tasks().tags[name]))
            raise InputError(f"{where}, a tag of lm-eval without a score; name its tasks: {members}")
        hint = suggest(name, list(own)) if own else _closest(name)
        raise InputError(f"{where}, which is not a task of lm-eval; {hint}")


def _closest(name: str) -> str:
    close = difflib.get_close_matches(name, built_in_tasks().paths, n=CLOSE)
    hint = f"did you mean {' or '.join(f'`{each}`' for each in close)}? " if close else ""
    return f"{hint}`lm_eval ls tasks` lists all"


def check_tasks(names: Sequence[str], include_path: Path | None, fewshot: Mapping[str, int], acc_norm: bool) -> None:
    """Check the names of tasks, and what their files declare, without an import of lm-eval.

    Tasks with Python classes, and the members of groups, are checked when their data is read.

    Args:
        names: tasks and groups.
        include_path: folder of further task files.
        fewshot: number of few-shot examples of the tasks that have some.
        acc_norm: True if `acc_norm` is measured.

    Raises:
        InputError: a task does not exist, cannot be measured, or has no few-shot examples.
    """
    check_task_names(names, include_path)
    own = task_paths(include_path) if include_path else {}
    declared = {name: _declaration(Path(own.get(name) or built_in_tasks().paths[name])) for name in names}
    metrics = {name: _metrics(found) for name, found in declared.items()}
    for name in names:
        if metrics[name] is not None and not set(MEASURED) & set(metrics[name]):
            raise InputError(not_measured(name))
        if problem := sampling(declared[name].get("generation_kwargs")):
            raise InputError(not_greedy(name, problem))
        if fewshot.get(name) and not _has_examples(declared[name]):
            raise InputError(no_examples(name, fewshot[name]))
    if acc_norm and all(found is not None and "acc_norm" not in found for found in metrics.values()):
        listed = ", ".join(names) or "an empty list"
        raise InputError(f"`evaluation.acc_norm` is true, but no task has it (`evaluation.tasks`: {listed}); remove it")


def not_measured(name: str) -> str:
    """Return the message for a task without a measured metric."""
    return f"`evaluation.tasks` names {name!r}, which is measured by neither {' nor '.join(f'`{m}`' for m in MEASURED)}"


def not_greedy(name: str, problem: str) -> str:
    """Return the message for a task that samples its answers."""
    return (
        f"`evaluation.tasks` names {name!r}, which samples its answers ({problem}); only greedy decoding is supported, "
        "so that a rerun gives the same record"
    )


def no_examples(name: str, count: int) -> str:
    """Return the message for a task whose data has only the questions themselves."""
    return (
        f"`evaluation.num_fewshot` is {count} for {name!r}, whose data has no examples but its questions "
        f"(none of {', '.join(f'`{split}`' for split in EXAMPLE_SPLITS)}); give counts by task, without {name!r}"
    )


def _declaration(file: Path, depth: int = 0) -> dict[str, Any]:
    """Return the keys of a task file and of the files that it includes; functions are None."""
    try:
        own = read_plain(file, "task file", drop_tags=True)
    except InputError:
        # lm-eval's reader accepts more than this one, such as a key that occurs twice.
        return {"class": None}
    if not isinstance(own, dict) or depth > MOST_INCLUDES:
        return {"class": None}
    included = own.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _declaration(file.parent / str(name), depth + 1)
    return merged | own


def _metrics(declared: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the metrics of a task or group, or None if the file does not determine them."""
    if "class" in declared:
        return None
    entries = declared.get("aggregate_metric_list" if "group" in declared else "metric_list")
    if entries is None:
        return [] if "group" in declared else _DEFAULT_METRICS.get(declared.get("output_type", "generate_until"), [])
    entries = entries if isinstance(entries, list) else [entries]
    return [str(entry.get("metric")) for entry in entries if isinstance(entry, dict)]


def _has_examples(declared: Mapping[str, Any]) -> bool:
    """Return whether a task file declares few-shot examples; True if it does not determine them."""
    config = declared.get("fewshot_config")
    given = isinstance(config, dict) and ("samples" in config or config.get("split") is not None)
    undetermined = "class" in declared or "group" in declared
    return undetermined or given or any(declared.get(split) is not None for split in EXAMPLE_SPLITS)


def sampling(generation: Any) -> str:
    """Return the generation settings that sample answers, as text; empty for greedy decoding."""
    settings = generation if isinstance(generation, dict) else {}
    return ", ".join(
        f"`{key}: {settings[key]}`"
        for key in ("do_sample", "temperature")
        if settings.get(key) and settings.get("do_sample") is not False
    )
