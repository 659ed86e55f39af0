"""Tests that messages of libraries become one line without tokens."""

from __future__ import annotations

import errno
import json
import os
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError

from patch.errors import InputError
from patch.hub.errors import hub_answer, hub_errors, library_errors

TOKEN = "hf_secret-\x0bhidden"


@pytest.mark.parametrize("shown", [TOKEN, repr(TOKEN.encode()), json.dumps(TOKEN), "hf_secret-%0Bhidden"])
@pytest.mark.parametrize("source", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "file", "argument"])
def test_no_form_of_a_token_is_shown(source: str, shown: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if source == "file":
        (tmp_path / "token").write_text(TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    elif source != "argument":
        monkeypatch.setenv(source, TOKEN)
    with (
        pytest.raises(InputError, match="^it failed: ") as caught,
        library_errors("it failed", TOKEN if source == "argument" else None),
    ):
        try:
            raise KeyError(f"Bearer {shown}")
        except KeyError as error:
            raise OSError(f"with\n{shown}") from error
    said = "".join(traceback.format_exception(caught.value))
    assert "secret" not in said and "hidden" not in said and "<token>" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(InputError, match="at https://<token>@hub.example/a$"), library_errors("it failed"):
        raise OSError("nothing at https://me:secret@hub.example/a")


@pytest.mark.parametrize("token", ["hf_a b", "hf_\xe9", "hf_\x0bx", "hf_\x7f"])
def test_a_malformed_token_is_refused_before_it_is_sent(token: str) -> None:
    words = "^it failed: the token in the argument `token` holds a character"
    with pytest.raises(InputError, match=words), hub_errors("it failed", token):
        pytest.fail("the block was entered")


def test_line_ends_around_a_token_are_no_fault() -> None:
    with hub_errors("it failed", "hf_secret\n"):
        pass


def test_keyboard_interrupts_pass() -> None:
    with pytest.raises(KeyboardInterrupt), library_errors("it failed"):
        raise KeyboardInterrupt


def test_a_full_disk_is_named_wherever_a_library_hides_it() -> None:
    with (
        pytest.raises(InputError, match=r"^it failed: the disk is full \(\[Errno 28\] No space left"),
        library_errors("it failed"),
    ):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("an error occurred") from error


@pytest.mark.parametrize(("sent", "words"), [({}, "no such repository"), ({"authorization": "x"}, "log in again")])
def test_an_answer_to_a_request_without_a_token(sent: dict[str, str], words: str) -> None:
    response = SimpleNamespace(headers={}, status_code=401, request=SimpleNamespace(headers=sent))
    assert words in str(hub_answer(HfHubHTTPError("", response=response)))


def test_the_hub_s_reason_for_a_bad_request_is_shown() -> None:
    response = SimpleNamespace(headers={}, status_code=400, request=None)
    error = HfHubHTTPError("Bad request", response=response, server_message="the licence is not one of the list")
    assert hub_answer(error) == "the hub refuses it: the licence is not one of the list"
    assert hub_answer(HfHubHTTPError("Bad request", response=response)).startswith("the hub answers with status 400")
