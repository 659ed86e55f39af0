"""Tests of loading, the environment variables and the settings file."""

import json
from pathlib import Path

import pandas
import pytest
import torch
import yaml

from patch.data.corpus_settings import Corpus
from patch.errors import InputError
from patch.reference_api.api_settings import ApiSettings, load_settings
from patch.reference_api.datasets import HUB, find_text, perplexity_sequences
from patch.reference_api.loading import load_causal_lm
from patch.utils import evaluate, get_llm

PAPER = Path(__file__).parents[3] / "config" / "paper.yaml"


def read(name, purpose, settings=None):
    with find_text(name, purpose, settings or load_settings()).documents() as documents:
        return list(documents)


def test_get_llm(model_folder):
    model, wrapper = get_llm(model_folder, dtype=torch.bfloat16, device="cpu")
    assert wrapper.model is model and model.dtype == torch.bfloat16 and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert get_llm(str(model_folder), True, "a-token", "float32")[0].dtype == torch.float32
    assert get_llm(model_folder, hf_token="")[0].dtype == torch.float32


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dtype": "floaty"}, "`dtype` is 'floaty'; use 'auto'"),
        ({"dtype": "int8"}, "`dtype` is 'int8'"),
        ({"device": "gpu"}, "`device` is 'gpu'; use 'cpu'"),
        ({"device": "cuda:99"}, "`device` is 'cuda:99', but torch finds"),
        ({"device_map": "auto"}, "no argument `device_map`; did you mean `device`?"),
        ({"model_name": "no-such-folder", "local_files_only": True}, "model 'no-such-folder' cannot be loaded"),
        ({"model_name": ""}, "`model_name` is ''"),
    ],
)
def test_errors_of_loading_name_the_argument(changes, words, model_folder):
    with pytest.raises(InputError, match=words):
        get_llm(**{"model_name": model_folder} | changes)


def test_the_token_is_never_shown(monkeypatch, model_folder, capsys, caplog):
    def refuse(*_, token, **__):
        raise OSError(f"401 for Bearer {token}")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(InputError, match="Bearer <token>") as caught:
        load_causal_lm("owner/name", False, "hf_secret", "auto", "cpu", {})
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert "hf_secret" not in str(caught.value) + caplog.text + "".join(capsys.readouterr())


def test_the_hub_is_that_of_the_paper():
    corpora = {"c4": "c4", "slimpajama": "slimpajama", "wikitext2": "wikitext"}
    paper = yaml.safe_load(PAPER.read_text())["corpora"]
    for ours, theirs in corpora.items():
        wanted = Corpus.model_validate(paper[theirs]).source
        same = ("repo", "revision", "name", "data_files", "field")
        assert all(getattr(HUB[ours], key) == getattr(wanted, key) for key in same)
        assert wanted.splits.items() <= HUB[ours].splits.items()


def test_ptb_is_read_from_parquet_and_joined_by_spaces(load, monkeypatch, tmp_path):
    sentences = [f"sentence {index} of <unk> words" for index in range(300)]
    file = tmp_path / "ptb" / HUB["ptb"].data_files
    file.parent.mkdir(parents=True)
    pandas.DataFrame({"sentence": sentences}).to_parquet(file)
    monkeypatch.setitem(HUB, "ptb", HUB["ptb"].model_copy(update={"repo": str(tmp_path / "ptb")}))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, tokenizer = load()
    ids = tokenizer(" ".join(sentences)).input_ids
    found = perplexity_sequences(model, tokenizer, "ptb", load_settings())
    assert found.shape == (len(ids) // 64, 64) and found.reshape(-1).tolist() == ids[: found.size]
    (tmp_path / "local.txt").write_text("\n\n".join(sentences))
    monkeypatch.setenv("PATCH_PTB", "local.txt")
    assert (perplexity_sequences(model, tokenizer, "ptb", load_settings()) == found).all()
    assert evaluate(model, None, tokenizer, eval_dataset="ptb", test_lmharness=False)[0] > 1


def test_text_of_the_hub_is_fetched_once(monkeypatch):
    monkeypatch.delenv("PATCH_C4")
    fetched = []

    def fetch(corpus, out):
        fetched.append(corpus.source.repo)
        out.mkdir(parents=True)
        (out / "calibration.jsonl").write_text(json.dumps({"text": "some words"}) + "\n")

    monkeypatch.setattr("patch.reference_api.datasets.fetch_corpus", fetch)
    assert read("c4", "calibration") == read("c4", "calibration") == ["some words"]
    assert fetched == ["allenai/c4"]
    assert find_text("c4", "calibration", ApiSettings()).identity().startswith("allenai/c4@1588ec454efa")


def test_variables_hold_several_paths_and_globs(monkeypatch, tmp_path):
    (tmp_path / "one.txt").write_text("first\n\nsecond")
    (tmp_path / "two.jsonl").write_text('{"text": "third"}\n')
    monkeypatch.setenv("PATCH_C4", f"{tmp_path}/on*.txt:{tmp_path}/two.jsonl")
    assert read("c4", "calibration") == ["first", "second", "third"]
    monkeypatch.setenv("PATCH_C4", "nothing*.txt")
    with pytest.raises(InputError, match=r"environment variable PATCH_C4: .*'nothing\*.txt', which matches no file"):
        read("c4", "calibration")


def test_wikitext_has_two_splits(monkeypatch, tmp_path):
    with pytest.warns(UserWarning, match="on which perplexity is measured; set PATCH_WIKITEXT2_TRAIN"):
        assert read("wikitext2", "calibration") == read("wikitext2", "test")
    (tmp_path / "train.txt").write_text("train")
    monkeypatch.setenv("PATCH_WIKITEXT2_TRAIN", "train.txt")
    assert read("wikitext2", "calibration") == ["train"]


def test_corpora_of_the_settings_file(monkeypatch, configure, tmp_path):
    monkeypatch.delenv("PATCH_C4")
    (tmp_path / "here.txt").write_text("here")
    source = {"kind": "files", "files": {"train": ["here.txt"]}}
    configure({"corpora": {"c4": {"source": source}}})
    assert read("c4", "calibration") == ["here"]
    before = find_text("c4", "calibration", load_settings()).identity()
    (tmp_path / "here.txt").write_text("there")
    assert read("c4", "calibration") == ["there"]
    assert find_text("c4", "calibration", load_settings()).identity() != before
    with pytest.raises(InputError, match="`c4` has no split `test`.*it has: train"):
        read("c4", "test")
    monkeypatch.setenv("PATCH_C4", str(tmp_path / "patch_c4.txt"))
    assert read("c4", "calibration") != ["there"]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"learnings": {}}, "PATCH_API_CONFIG: unknown key `learnings`; did you mean `learning`?"),
        ({"learning": {"stepz": 1}}, "unknown key `stepz`; did you mean `steps`?"),
        ({"learning": {"lr": 1}}, "what `mask_args` calls 'lr'; set it there"),
        ({"learning": {"frozen_mask": "wanda"}}, "unknown key `frozen_mask`"),
        ({"learning": {"recipe": "code"}}, "recipe is 'code'; .*known: paper, public-code"),
        ({"proxsparse": {"hardd": 1}}, "unknown key `hardd`"),
        ({"evaluation": {"task": []}}, "did you mean `task.*`?"),
        (
            {"corpora": {"wikitext": {"source": {"kind": "files", "files": ["a"]}}}},
            "nothing reads .*wikitext.*did you mean `wikitext2`",
        ),
        ({"evaluation": {"task_data": "wikitext"}}, "is 'wikitext'; did you mean `wikitext2`?"),
    ],
)
def test_the_settings_file_is_checked(settings, words, configure):
    configure(settings)
    with pytest.raises(InputError, match=words):
        load_settings()


def test_a_missing_settings_file_is_named(monkeypatch):
    monkeypatch.setenv("PATCH_API_CONFIG", "nowhere.yaml")
    with pytest.raises(InputError, match="nowhere.yaml: no such file"):
        load_settings()


def test_a_value_of_a_learning_run_is_checked(configure, prepare, model_folder):
    from patch.fine_tune_mask import learn_mask

    configure({"learning": {"steps": 0}, "calibration": {"seqlen": 32}})
    with pytest.raises(InputError, match="`learning.steps` is 0"):
        learn_mask(model_folder, *prepare(), {"fine_tuning_sequence_length": 32})


def test_lengths_beyond_the_context_are_refused_and_defaults_fit(configure, load, prepare):
    model, tokenizer = load()
    configure({"evaluation": {"perplexity_seqlen": 129}})
    with pytest.raises(InputError, match="`evaluation.perplexity_seqlen` is 129, longer than .* context of 128"):
        evaluate(model, None, tokenizer, test_lmharness=False)
    configure({"calibration": {"seqlen": 129}})
    with pytest.raises(InputError, match="`calibration.seqlen` is 129, longer than .* context of 128"):
        prepare()
    configure({})
    assert prepare()[0].patch_priors.settings["calibration.seqlen"] == 128
    assert evaluate(model, None, tokenizer, test_lmharness=False)[0] > 1


def test_data_of_tasks_may_be_there_already(load, monkeypatch, tmp_path):
    for task in ("cloze", "word_order"):
        lines = [json.dumps({"query": "In the", "choices": ["beginning", "end"], "gold": 0})] * 3
        (tmp_path / f"{task}.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("PATCH_TASK_DATA", str(tmp_path))
    model, tokenizer = load()
    _, results = evaluate(model, None, tokenizer, evaluate_perplexity=False)
    assert set(results.values()) <= {0.0, 0.5, 1.0}
