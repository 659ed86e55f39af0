"""Advance checks of pending downloads from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from patch.hub.errors import hub_answer, token_problem, unreachable

NOUNS = {"model": "model", "dataset": "data set", "mask": "mask"}
TRUE = ("1", "ON", "YES", "TRUE")
SECONDS = 10
# A long-lived public data set, to test that the hub answers.
PROBE = "Salesforce/wikitext"


@dataclass(frozen=True)
class Wanted:
    """Repository to fetch."""

    key: str  # in the configuration, such as `models.llama.source`
    kind: Literal["model", "dataset", "mask"]  # the hub stores masks as models
    repo: str  # `owner/name`
    revision: str | None = None  # commit; None for the newest


def hub_problems(wanted: Sequence[Wanted], tasks: bool, environment: Mapping[str, str], api: Any = None) -> list[str]:
    """Return one line for each reason why a fetch would fail; empty if all can succeed.

    Args:
        wanted: repositories to fetch.
        tasks: true if the data sets of lm-eval's tasks are fetched too; only lm-eval knows them, so the check for
            them only tests that the hub answers.
        environment: environment variables of the process.
        api: a `huggingface_hub.HfApi` or a substitute.
    """
    if not wanted and not tasks:
        return []
    if offline := _offline(wanted, tasks, environment):
        return offline
    if malformed := token_problem():
        return [malformed]
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api = api or HfApi()
    problems = []
    for one in wanted or [Wanted("evaluation.tasks", "dataset", PROBE)]:
        try:
            _check_access(one, api)
        except Exception as error:  # noqa: BLE001 - network libraries raise many types
            # Their messages are never passed on, since they may contain a malformed token.
            page = f"https://huggingface.co/{'datasets/' if one.kind == 'dataset' else ''}{one.repo}"
            answer = hub_answer(error, page)
            if answer is None:  # the others would time out too
                return [*problems, unreachable(error)]
            key = "revision" if isinstance(error, RevisionNotFoundError) else "repo"
            problems.append(f"`{one.key}.{key}` is {getattr(one, key)!r}: {answer}")
    return problems


def _check_access(one: Wanted, api: Any) -> None:
    repo_type = "dataset" if one.kind == "dataset" else "model"
    ask = api.dataset_info if repo_type == "dataset" else api.model_info
    # The metadata of a gated repository is public; only its files need access.
    if ask(one.repo, revision=one.revision, timeout=SECONDS).gated:
        api.auth_check(one.repo, repo_type=repo_type)


def _offline(wanted: Sequence[Wanted], tasks: bool, environment: Mapping[str, str]) -> list[str]:
    names = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
    if tasks or any(one.kind == "dataset" for one in wanted):
        names.append("HF_DATASETS_OFFLINE")
    return [
        f"{name} is {environment[name]!r}, but {fetches(wanted, tasks)} must still be fetched; unset it"
        for name in names
        if environment.get(name, "").upper() in TRUE
    ]


def fetches(wanted: Sequence[Wanted], tasks: bool) -> str:
    """Return a summary such as `5 models, 3 data sets, the tasks' data`."""
    counts = {kind: sum(one.kind == kind for one in wanted) for kind in NOUNS}
    parts = [f"{count} {NOUNS[kind]}{'s' if count > 1 else ''}" for kind, count in counts.items() if count]
    return ", ".join([*parts, *(["the tasks' data"] if tasks else [])])
