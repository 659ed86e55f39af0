"""The index of lm-eval's task files, against lm-eval's own index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from patch.errors import InputError
from patch.evaluation.task_index import TaskIndex, built_in_tasks, check_tasks

PAPER = ["mmlu", "piqa", "arc_easy", "arc_challenge", "winogrande", "openbookqa", "race", "hellaswag"]


# All of lm-eval's folders agree too, but its own index of 14,000 files takes ten seconds.
@pytest.mark.parametrize("folder", ["arc", "mmlu", "gsm8k", "hellaswag", "scrolls", "super_glue", "acpbench", "bbh"])
def test_it_is_the_index_of_lm_eval(folder: str) -> None:
    import lm_eval.tasks
    from lm_eval.tasks._index import Kind
    from lm_eval.tasks._index import TaskIndex as TheirIndex

    root = Path(lm_eval.tasks.__file__).parent / folder
    theirs, ours = TheirIndex.build([root]), TaskIndex(root)
    assert ours.paths == {name: str(one.yaml_path) for name, one in theirs.items() if one.kind != Kind.TAG}
    assert ours.tags == {name: one.tags for name, one in theirs.items() if one.kind == Kind.TAG}
    assert set(ours.paths) <= set(built_in_tasks().paths) and len(ours.paths) > 0


def test_forms_of_a_task_file(tmp_path: Path) -> None:
    files = {
        "a.yaml": 'task: a  # a comment\ntag: [x, "y"]\n',
        "b.yaml": '"task": "b"\n"include": common\n',
        "sub/c.yaml": "include:\n  - ../common\n  - ../other\ntask: c\n",
        "d.yaml": "group: d\ntask:\n  - a\n  - b\ntag: unused\n",
        "e.yaml": "group: many\ntask: e\nclass: !function e.E\n",
        "z.yaml": "task: a\ntag: w\n",
        "nameless.yaml": "dataset_path: x\n",
        "common": "tag:\n- y\n- z\n",
        "other": "output_type: multiple_choice\n",
        "__pycache__/f.yaml": "task: f\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    index = TaskIndex(tmp_path)
    assert {name: Path(path).name for name, path in index.paths.items()} == {n: f"{n}.yaml" for n in "abcde"}
    assert index.tags == {"x": {"a"}, "y": {"a", "b", "c"}, "z": {"b", "c"}}


def test_what_exists_and_can_be_measured() -> None:
    check_tasks([*PAPER, "gsm8k"], None, {"mmlu": 5, "gsm8k": 5, "arc_challenge": 25}, True)
    check_tasks([], None, {}, False)


@pytest.mark.parametrize(
    ("tasks", "fewshot", "acc_norm", "message"),
    [
        (["arc_eazy"], {}, False, "'arc_eazy', which is not a task of lm-eval; did you mean `arc_easy` or "),
        (["qqqqqqqqqqqqqqqqqqqqqqqqq"], {}, False, "which is not a task of lm-eval; `lm_eval ls tasks` lists all"),
        (
            ["ai2_arc"],
            {},
            False,
            "'ai2_arc', a tag of lm-eval without a score; name its tasks: arc_challenge, arc_easy",
        ),
        (["piqa", "wikitext"], {}, False, "'wikitext', which is measured by neither `acc` nor `exact_match`"),
        (["gsm8k_cot_self_consistency"], {}, False, "samples its answers .*do_sample.*temperature.*; only greedy"),
        (["race"], {"race": 5}, False, "`evaluation.num_fewshot` is 5 for 'race', whose data has no examples"),
        (["race", "mmlu"], {}, True, "`evaluation.acc_norm` is true, but no task has it .*race, mmlu.*remove it"),
    ],
)
def test_what_does_not(tasks: list[str], fewshot: dict[str, int], acc_norm: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_tasks(tasks, None, fewshot, acc_norm)


def test_own_tasks_declare_the_same(tmp_path: Path) -> None:
    (tmp_path / "common").write_text("output_type: multiple_choice\ntest_split: test\n")
    (tmp_path / "mine.yaml").write_text("task: mine\ninclude: common\ndoc_to_text: !function mine.text\n")
    check_tasks(["mine"], tmp_path, {}, True)
    with pytest.raises(InputError, match="is 1 for 'mine', whose data has no examples"):
        check_tasks(["mine"], tmp_path, {"mine": 1}, False)
    (tmp_path / "common").write_text("output_type: multiple_choice\nfewshot_config: {samples: [{query: a}]}\n")
    check_tasks(["mine"], tmp_path, {"mine": 1}, False)
    with pytest.raises(InputError, match="'mini', which is not a task of lm-eval; did you mean `mine`. known: mine"):
        check_tasks(["mini"], tmp_path, {}, False)


def test_it_imports_neither_lm_eval_nor_torch() -> None:
    code = (
        "import sys; from patch.evaluation.task_index import check_tasks; check_tasks(['arc_easy'], None, {}, True); "
        "print({'torch', 'transformers', 'datasets', 'lm_eval'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("set()\n", "")
