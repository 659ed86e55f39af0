"""Exceptions of the libraries that read models and data sets, made into messages for a user."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from patch.errors import InputError

OWN_CODE = "it needs its own code, which this software never runs; use a model that transformers itself has code for"
LOG_IN = "log in with `hf auth login` or set HF_TOKEN in the environment"
# Characters of a reason: torch appends its C++ stack.
LONGEST = 600
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# Messages of these explain what is wrong without the name of the class, and so do those of Rust's tokenizers.
_EXPLAINED = (OSError, ValueError, RuntimeError)


@contextmanager
def library_errors(what: str, token: str | None = None) -> Iterator[None]:
    """Turn each exception of the block into an `InputError` of one line that holds no token.

    These libraries raise whatever a damaged file brings about, so that no list of classes is complete.

    Args:
        what: how the message begins, such as `model folder m cannot be loaded`.
        token: one that the block is given besides those of the environment and of the hub's login.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # What a library in Rust raises where it does not expect a fault.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        # Without the library's exception as a cause, whose message may hold a token.
        raise InputError(f"{what}: {without_tokens(_reason(error), token)[:LONGEST]}") from None


@contextmanager
def hub_errors(what: str, token: str | None = None) -> Iterator[None]:
    """Do the same for a block that may ask a hub, and refuse a token that cannot be sent before it is entered.

    Libraries print such a token in warnings as well as in exceptions.
    """
    problem = token_problem(token)
    if problem:
        raise InputError(f"{what}: {problem}")
    with library_errors(what, token):
        yield


def token_problem(token: str | None = None) -> str | None:
    """Return the reason why a token cannot be sent to a hub; None where it can, or where there is none."""
    given = {"the argument `token`": token} if token else tokens()
    for source, text in given.items():
        if re.search(r"[^!-~]", _sent(text)):
            return f"the token in {source} holds a character that a token cannot have, such as a space; set it again"
        break  # the hub's library sends the first one
    return None


def tokens() -> dict[str, str]:
    """Return the hub's tokens of this process by their source: a variable's name, or the file of the hub's login."""
    from huggingface_hub.constants import HF_TOKEN_PATH

    found = {name: os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)}
    with suppress(OSError):  # nobody has logged in
        found[str(HF_TOKEN_PATH)] = Path(HF_TOKEN_PATH).read_bytes().decode(errors="replace")
    return found


def without_tokens(text: str, token: str | None = None) -> str:
    """Return a text in one line, with `<token>` in the place of tokens and of a password in an address."""
    given = {*tokens().values(), *([token] if token else [])}
    # Messages escape special characters in several ways; the pieces between them are the same in all.
    pieces = {piece for one in given for piece in (_sent(one), *re.split(r"[^A-Za-z0-9]+", one)) if len(piece) > 3}
    if pieces:
        text = re.sub("|".join(map(re.escape, sorted(pieces, key=len, reverse=True))), "<token>", text)
    return " ".join(re.sub(r"://[^/\s@]+@", "://<token>@", text).split())


def _sent(token: str) -> str:
    """Return a token as the hub's library sends it: without the line ends and spaces that copying adds."""
    return token.replace("\r", "").replace("\n", "").strip()


def hub_answer(error: BaseException, page: str = "its page on the hub") -> str | None:
    """Return the reason for which a hub refuses, without a message of the library; None where it did not answer."""
    from huggingface_hub import errors

    for one in _chain(error):
        if isinstance(one, errors.GatedRepoError):
            return f"it is gated: accept its licence at {page} with an account, then {LOG_IN}"
        if isinstance(one, errors.RevisionNotFoundError):
            return "the hub has no such commit of it; its page lists them"
        if isinstance(one, errors.RepositoryNotFoundError):
            return "the hub has none of that name, or a private one; correct the name, or " + LOG_IN
        if isinstance(one, errors.RemoteEntryNotFoundError):
            return "the hub has no such file in it; its page lists them"
        if isinstance(one, errors.HfHubHTTPError):
            status = one.response.status_code
            again = "log in again with `hf auth login` or correct HF_TOKEN"
            return f"the hub answers with status {status}; {again if status in (401, 403) else 'try again later'}"
        if isinstance(one, errors.HFValidationError):
            return "that is no name of a repository; it must be `owner/name`"
    return None


def unreachable(error: BaseException) -> str:
    """Return the message that no hub answers."""
    return (
        f"the Hugging Face hub cannot be reached ({type(error).__name__}); start where there is a network, "
        "set HTTPS_PROXY or HF_ENDPOINT, or fetch on another machine and copy work/ and HF_HOME"
    )


def _reason(error: BaseException) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return OWN_CODE
    answer = hub_answer(error)
    if answer:
        return answer
    for one in reversed(_chain(error)):
        if isinstance(one, (ConnectionError, TimeoutError)) or type(one).__module__.startswith("httpx"):
            return unreachable(one)
    explained = text and (isinstance(error, _EXPLAINED) or type(error) is Exception)
    return text if explained else f"{type(error).__name__} {text}"


def _chain(error: BaseException) -> list[BaseException]:
    """Return an exception and those that led to it, the first one last."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    return chain
