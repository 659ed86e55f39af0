"""Tests of requests to the hub and of the messages made from its answers, without a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from patch.hub.access import PROBE, Wanted, hub_problems

MODEL = Wanted("models.one.source", "model", "owner/model", "1234567")
DATA = Wanted("corpora.text.source", "dataset", "owner/text", "89abcde")
SECRET = "hf_verysecret"


def failure(kind: type, status: int = 404) -> Exception:
    response = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind(f"Bearer {SECRET}", response=response)


class Hub:
    """Substitute for HfApi; ``raises`` maps a repository, or `auth`, to the exception of a request for it."""

    def __init__(self, gated: tuple[str, ...] = (), **raises: Exception) -> None:
        self.gated, self.raises, self.asked = gated, raises, []

    def _ask(self, kind: str, repo: str, **options: Any) -> SimpleNamespace:
        self.asked.append((kind, repo, options))
        name = repo.partition("/")[2]
        if name in self.raises:
            raise self.raises[name]
        return SimpleNamespace(gated="manual" if repo in self.gated else False)

    def model_info(self, repo: str, **options: Any) -> SimpleNamespace:
        return self._ask("model", repo, **options)

    def dataset_info(self, repo: str, **options: Any) -> SimpleNamespace:
        return self._ask("dataset", repo, **options)

    def auth_check(self, repo: str, repo_type: str) -> None:
        self.asked.append(("auth", repo, {"repo_type": repo_type}))
        if "auth" in self.raises:
            raise self.raises["auth"]


def problems(hub: Hub | None, *wanted: Wanted, tasks: bool = False, **environment: str) -> list[str]:
    lines = hub_problems(wanted, tasks, environment, hub)
    assert not any(SECRET in line or "\n" in line for line in lines)
    return lines


def test_no_problems() -> None:
    hub = Hub()
    assert problems(hub, MODEL, DATA, tasks=True) == []
    assert hub.asked == [
        ("model", "owner/model", {"revision": "1234567", "timeout": 10}),
        ("dataset", "owner/text", {"revision": "89abcde", "timeout": 10}),
    ]


def test_the_hub_is_not_queried_without_downloads() -> None:
    assert problems(None, HF_HUB_OFFLINE="1") == []


def test_gated_with_and_without_access() -> None:
    assert problems(Hub(gated=("owner/model",)), MODEL) == []
    hub = Hub(gated=("owner/model",), auth=failure(errors.GatedRepoError, 403))
    (line,) = problems(hub, MODEL)
    assert hub.asked[-1] == ("auth", "owner/model", {"repo_type": "model"})
    for part in ("`models.one.source.repo` is 'owner/model'", "gated", "https://huggingface.co/owner/model", "licence"):
        assert part in line
    assert "`hf auth login`" in line and "HF_TOKEN" in line
    (line,) = problems(Hub(text=failure(errors.GatedRepoError, 403)), DATA)
    assert "https://huggingface.co/datasets/owner/text" in line


def test_no_such_repository() -> None:
    (line,) = problems(Hub(model=failure(errors.RepositoryNotFoundError)), MODEL)
    assert line.startswith("`models.one.source.repo` is 'owner/model': no such repository")
    (line,) = problems(Hub(text=failure(errors.RepositoryNotFoundError)), DATA)
    assert "no such repository" in line
    (line,) = problems(Hub(model=errors.HFValidationError(SECRET)), MODEL)
    assert "`owner/name`" in line


def test_no_such_commit() -> None:
    (line,) = problems(Hub(model=failure(errors.RevisionNotFoundError)), MODEL)
    assert line.startswith("`models.one.source.revision` is '1234567': the hub has no such commit")


def test_every_problem_is_listed() -> None:
    lines = problems(
        Hub(model=failure(errors.RepositoryNotFoundError), text=failure(errors.RevisionNotFoundError)), MODEL, DATA
    )
    assert [line.split("`")[1] for line in lines] == ["models.one.source.repo", "corpora.text.source.revision"]


@pytest.mark.parametrize(("status", "hint"), [(401, "log in again"), (503, "try again later")])
def test_other_answers(status: int, hint: str) -> None:
    (line,) = problems(Hub(model=failure(errors.HfHubHTTPError, status)), MODEL)
    assert f"status {status}" in line and hint in line


def test_an_unreachable_hub_is_reported_once() -> None:
    hub = Hub(model=ConnectionError(SECRET), text=ConnectionError(SECRET))
    (line,) = problems(hub, MODEL, DATA)
    assert "cannot be reached (ConnectionError)" in line and len(hub.asked) == 1


def test_unreachable_with_the_real_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    (line,) = hub_problems([MODEL], False, {}, HfApi(endpoint="http://127.0.0.1:9"))
    assert "cannot be reached" in line


def test_tasks_alone_only_test_that_the_hub_answers() -> None:
    hub = Hub()
    assert problems(hub, tasks=True) == []
    assert [asked[:2] for asked in hub.asked] == [("dataset", PROBE)]
    (line,) = problems(Hub(wikitext=ConnectionError()), tasks=True)
    assert "cannot be reached" in line


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_variables(name: str) -> None:
    hub = Hub()
    (line,) = problems(hub, MODEL, DATA, tasks=True, **{name: "1"})
    assert line == f"{name} is '1', but 1 model, 1 data set, the tasks' data must still be fetched; unset it"
    assert hub.asked == []
    assert problems(hub, MODEL, DATA, **{name: "0"}) == []


def test_offline_data_sets_do_not_affect_models() -> None:
    assert problems(Hub(), MODEL, HF_DATASETS_OFFLINE="1") == []
