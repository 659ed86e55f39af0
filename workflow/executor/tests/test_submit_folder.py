"""Refusal of folders that other users could have written to."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import pytest
from snakemake_executor_plugin_submitit import submit_folder
from snakemake_executor_plugin_submitit.ledger import Ledger
from snakemake_executor_plugin_submitit.submit_folder import check_folder
from snakemake_interface_common.exceptions import WorkflowError

ME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_submit_folder_that_others_can_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "submit"
    folder.mkdir()
    folder.chmod(mode)
    for use in (check_folder, Ledger):
        with pytest.raises(WorkflowError) as refused:
            use(folder)
        words = str(refused.value)
        assert f"{folder} belongs to {ME} and has mode {mode:04o}; " in words
        assert "remove it" in words and "--submitit-folder" in words
        assert not list(folder.iterdir()) and folder.stat().st_mode & 0o7777 == mode


def test_a_submit_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for use in (check_folder, Ledger):
        with pytest.raises(WorkflowError, match=f"{re.escape(str(tmp_path))} belongs to {ME} and has mode 0700; "):
            use(tmp_path)


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_a_run_that_others_can_write_to_is_refused_before_it_is_read(mode: int, tmp_path: Path) -> None:
    old = tmp_path / "submit/000001"
    old.mkdir(parents=True)
    (old / "ledger.jsonl").mkdir()  # cannot be read
    (tmp_path / "submit").chmod(0o700)
    old.chmod(mode)
    with pytest.raises(WorkflowError, match=f"/000001 belongs to {ME} and has mode {mode:04o}; "):
        Ledger(tmp_path / "submit")
    assert [path.name for path in (tmp_path / "submit").iterdir()] == ["000001"]


def test_a_submit_folder_and_what_is_made_above_it_are_this_users_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        check_folder(tmp_path / "a/b/submit")
        run = Ledger(tmp_path / "c/d/submit").run
    finally:
        os.umask(mask)
    modes = [path.stat().st_mode & 0o777 for path in (*run.parents, run) if path.is_relative_to(tmp_path)]
    assert modes == [0o700, 0o755, 0o755, 0o700, 0o700]
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/submit")] == [0o755, 0o755, 0o700]


def test_a_submit_folder_that_others_may_only_read_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    check_folder(tmp_path)
    assert Ledger(tmp_path).run.stat().st_mode & 0o777 == 0o700
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_links_and_odd_names_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o777)
    (tmp_path / "elsewhere/ledger.jsonl").write_text('{"event": "submit"}\n')
    submit = tmp_path / "submit"
    submit.mkdir(mode=0o700)
    (submit / "000007").symlink_to(tmp_path / "elsewhere")
    for name in ("1²", "9" * 250):
        (submit / name).mkdir()
    assert Ledger(submit).run.name == "000001"


def test_a_submit_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        WorkflowError, match=r"The submit folder .*/file/a cannot be used \(Not a directory\).*--submitit-folder"
    ):
        check_folder(tmp_path / "file" / "a")


@pytest.mark.parametrize(
    ("folder", "kind", "warning"),
    [
        ("/home/me/submit", "nfs4", None),
        ("/home/me/submit", "ext4", None),
        ("/scratch/submit", "tmpfs", "The submit folder /scratch/submit is on tmpfs; compute nodes must see it."),
        ("/tmp/submit", "ext4", "The submit folder /tmp/submit is on a local folder; compute nodes must see it."),
        ("/tmpfiles/submit", "nfs", None),
    ],
)
def test_a_folder_that_nodes_may_not_see_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, folder: str, kind: str, warning: str | None
) -> None:
    monkeypatch.setattr(submit_folder, "make_private", lambda _: None)
    monkeypatch.setattr(submit_folder, "_filesystem", lambda _: kind)
    assert check_folder(Path(folder)) == ([warning] if warning else [])


def test_the_filesystem_of_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = "/dev/a / ext4 rw 0 0\nhost:/home /home nfs4 rw 0 0\ntmpfs /home/ram tmpfs rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda _: mounts)
    found = [submit_folder._filesystem(Path(folder)) for folder in ("/a", "/home/a", "/home/ram/a", "/home/ramses")]
    assert found == ["ext4", "nfs4", "tmpfs", "nfs4"]
