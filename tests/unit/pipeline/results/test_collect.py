import math

import pandas as pd
import pytest

from patch.errors import InputError
from patch.pipeline.results.collect import COLUMNS, DENSITY, collect, mean_chance, read_results
from patch.pipeline.results.record import Record
from patch.pipeline.runs.run import ModelInfo

QWEN = ModelInfo(name="qwen", title="Qwen mini", variant="joint", published="Qwen/Qwen2.5-0.5B", comparable=False)
LLAMA = ModelInfo(name="llama", title="Llama", variant="tile", published="meta-llama/Llama-2-7b-hf")


def test_columns_units_and_costs(raw, published):
    frame = collect([Record.model_validate(raw())], [QWEN], published)
    assert list(frame.columns) == COLUMNS
    assert list(frame["metric"]) == ["accuracy", "perplexity", "next_verse", "order"]
    rows = frame.set_index("metric")
    assert rows.loc["accuracy", "value"] == pytest.approx(55)
    assert rows.loc["accuracy", "stderr"] == pytest.approx(1)
    assert rows.loc["perplexity", "value"] == 28.5
    assert rows.loc["perplexity", "published"] == 72.48
    assert rows.loc["accuracy", "published"] == 32.97
    assert math.isnan(rows.loc["next_verse", "published"])
    assert math.isnan(rows.loc["order", "stderr"])
    assert set(frame["seconds"]) == {14.5}
    assert set(frame["peak_memory_mb"]) == {900.0}
    assert set(frame["sparsity"]) == {0.5}
    assert frame["tile"].isna().all()


@pytest.mark.parametrize(("kept", "result"), [("last", 3.5), ("best", 3.25)])
def test_held_out_losses_are_those_of_the_returned_mask(kept, result, raw, published, tmp_path):
    held_out = {"initial": 4.0, "final": 3.5, "best": 3.25, "best_step": 2, "kept": kept, "sequences": 3}
    learned = Record.model_validate(raw(method="maskllm") | {"held_out": held_out})
    collect([learned, Record.model_validate(raw())], [QWEN], published).to_csv(tmp_path / "results.csv", index=False)
    frame = read_results(tmp_path / "results.csv").set_index("method")
    assert set(frame.loc["maskllm", "held_out_loss"]) == {result}
    assert set(frame.loc["maskllm", "initial_held_out_loss"]) == {4.0}
    assert frame.loc["wanda", ["held_out_loss", "initial_held_out_loss"]].isna().all(axis=None)


def test_rows_stand_in_the_papers_order(raw, published):
    hybrid = {"pattern": "hybrid", "tile": 16, "method": "patch-joint"}
    runs = [
        {"method": "zeta"},
        {"method": "alpha"},
        hybrid | {"sparsity": 0.25},
        {"method": "maskllm"},
        hybrid | {"sparsity": 0.45, "seed": 1},
        hybrid | {"sparsity": 0.45},
        {"method": "magnitude", "model": "llama"},
        {"method": "magnitude"},
        {"method": "dense", "pattern": "dense", "sparsity": 0.0},
    ]
    frame = collect([Record.model_validate(raw(**run)) for run in runs], [LLAMA, QWEN], published)
    found = frame[frame["metric"] == "accuracy"]
    assert list(zip(found["model"], found["method"], found["sparsity"], found["seed"], strict=True)) == [
        ("llama", "magnitude", 0.5, 0),
        ("qwen", "dense", 0.0, 0),
        ("qwen", "magnitude", 0.5, 0),
        ("qwen", "maskllm", 0.5, 0),
        ("qwen", "alpha", 0.5, 0),
        ("qwen", "zeta", 0.5, 0),
        ("qwen", "patch-joint", 0.45, 0),
        ("qwen", "patch-joint", 0.45, 1),
        ("qwen", "patch-joint", 0.25, 0),
    ]


def test_the_order_of_records_does_not_matter(raw, published):
    records = [Record.model_validate(raw(seed=seed, method=m)) for seed in (0, 1) for m in ("wanda", "sparsegpt")]
    pd.testing.assert_frame_equal(collect(records, [QWEN], published), collect(records[::-1], [QWEN], published))


def test_the_papers_tile_matters_only_where_models_are_comparable(raw, published):
    run = {"method": "patch-tile", "pattern": "hybrid", "sparsity": 0.45, "tile": 16, "model": "llama"}
    record = Record.model_validate(raw(**run))
    other = ModelInfo(
        name="llama", title="Llama mini", variant="tile", published=LLAMA.published, comparable=False, tile=16
    )
    assert collect([record], [LLAMA], published)["published"].isna().all()
    assert collect([record], [other], published)["published"].notna().sum() == 2
    assert collect([record], [other.model_copy(update={"tile": 32})], published)["published"].isna().all()


def test_density_of_hybrid_runs_is_a_mean_over_layers(raw, published):
    record = raw(method="patch-joint", pattern="hybrid", sparsity=0.25, tile=128)
    record["density"] = {"a.0.q_proj": 0.5, "a.1.q_proj": 0.75, "a.0.down_proj": 1.0}
    frame = collect([Record.model_validate(record)], [QWEN], published)
    shares = frame[frame["metric"].str.startswith(DENSITY)].set_index("metric")["value"].to_dict()
    assert shares == {"density/q_proj": 62.5, "density/down_proj": 100.0}
    masked = collect([Record.model_validate(raw())], [QWEN], published)
    assert not masked["metric"].str.startswith(DENSITY).any()


def test_an_imported_mask_stands_beside_the_method_that_made_it(raw, published):
    run = {"method": "patch-joint", "pattern": "hybrid", "sparsity": 0.45, "tile": 128, "variant": "import=theirs"}
    frame = collect([Record.model_validate(raw(**run))], [QWEN], published).set_index("metric")
    assert frame.loc["perplexity", "published"] == 14.57
    assert set(frame["variant"]) == {"import=theirs"}


def test_no_records_give_an_empty_frame(published):
    assert list(collect([], [QWEN], published).columns) == COLUMNS


def test_refuses_what_cannot_be_right(raw, published):
    record = Record.model_validate(raw())
    with pytest.raises(InputError, match="of model `qwen`; known: llama"):
        collect([record], [LLAMA], published)
    with pytest.raises(InputError, match="2 records of run"):
        collect([record, record], [QWEN], published)
    with pytest.raises(InputError, match=r"`models.qwen.published` is 'Qwen/Qwen2.5'; did you mean"):
        collect([record], [ModelInfo(name="qwen", title="Qwen", variant="joint", published="Qwen/Qwen2.5")], published)


def test_mean_chance_needs_every_task(raw):
    record = raw()
    assert mean_chance([Record.model_validate(record)], "qwen") == pytest.approx(37.5)
    assert mean_chance([Record.model_validate(record)], "other") is None
    record["metrics"]["order"]["chance"] = None
    assert mean_chance([Record.model_validate(record)], "qwen") is None


@pytest.fixture
def written(raw, published, tmp_path):
    """Return the path of a `results.csv` of a few runs, and the frame that it was made from."""
    hybrid = {"method": "patch-joint", "pattern": "hybrid", "tile": 16, "sparsity": 0.45}
    runs = [{}, {"seed": 1}, hybrid, hybrid | {"quantization": "absmax"}, hybrid | {"variant": "tile_prior=none"}]
    records = []
    for run in runs:
        record = raw(**run)
        record["density"] = {"a.0.q_proj": 0.5, "a.0.v_proj": 0.5}
        record["metrics"]["accuracy"]["value"] = 0.5
        records.append(Record.model_validate(record))
    frame = collect(records, [QWEN], published)
    frame.to_csv(tmp_path / "results.csv", index=False)
    return tmp_path / "results.csv", frame


def test_what_was_written_is_read(written):
    path, frame = written
    pd.testing.assert_frame_equal(read_results(path), frame)


def test_names_that_look_like_numbers_stay_names(raw, published, tmp_path):
    record, model = Record.model_validate(raw(model="1e3")), QWEN.model_copy(update={"name": "1e3"})
    frame = collect([record], [model], published)
    frame.to_csv(tmp_path / "results.csv", index=False)
    assert set(read_results(tmp_path / "results.csv")["model"]) == {"1e3"}


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (",50.0,", ",nan,", "line 2: `value`"),
        (",50.0,", ",,", "line 2: `value`"),
        (",50.0,", ",-55.0,", "line 2: `value`"),
        (",50.0,", ",155.0,", "`value` of accuracy is 155.0; expected 0 to 100"),
        (",28.5", ",0.5", "`value` of perplexity is 0.5; expected 1 or more"),
        (",14.5,", ",-14.5,", "line 2: `seconds`"),
        (",14.5,", ",inf,", "line 2: `seconds`"),
        (",14.5,", ",", "line 2 has 19 values; expected 20"),
        ("2:4", "2:0", "pattern '2:0' is not N:M"),
        (",0.5,", ",1.5,", "line 2: `sparsity`"),
        (",0,,,,demo,accuracy", ",-1,,,,demo,accuracy", "line 2: `seed`"),
        (",0,,,,demo,accuracy", ",zero,,,,demo,accuracy", "line 2: `seed`"),
        (
            ",0,,,,demo,accuracy",
            ",1,,,,demo,accuracy",
            "`accuracy` of qwen/wanda_2of4_0.5_s1 occurs twice; expected once",
        ),
        ("accuracy", "perplexity", "`perplexity` of qwen/wanda_2of4_0.5_s0 occurs twice; expected once"),
    ],
)
def test_what_is_damaged_is_refused(written, old, new, fault):
    path, _ = written
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=rf"results\.csv: .*{fault}"):
        read_results(path)


def test_a_file_that_is_cut_off_or_lacks_a_line_is_refused(written):
    path, frame = written
    text = path.read_text()
    for size in range(0, len(text) - 1, 7):
        path.write_text(text[:size])
        if size and text[size - 1] == "\n":
            continue
        with pytest.raises(InputError, match="truncated"):
            read_results(path)
    header, *lines = text.splitlines(keepends=True)
    for number in range(len(frame)):
        path.write_text("".join([header, *lines[:number], *lines[number + 1 :]]))
        with pytest.raises(InputError, match="`.*` of qwen/.* is missing"):
            read_results(path)
