"""Strict schemas of what files hold."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from patch.errors import InputError


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("a name has no control characters")
    return name


# Printed in messages and tables.
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]

# Whole numbers that fit into 64 bits: larger ones have no float.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]


class Schema(BaseModel):
    """A JSON object of known keys: text and truth values are no numbers, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=BaseModel)


def check(schema: type[Checked], value: Any, where: str) -> Checked:
    """Validate ``value``.

    Raises:
        InputError: it does not fit; ``where``, the key of the first fault and the reason, on one line.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        fault, *others = error.errors(include_url=False, include_input=False)
        # A key may come from the file: no line breaks, and not thousands of characters.
        key = repr(".".join(map(str, fault["loc"])))[1:-1][:120] or "the file"
        more = f" (and {len(others)} more)" if others else ""
        reason = fault["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: `{key}`: {reason}{more}") from None
