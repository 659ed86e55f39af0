"""Tests that YAML which PyYAML accepts silently or never finishes reading is refused with its key, line and file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from patch.errors import InputError
from patch.files.plain import read_yaml
from patch.pipeline.config.load import load_experiment, validate_experiment

LEVELS = range(1, 40)
LISTS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in LEVELS)
MAPPINGS = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in LEVELS)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in LEVELS)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))

FAULTS = {
    "same-key": ("a: 1\nb:\n  steps: 5\n  lr: 1\n  steps: 6\n", "c.yaml, line 5: the key `steps` appears twice"),
    "same-key-flow": ("a: {b: 1, b: 2}\n", "line 1: the key `b` appears twice"),
    "same-key-at-the-top": ("experiment: a\nexperiment: b\n", "line 2: the key `experiment`"),
    "same-key-written-otherwise": ("a: {1: x, 0x1: y}\n", "line 1: the key `1`"),
    "two-merges": ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", "line 4: the key `<<`"),
    "key-that-is-a-list": ("? [a]\n: 1\n", "line 1: .*key"),
    "bomb-of-lists": (LISTS, "more than .* values"),
    "bomb-of-mappings": (MAPPINGS, "more than .* values"),
    "bomb-of-merges": (MERGES, "more than .* values"),
    "many-values": ("a: [" + "x," * 200_000 + "]", "more than .* values"),
    "chain-of-aliases": (CHAIN, "deeper than"),
    "deep": ("[" * 5000, "line 1: .*deeper than"),
    "deep-block": ("".join(" " * i + "a:\n" for i in range(500)), "deeper than"),
    "parent-of-its-own": ("a: &a\n  b: [*a]\n", "line 2: .*inside"),
    "list-in-itself": ("a: &a [1, *a]\n", "line 1: .*inside"),
    "huge-integer": ("a: " + "9" * 5000, "line 1: .*number"),
    "huge-number-to-the-base-of-sixty": ("a: 1" + ":00" * 500 + ".0", "line 1: .*number"),
    "long-number-to-the-base-of-sixty": ("a: 1" + ":00" * 300_000, "line 1: .*number"),
    "date-that-is-none": ("a: 2024-99-99", "line 1: .*date"),
    "text-as-a-number": ("a: !!int ''", "line 1: .*number"),
    "text-as-a-truth": ("a: !!bool maybe", "line 1: "),
    "python": ("a: !!python/object/apply:os.system [ls]", "line 1: .*tag"),
    "python-name": ("a: !!python/name:os.system", "line 1: .*tag"),
    "set": ("a: !!set {x}", "line 1: .*tag"),
    "template": ("__use_yte__: true\na: 1", "__use_yte__"),
    "large-file": ("# " + "x" * 2_000_000, "c.yaml .*bytes"),
    "control-character": ("a: 1\nb: \x07", "c.yaml is not YAML: line 2: character U\\+0007"),
    "open-list": ("a: [0\nb: 1\n", "is not YAML: line 2: expected ',' or '\\]'.*, while .* that begins in line 1"),
    "tab": ("a:\n\tb: 1\n", r"is not YAML: line 2: found character '\\t' that cannot start any token"),
    "two-documents": ("a: 1\n---\nb: 2\n", "line 2: expected a single document"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused_yaml(fault: str, tmp_path: Path) -> None:
    text, message = FAULTS[fault]
    (tmp_path / "c.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(InputError, match=message) as error:
        read_yaml(tmp_path / "c.yaml")
    assert time.monotonic() - started < 10
    assert "c.yaml" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


def test_bytes_that_are_not_text_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(InputError, match="is not YAML: line 2: byte 0xff is not UTF-8"):
        read_yaml(tmp_path / "c.yaml")


def test_merges_and_aliases_stay(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: {z: 2}}\nb: {<<: *a, x: 3}\nc: [*a, *a]\nd: {<<: [*a, {w: 5}]}\n"
    (tmp_path / "c.yaml").write_text(text)
    assert read_yaml(tmp_path / "c.yaml") == yaml.safe_load(text)


def put(*path: Any) -> Callable[[dict], None]:
    *keys, last, value = path

    def change(raw: dict) -> None:
        for key in keys:
            raw = raw[key]
        raw[last] = value

    return change


CIRCLE: list = []
CIRCLE.append(CIRCLE)
BOMB: Any = {"x": 1}
for _ in LEVELS:
    BOMB = {"x": BOMB, "y": BOMB}
TITLE = ("models", "qwen", "title")
VALUES = {
    "huge-float": (put("learning", "common", "lr", 10**400), "`learning.common.lr` is an integer of 1329 bits"),
    "huge-integer": (put("seeds", [10**400]), "`seeds.0` is an integer of 1329 bits"),
    "longer-than-python-prints": (put("tile", 10**5000), "`tile` is an integer of"),
    "infinite": (put("learning", "common", "lr", float("inf")), "`learning.common.lr` is inf"),
    "nan": (put("resources", {"cpu_gflops": float("nan")}), "`resources.cpu_gflops` is nan"),
    "circle": (put("learning", "common", "betas", CIRCLE), "`learning.common.betas.*deeper than"),
    "bomb": (put("models", "qwen", "source", "config", BOMB), "more than .* values"),
    "key": (put("learning", "common", {True: 2}), "a key of `learning.common` is True"),
    "key-that-is-a-number": (put("learning", "common", {1: 2}), "`learning.common.*` is 1: .*string"),
    "key-that-is-huge": (put("learning", "common", {10**400: 2}), "a key of `learning.common` is an integer of 1329"),
    "bytes": (put("published", b"x"), "`published` is a bytes"),
    "set": (put("seeds", {1, 2}), "`seeds` is a set"),
    "line-break": (put(*TITLE, "a\nb"), "`models.qwen.title` is 'a.nb': .*U\\+000A"),
    "line-separator": (put(*TITLE, "a\u2028b"), "`models.qwen.title`.*U\\+2028"),
    "reversed": (put(*TITLE, "a\u202eb"), "`models.qwen.title`.*U\\+202E"),
    "null": (put("evaluation", "include_path", "a\0b"), "`evaluation.include_path`.*U\\+0000"),
    "half-a-pair": (put("evaluation", "tasks", ["a\ud800"]), "`evaluation.tasks.0`.*U\\+D800"),
    "key-with-a-line-break": (put("learning", "common", "a\nb", 1), "`learning.common`.*U\\+000A"),
    "long-title": (put(*TITLE, "a" * 81), "`models.qwen.title`.*80"),
    "empty-title": (put(*TITLE, ""), "`models.qwen.title`"),
    "blank-title": (put(*TITLE, " "), "`models.qwen.title`"),
    "long-text": (put("published", "a" * 5000), "`published` .*5,000 characters"),
    "long-name": (put("experiment", "a" * 65), "`experiment`.*64"),
}


@pytest.mark.parametrize("fault", VALUES)
def test_refused_values(fault: str, raw_config: dict) -> None:
    change, message = VALUES[fault]
    change(raw_config)
    with pytest.raises(InputError, match=message) as error:
        validate_experiment(raw_config)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_characters_to_remove_may_be_any(raw_config: dict, tmp_path: Path) -> None:
    source = {"kind": "package", "distribution": "d", "text": "m:a", "remove": "\u00ad\u200b"}
    raw_config["corpora"]["text"]["source"] = source
    assert validate_experiment(raw_config).corpora["text"].source.remove == "\u00ad\u200b"


def test_a_base_is_read_as_strictly(raw_config: dict, tmp_path: Path) -> None:
    base, top = tmp_path / "base.yaml", tmp_path / "top.yaml"
    base.write_text(yaml.safe_dump(raw_config) + "experiment: twice\n")
    top.write_text(f"extends: {base}\nexperiment: mine\n")
    with pytest.raises(InputError, match="base.yaml, line .*the key `experiment`"):
        load_experiment(top)
