"""Conversion of exceptions from model and data set libraries into messages for the user."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from patch.errors import InputError

OWN_CODE = "it needs its own code, which this software never runs; use a model that transformers itself has code for"
LOG_IN = "log in with `hf auth login` or set HF_TOKEN in the environment"
# Limit on a reason's characters, since torch appends its C++ stack.
LONGEST = 600
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# The messages of these, and of Rust's tokenizers, are clear without the class name.
_EXPLAINED = (OSError, ValueError, RuntimeError)
# File systems answer with EFBIG to a file that exceeds a limit.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# httpx's exceptions of a connection that was open.
_INTERRUPTED = ("ReadError", "ReadTimeout", "RemoteProtocolError")


@contextmanager
def library_errors(what: str, token: str | None = None) -> Iterator[None]:
    """Convert each exception of the block into an `InputError` of one line without tokens.

    A damaged file can raise any exception type in these libraries.

    Args:
        what: start of the message, such as `model folder m cannot be loaded`.
        token: token of the block, besides those of the environment and of the hub's login.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # A panic of a Rust library is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        repo, reason = _repository(error)[1], without_tokens(_reason(error), token)[:LONGEST]
        # No cause, since its message may contain a token.
        raise InputError(f"{what}: {f'{repo}: ' if repo and repo not in what else ''}{reason}") from None


@contextmanager
def hub_errors(what: str, token: str | None = None) -> Iterator[None]:
    """Apply `library_errors` to a block that may access the hub, after a check of the token.

    A malformed token is refused first, because libraries print it in warnings and exceptions.
    """
    if problem := token_problem(token):
        raise InputError(f"{what}: {problem}")
    with library_errors(what, token):
        yield


def token_problem(token: str | None = None) -> str | None:
    """Return the reason why a token is malformed; None for a valid or missing token."""
    given = {"the argument `token`": token} if token else tokens()
    # The hub's library sends only the first token.
    source, text = next(iter(given.items()), ("", ""))
    if re.search(r"[^!-~]", _sent(text)):
        return f"the token in {source} holds a character that a token cannot have, such as a space; set it again"
    return None


def tokens() -> dict[str, str]:
    """Return the hub's tokens of this process by source: an environment variable or the login file."""
    from huggingface_hub.constants import HF_TOKEN_PATH

    found = {name: os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)}
    with suppress(OSError):  # no login
        found[str(HF_TOKEN_PATH)] = Path(HF_TOKEN_PATH).read_bytes().decode(errors="replace")
    return found


def without_tokens(text: str, token: str | None = None) -> str:
    """Return a text in one line, with tokens and passwords in URLs replaced by `<token>`."""
    given = {*tokens().values(), *([token] if token else [])}
    # Messages escape special characters in several ways, so the pieces between them are replaced too.
    pieces = {piece for one in given for piece in (_sent(one), *re.split(r"[^A-Za-z0-9]+", one)) if len(piece) > 3}
    if pieces:
        text = re.sub("|".join(map(re.escape, sorted(pieces, key=len, reverse=True))), "<token>", text)
    return " ".join(re.sub(r"://[^/\s@]+@", "://<token>@", text).split())


def _sent(token: str) -> str:
    """Return a token as the hub's library sends it: without line ends and surrounding whitespace."""
    return token.replace("\r", "").replace("\n", "").strip()


def hub_answer(error: BaseException, page: str | None = None) -> str | None:
    """Return the reason of a hub's refusal, without library messages; None if the hub did not refuse.

    Args:
        error: exception of a library.
        page: address of the repository's page, for an exception that does not name the repository.
    """
    from huggingface_hub import errors

    kind, repo = _repository(error)
    if repo:
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    page = page or "its page on the hub"
    answers = {
        errors.GatedRepoError: f"it is gated: accept its licence at {page} with an account, then {LOG_IN}",
        errors.RevisionNotFoundError: "the hub has no such commit, branch or tag of it; its page lists them",
        errors.RepositoryNotFoundError: f"no such repository, or a private one; correct the name, or {LOG_IN}",
        errors.RemoteEntryNotFoundError: "the hub has no such file in it; its page lists them",
        errors.HFValidationError: "it is not the name of a repository; it must be `owner/name`",
    }
    for one in _chain(error):
        found = next((refusal for refusal in answers if isinstance(one, refusal)), _discarded(one))
        if found is None and isinstance(one, errors.HfHubHTTPError):
            status = one.response.status_code
            if status == 400 and one.server_message:
                return f"the hub refuses it: {one.server_message}"
            if status != 401 or _has_token(one.response):
                again = "log in again with `hf auth login` or correct HF_TOKEN"
                return f"the hub answers with status {status}; {again if status in (401, 403) else 'try again later'}"
            found = errors.RepositoryNotFoundError
        if found:
            return answers[found]
    return None


def _discarded(error: BaseException) -> type[Exception] | None:
    """Return the type of the hub's exception that `datasets` has replaced by its own, without a cause."""
    from huggingface_hub import errors

    if type(error).__name__ != "DatasetNotFoundError":
        return None
    text = str(error)
    if "is a gated dataset" in text:
        return errors.GatedRepoError
    return errors.RevisionNotFoundError if text.startswith("Revision") else errors.RepositoryNotFoundError


def _has_token(response: Any) -> bool:
    """Return whether a request had a token. Without one, the hub answers with 401 if there is no such repository."""
    return response.request is None or "authorization" in response.request.headers


def _repository(error: BaseException) -> tuple[str | None, str | None]:
    """Return the kind and the id of the repository that the hub refused, or None for each if they are not known."""
    for one in _chain(error):
        if repo := getattr(one, "repo_id", None):
            return getattr(one, "repo_type", None), repo
        if _discarded(one) and (found := re.search(r"ataset '([^']+)'", str(one))):
            return "dataset", found[1]
    return None, None


def unreachable(error: BaseException) -> str:
    """Return the message for an unreachable hub."""
    remedy = "set HTTPS_PROXY or HF_ENDPOINT, or fetch on another machine and copy work/ and HF_HOME"
    return f"the Hugging Face hub cannot be reached ({type(error).__name__}); use a machine with a network, {remedy}"


def _reason(error: BaseException) -> str:
    text, chain = str(error), _chain(error)
    if "trust_remote_code" in text:
        return OWN_CODE
    if answer := hub_answer(error):
        return answer
    for one in reversed(chain):
        if isinstance(one, OSError) and one.errno in _FULL:
            return f"the disk is full ({one}); free some space for work/ and HF_HOME"
        name = type(one).__name__
        if name in _INTERRUPTED or isinstance(one, ConnectionResetError) or "Consistency check failed" in str(one):
            return f"the transfer broke off ({name}); start it again"
        if isinstance(one, (ConnectionError, TimeoutError)) or type(one).__module__.startswith("httpx"):
            return unreachable(one)
    if type(error).__name__ == "DatasetGenerationError":  # its message says no more than that
        return f"a file is damaged, or not in the format of its name ({chain[-1]})"
    explained = text and (isinstance(error, _EXPLAINED) or type(error) is Exception)
    return text if explained else f"{type(error).__name__} {text}"


def _chain(error: BaseException) -> list[BaseException]:
    """Return an exception and its causes, the original one last."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    return chain
