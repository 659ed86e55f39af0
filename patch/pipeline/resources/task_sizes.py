"""Sizes of zero-shot tasks, from which the tokens of an evaluation are estimated before the data is fetched.

A question of a multiple-choice task has one request per choice. lm-eval runs requests that differ only in their last
token once, so a question has one forward pass if all choices are single tokens. The lengths are the mean characters of
the public data in lm-eval's prompt format, at 4.2 characters per token (English text in vocabularies of 32,000 tokens
and more has 3.8 to 4.7).
"""

from __future__ import annotations

from typing import NamedTuple

from patch.evaluation.tasks import CHOICES, task_names
from patch.pipeline.config.experiment import Evaluation

# Work of a generated token relative to a token that is only read: decoding is limited by memory bandwidth. It is the
# ratio of the stages `evaluate` and `speedup` in `cost.EFFICIENCY`.
GENERATED = 7.5


class TaskSize(NamedTuple):
    """Size of one task or group.

    Attributes:
        questions: Questions of the split that lm-eval evaluates.
        passes: Forward passes per question.
        tokens: Mean tokens of a pass, prompt and continuation together.
        generated: Largest number of generated tokens per question.
        subtasks: Tasks of a group, each of which a limit applies to.
    """

    questions: int
    passes: int
    tokens: int
    generated: int = 0
    subtasks: int = 1

    def work(self, limit: int | None = None, fewshot: int = 0) -> float:
        """Return the tokens of an evaluation; a few-shot example is as long as a question with its answer.

        Args:
            limit: Maximum number of questions per subtask.
            fewshot: Solved examples before each question.
        """
        questions = self.questions if limit is None else min(self.questions, limit * self.subtasks)
        return questions * (self.passes * self.tokens * (1 + fewshot) + GENERATED * self.generated)


# Number of questions: validation (PIQA, WinoGrande XL, HellaSwag, BoolQ, CommonsenseQA, Social IQa) or test split.
SIZES = {
    # Prompts end with the four choices; their letters are the continuations.
    "mmlu": TaskSize(14_042, passes=1, tokens=130, subtasks=57),
    "piqa": TaskSize(1_838, passes=2, tokens=36),
    "arc_easy": TaskSize(2_376, passes=4, tokens=37),
    "arc_challenge": TaskSize(1_172, passes=4, tokens=43),
    "winogrande": TaskSize(1_267, passes=2, tokens=26),
    "openbookqa": TaskSize(500, passes=4, tokens=18),
    # One item for each article; the prompt has all its other questions. Length from the size of the test split.
    "race": TaskSize(1_045, passes=4, tokens=520),
    # Length from the size of the validation split, in which each context occurs twice.
    "hellaswag": TaskSize(10_042, passes=4, tokens=95),
    # Lengths of BoolQ and LAMBADA from their publications, that of CommonsenseQA from some of its questions.
    "boolq": TaskSize(3_270, passes=1, tokens=150),
    "commonsense_qa": TaskSize(1_221, passes=1, tokens=50),
    "social_iqa": TaskSize(1_954, passes=3, tokens=35),
    "lambada_openai": TaskSize(5_153, passes=1, tokens=95),
    # The answer's length is lm-eval's limit of generated tokens.
    "gsm8k": TaskSize(1_319, passes=1, tokens=130, generated=256),
}
# A task that is not listed counts as about the largest common one.
UNKNOWN = TaskSize(10_000, passes=4, tokens=100)
# Mean length of a choice with its question in workflow/tasks, rounded up: 22 to 52 tokens in a vocabulary of 2,048.
MADE_TOKENS = 40


def task_tokens(evaluation: Evaluation) -> float:
    """Return the tokens of an evaluation's tasks; a task in `include_path` has `task_samples` questions."""
    own = task_names(evaluation.include_path) if evaluation.include_path else []
    made = TaskSize(evaluation.task_samples, CHOICES, MADE_TOKENS)
    sizes = {name: made if name in own else SIZES.get(name, UNKNOWN) for name in evaluation.tasks}
    return sum(size.work(evaluation.limit, evaluation.fewshot.get(name, 0)) for name, size in sizes.items())
