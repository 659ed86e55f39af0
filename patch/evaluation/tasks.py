"""Zero-shot questions made from held-out text of any corpus, in the format of lm-eval.

All choices of a question are drawn from one pool in the same way as the correct one. Length and rarity alone therefore
carry no information: a model without language knowledge answers at chance.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from patch.errors import InputError
from patch.files.io import atomic_file
from patch.files.plain import read_plain

OPENING, CONTINUATION = 24, 12  # words
CONTEXT = range(8, 33)  # words before the predicted word
SENTENCE = range(8, 41)  # words
CHOICES = 4
RAREST = 4  # occurrences: rarer words have no meaningful frequency
FUNCTION_WORDS = 100  # the most frequent words do not count as content words
# Maximum number of files: a larger folder is probably a mistake.
MOST_FILES = 10_000

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

Question = dict[str, Any]
Maker = Callable[[list[str], random.Random], Iterator[Question]]


def make_task_data(documents: list[str], samples: int, seed: int, out_dir: Path) -> None:
    """Write `<task>.jsonl` for every task: lines with `query`, `choices` and `gold`, the index of the correct choice.

    Args:
        documents: held-out text.
        samples: questions per task.
        seed: random seed; it and the text determine the files.
        out_dir: output folder.

    Raises:
        InputError: the text is too short for the number of questions.
    """
    for task, make in MAKERS.items():
        questions = []
        for question in make(documents, random.Random(f"{seed} {task}")):
            questions.append(question)
            if len(questions) == samples:
                break
        if len(questions) < samples:
            raise InputError(
                f"task `{task}`: the held-out text makes {len(questions)} questions, not {samples}; "
                "lower `evaluation.task_samples` or give more text"
            )
        with atomic_file(Path(out_dir) / f"{task}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(question) + "\n" for question in questions))


def task_paths(include_path: Path | str) -> dict[str, Path]:
    """Return the file of each task and group that the YAML files of a folder declare, without an import of lm-eval.

    Raises:
        InputError: the folder is missing, or a file in it is not plain YAML.
    """
    paths: dict[str, Path] = {}
    for file in task_files(include_path):
        if file.suffix == ".yaml":
            # `!function module.name` is read as None, so that nothing is imported.
            declared = read_plain(file, "task file", drop_tags=True)
            name = declared.get("group", declared.get("task")) if isinstance(declared, dict) else None
            if isinstance(name, str):
                paths.setdefault(name, file)
    return paths


def task_names(include_path: Path | str) -> list[str]:
    """Return the sorted names in `task_paths`."""
    return sorted(task_paths(include_path))


def task_files(include_path: Path | str) -> list[Path]:
    """Return the sorted files of a folder of tasks, except hidden files and `__pycache__`.

    Files of any extension count, since a task may include or read them.

    Raises:
        InputError: the folder is missing, or has more than ``MOST_FILES`` files.
    """
    root = Path(include_path)
    if not root.is_dir():
        raise InputError(f"`evaluation.include_path` is {str(include_path)!r}, which is no folder")
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not _foreign(name)]
        found += [path for name in names if not _foreign(name) and (path := Path(folder, name)).is_file()]
        if len(found) > MOST_FILES:
            raise InputError(
                f"`evaluation.include_path` is {str(include_path)!r}, which has more than {MOST_FILES:,} files; "
                "name the folder of the tasks alone"
            )
    return sorted(found)


def _foreign(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _question(query: str, right: str, wrong: list[str], rng: random.Random) -> Question:
    gold = rng.randrange(len(wrong) + 1)
    return {"query": query, "choices": [*wrong[:gold], right, *wrong[gold:]], "gold": gold}


def _shuffled(items: list, rng: random.Random) -> list:
    return rng.sample(items, len(items))


def _continuation(documents: list[str], rng: random.Random) -> Iterator[Question]:
    """Yield questions with an opening and four continuations of 12 words and similar length, one of them its own."""
    openings: dict[str, str] = {}  # by continuation, so that a repeated phrase is one choice
    for words in map(str.split, documents):
        for start in range(0, len(words) - OPENING - CONTINUATION + 1, OPENING + CONTINUATION):
            middle = start + OPENING
            openings[" ".join(words[middle : middle + CONTINUATION])] = " ".join(words[start:middle])
    # Neighbours by length form a group and each is correct for its own opening, so that length carries no information.
    passages = sorted(openings, key=lambda passage: (len(passage), passage))
    groups = [passages[start : start + CHOICES] for start in range(0, len(passages) - CHOICES + 1, CHOICES)]
    for index, group in _shuffled([(index, group) for group in groups for index in range(CHOICES)], rng):
        wrong = [passage for passage in group if passage != group[index]]
        yield _question(openings[group[index]], group[index], _shuffled(wrong, rng), rng)


def _word_order(documents: list[str], rng: random.Random) -> Iterator[Question]:
    """Yield questions between the rest of a sentence and a copy with two exchanged content words.

    Both words follow the same word, as in `the house of the king`, so that grammar alone does not decide.
    """
    alike = _Alike(documents)
    for words in _shuffled(_sentences(documents), rng):
        places = [place for place in range(2, len(words)) if alike.is_content(words[place])]
        pairs = [
            (first, second)
            for first, second in combinations(places, 2)
            if words[first] != words[second] and words[first - 1] == words[second - 1]
        ]
        if pairs:
            first, second = rng.choice(pairs)
            swapped = words.copy()
            swapped[first], swapped[second] = words[second], words[first]
            yield _question(" ".join(words[:first]), " ".join(words[first:]), [" ".join(swapped[first:])], rng)


def _next_word(documents: list[str], rng: random.Random) -> Iterator[Question]:
    """Yield questions about the next word, among four words of similar frequency and length."""
    alike = _Alike(documents)
    for words in _shuffled(_sentences(documents), rng):
        places = [place for place in CONTEXT if place < len(words) and alike.has(words[place])]
        if places:
            yield alike.question(words, rng.choice(places), "", rng)


def _cloze(documents: list[str], rng: random.Random) -> Iterator[Question]:
    """Yield questions about one word of a sentence, among four words of similar frequency and length."""
    alike = _Alike(documents)
    for words in _shuffled(_sentences(documents), rng):
        places = [
            place for place in range(2, len(words) - 3) if alike.has(words[place]) and alike.is_content(words[place])
        ]
        if places:
            place = rng.choice(places)
            yield alike.question(words, place, "".join(f" {word}" for word in words[place + 1 :]), rng)


MAKERS: dict[str, Maker] = {
    "continuation": _continuation,
    "word_order": _word_order,
    "next_word": _next_word,
    "cloze": _cloze,
}


def _sentences(documents: list[str]) -> list[list[str]]:
    """Return the words of each distinct sentence of suitable length."""
    sentences = (tuple(sentence.split()) for document in documents for sentence in _SENTENCE_END.split(document))
    return [list(words) for words in dict.fromkeys(sentences) if len(words) in SENTENCE]


def _plain(word: str) -> bool:
    """Return whether a word has only lower-case letters, so that it does not reveal its position."""
    return word.isalpha() and word == word.lower()


class _Alike:
    """Groups of words of similar frequency (within a factor of two) and length (within two letters)."""

    def __init__(self, documents: list[str]) -> None:
        counts = Counter(word for document in documents for word in document.split() if _plain(word))
        self._function_words = {word for word, _ in counts.most_common(FUNCTION_WORDS)}
        self._group: dict[str, list[str]] = {}
        groups: dict[tuple[int, int], list[str]] = defaultdict(list)
        for word in sorted(word for word, count in counts.items() if count >= RAREST):
            key = (int(math.log2(counts[word])), len(word) // 2)
            groups[key].append(word)
            self._group[word] = groups[key]

    def has(self, word: str) -> bool:
        return len(self._group.get(word, ())) >= CHOICES

    def is_content(self, word: str) -> bool:
        return _plain(word) and word not in self._function_words

    def question(self, words: list[str], place: int, rest: str, rng: random.Random) -> Question:
        """Return a question about the word at a place, with alike words as wrong answers, each followed by ``rest``."""
        word = words[place]
        wrong = rng.sample([other for other in self._group[word] if other != word], CHOICES - 1)
        return _question(" ".join(words[:place]), word + rest, [other + rest for other in wrong], rng)
