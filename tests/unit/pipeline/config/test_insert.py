"""Tests of the addition of a model to the text of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from patch.errors import InputError
from patch.pipeline.config.insert import insert_model

MODEL = {"title": "New", "source": {"kind": "local", "path": "new"}}
TEXTS = {
    "first": "models:  # all\n  a: {title: A}\n  b:\n    title: B\n\n# The grid.\ngrid: []\n",
    "last": "grid: []\nmodels:\n    a:\n        title: A\n        # the end of it\n\n\n",
    "no line end": "grid: []\nmodels:\n  a:\n    title: A",
    "no models": "extends: base.yaml\nexperiment: mine\n",
    "aliases": "x: &x {title: A}\nmodels:\n  a: *x\n  b:\n    <<: *x\ntile: 4\n",
    "block text": "models:\n  a:\n    title: |\n      A\n      # B\ntile: 4\n",
    "end mark": "tile: 4\nmodels:\n  ä: {title: Ä}\n...\n",
    "CRLF": "models:\r\n  a: {title: A}\r\ntile: 4\r\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_other_lines_stay(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode())
    before = yaml.safe_load(text)
    try:
        after = insert_model(path, "new", MODEL, {})
    except InputError as error:
        # A comment inside of a text looks like one after the models.
        assert text == TEXTS["block text"] and "add the block by hand" in str(error)
        return
    assert yaml.safe_load(after) == before | {"models": before.get("models", {}) | {"new": MODEL}}
    assert list(yaml.safe_load(after)["models"])[-1] == "new"
    kept = [line for line in after.splitlines() if line in text.splitlines()]
    assert [line for line in kept if line] == [line for line in text.splitlines() if line]
    assert path.read_bytes() == text.encode()


def test_a_new_model_is_the_last_of_its_section(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXTS["first"])
    assert insert_model(path, "new", MODEL, {"tile": 8}) == (
        "models:  # all\n  a: {title: A}\n  b:\n    title: B\n"
        "  new:\n    title: New\n    source:\n      kind: local\n      path: new\n"
        "\n# The grid.\ngrid: []\n\ntile: 8\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {a: {title: A}}\n", "cannot be extended, .* add the block by hand"),
        ("x: &x {a: {title: A}}\nmodels: *x\n", "cannot be extended"),
        ("models:\n", "cannot be extended"),
        ("models:\n  new: {title: A}\n", "has `new`, which is not overwritten"),
        ("tile: 4\n", "has `tile`, which is not overwritten"),
        ("models: [", "mine.yaml"),
    ],
)
def test_what_is_left_alone(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        insert_model(path, "new", MODEL, {"tile": 8})
