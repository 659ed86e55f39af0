"""Translation of resources to sbatch parameters and to submitit's script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snakemake_executor_plugin_submitit.resources import RESERVED, Request, ResourceError
from snakemake_executor_plugin_submitit.resources import make_request as make
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from submitit import SlurmExecutor


def make_request(
    resources: dict, threads: int, gpu_request: str = "gpus-per-node", limit: int | None = None, **options: Any
) -> Request:
    """Return a request with these settings, on a cluster whose default partition has a time limit in minutes."""
    factor = options.pop("memory_factor", 1.0)
    settings = ExecutorSettings(gpu_request=gpu_request, **options)
    return make(resources, threads, settings, {} if limit is None else {"": limit}, factor)


def request_of(threads: int = 1, **resources: Any) -> Request:
    return make_request({"runtime": 60, **resources}, threads)


def script(request: Request, folder: Path) -> list[str]:
    """Return the lines of the script that sbatch gets."""
    executor = SlurmExecutor(folder=folder)
    executor.update_parameters(**request.parameters, job_name="rule", comment="batch", wckey=None)
    return executor._make_submission_file_text("true", "").splitlines()


def test_a_job_of_one_core() -> None:
    request = request_of()
    assert (request.time_limits, request.signal_delay) == (1, 0)
    assert request.parameters == {
        "time": 60,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": 1,
        "signal_delay_s": 1,
        "additional_parameters": {"requeue": True, "open_mode": "append"},
    }


@pytest.mark.parametrize(
    ("resources", "parameters"),
    [
        ({"runtime": "90"}, {"time": 90}),
        ({"nodes": 2, "tasks_per_node": 4}, {"nodes": 2, "ntasks_per_node": 4}),
        ({"threads": 0}, {"cpus_per_task": 1}),
        ({"threads": 8}, {"cpus_per_task": 8}),
        ({"mem_mb": 4000}, {"mem": "4000M"}),
        ({"mem_mb_per_cpu": 1000, "mem_mb": 4000}, {"mem_per_cpu": "1000M"}),
        ({"slurm_partition": "gpu,cpu"}, {"partition": "gpu,cpu"}),
        ({"slurm_account": "lab"}, {"account": "lab"}),
        ({"slurm_qos": "high"}, {"qos": "high"}),
        ({"constraint": "a100&nvlink"}, {"constraint": "a100&nvlink"}),
        ({"exclude": "n[1-2]"}, {"exclude": "n[1-2]"}),
        ({"gpus": 2}, {"gpus_per_node": "2"}),
        ({"gpus": "2"}, {"gpus_per_node": "2"}),
        ({"gpus": "a100:2"}, {"gpus_per_node": "a100:2"}),
        ({"gpus": 2, "gpu_model": "a100"}, {"gpus_per_node": "a100:2"}),
    ],
)
def test_each_resource_has_its_parameter(resources: dict[str, Any], parameters: dict[str, Any]) -> None:
    asked = request_of(**resources).parameters
    assert asked | parameters == asked


def test_what_is_not_asked_for_is_not_said() -> None:
    assert request_of(mem_mb=None, gpus=0, slurm_partition="", slurm_account=None, slurm_extra="") == request_of()


@pytest.mark.parametrize(
    ("how", "model", "said"),
    [
        ("gpus-per-node", "", ("gpus_per_node", "4")),
        ("gpus-per-node", "h100", ("gpus_per_node", "h100:4")),
        ("gres", "", ("gres", "gpu:4")),
        ("gres", "h100", ("gres", "gpu:h100:4")),
        ("gpus", "", ("gpus", "12")),
        ("gpus", "h100", ("gpus", "h100:12")),
    ],
)
def test_gpus_are_per_node_whatever_option_asks_for_them(how: str, model: str, said: tuple[str, str]) -> None:
    parameters = make_request({"runtime": 1, "gpus": 4, "gpu_model": model, "nodes": 3}, 1, how).parameters
    everything = parameters | parameters["additional_parameters"]
    assert {name: everything[name] for name in ("gpus_per_node", "gres", "gpus") if name in everything} == dict([said])


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"runtime": None}, "no `runtime`: give its minutes"),
        ({"runtime": "2h"}, "`runtime` is '2h', not a whole number from 1 up"),
        ({"runtime": 0}, "`runtime` is 0, not"),
        ({"runtime": 1.5}, "`runtime` is 1.5, not"),
        ({"runtime": float("inf")}, "`runtime` is inf, not"),
        ({"nodes": -1}, "`nodes` is -1, not"),
        ({"tasks_per_node": "two"}, "`tasks_per_node` is 'two', not"),
        ({"mem_mb": "4G"}, "`mem_mb` is '4G', not"),
        ({"mem_mb_per_cpu": 0}, "`mem_mb_per_cpu` is 0, not"),
        ({"resumable": "yes"}, "`resumable` is 'yes', not a whole number from 0 up"),
        ({"gpus": "a100"}, "`gpus` is 'a100', not a whole number from 0 up"),
        ({"gpus": "a100:"}, "`gpus` is 'a100:', not"),
        ({"gpus": -1}, "`gpus` is '?-1'?, not"),
        ({"gpu_model": "a100"}, "`gpu_model` is 'a100' but `gpus` is 0; ask for one or more"),
        ({"gpus": "a100:0"}, "`gpu_model` is 'a100' but `gpus` is 0"),
        ({"gpus": "a100:2", "gpu_model": "h100"}, "`gpu_model` is 'h100' but `gpus` is 'a100:2'"),
        ({"slurm_extra": "-p gpu"}, "`slurm_extra` has '-p'; write options as --name=value or --flag"),
        ({"slurm_extra": "--nice 5"}, "`slurm_extra` has '5'; write"),
        ({"slurm_extra": "--=5"}, "`slurm_extra` has '--=5'; write"),
        ({"slurm_extra": "--signal=USR1@10"}, "`slurm_extra` has --signal, which the executor sets itself"),
        ({"slurm_extra": "--licenses='a"}, '`slurm_extra` is "--licenses=\'a": No closing quotation'),
    ],
)
def test_an_error_names_the_value_and_what_would_be_right(resources: dict[str, Any], words: str) -> None:
    with pytest.raises(ResourceError, match=words):
        request_of(**resources)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_what_the_executor_sets_is_not_set_twice(name: str) -> None:
    with pytest.raises(ResourceError, match=f"--{name}, which the executor sets itself"):
        request_of(slurm_extra=f"--{name}=1")


def test_extra_options_are_handed_on() -> None:
    request = request_of(slurm_extra="--nice=5 --exclusive --mail-user='a b' --mem=9G")
    assert request.parameters["additional_parameters"] == {
        "requeue": True,
        "open_mode": "append",
        "nice": "5",
        "exclusive": True,
        "mail_user": "a b",
        "mem": "9G",
    }


def test_a_resumable_job_is_warned_and_may_use_up_more_time_limits() -> None:
    request = request_of(resumable=1)
    assert (request.time_limits, request.signal_delay, request.parameters["signal_delay_s"]) == (3, 90, 90)


@given(st.integers(1, 10_000), st.integers(0, 10_000))
def test_the_warning_comes_in_the_last_third_at_the_earliest(minutes: int, delay: int) -> None:
    request = make_request({"runtime": minutes, "resumable": 1}, 1, signal_delay=delay)
    assert request.signal_delay == min(delay, 20 * minutes)
    assert request.parameters["signal_delay_s"] == max(1, request.signal_delay)


@pytest.mark.parametrize(
    ("runtime", "limit", "minutes", "time_limits"),
    [(60, None, 60, 3), (60, 60, 60, 3), (60, 600, 60, 3), (61, 60, 60, 5)],
)
def test_a_resumable_job_fits_its_partition(runtime: int, limit: int | None, minutes: int, time_limits: int) -> None:
    request = make_request({"runtime": runtime, "resumable": 1}, 1, time_limits=3, limit=limit)
    assert (request.parameters["time"], request.time_limits) == (minutes, time_limits)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 5))
def test_as_many_time_limits_are_allowed_as_the_work_needs(runtime: int, limit: int, least: int) -> None:
    request = make_request({"runtime": runtime, "resumable": 1}, 1, time_limits=least, limit=limit)
    assert request.parameters["time"] == min(runtime, limit)
    assert request.time_limits >= least
    assert runtime <= limit or request.time_limits * limit >= 2 * runtime


def test_more_time_limits_than_the_work_needs_stay() -> None:
    request = make_request({"runtime": 61, "resumable": 1}, 1, time_limits=30, limit=60)
    assert request.time_limits == 30


def test_another_job_must_fit_by_itself() -> None:
    with pytest.raises(ResourceError, match="`runtime` is 61 minutes, the partition allows 60; name another"):
        make_request({"runtime": 61}, 1, limit=60)


@pytest.mark.parametrize(("resource", "name"), [("mem_mb", "mem"), ("mem_mb_per_cpu", "mem_per_cpu")])
def test_memory_grows(resource: str, name: str) -> None:
    request = make_request({"runtime": 1, resource: 1001}, 1, memory_factor=1.5)
    assert request.parameters[name] == "1502M"


RESOURCES = st.fixed_dictionaries(
    {"runtime": st.integers(1, 2)},
    optional={
        "resumable": st.integers(0, 1),
        "nodes": st.integers(1, 2),
        "tasks_per_node": st.integers(1, 2),
        "mem_mb": st.sampled_from([1000, "1000", 2000]),
        "mem_mb_per_cpu": st.integers(1, 2),
        "gpus": st.sampled_from([0, 1, "1", "a100:1", "h100:2"]),
        "slurm_partition": st.sampled_from(["", "cpu", "gpu"]),
        "slurm_account": st.sampled_from(["lab", "team"]),
        "slurm_qos": st.sampled_from(["high", "low"]),
        "constraint": st.sampled_from(["big", "a|b"]),
        "exclude": st.just("n1"),
        "slurm_extra": st.lists(st.sampled_from(["--nice=1", "--hold", "--mem=1G"]), unique=True).map(" ".join),
    },
)


@settings(max_examples=100)
@given(RESOURCES, RESOURCES, st.integers(0, 2))
def test_equal_requests_have_equal_keys_and_others_do_not(one: dict, other: dict, delay: int) -> None:
    requests = [make_request(resources, 1, signal_delay=delay, time_limits=1) for resources in (one, other)]
    assert (requests[0].key == requests[1].key) == (requests[0] == requests[1])


@settings(max_examples=100)
@given(RESOURCES)
def test_the_order_of_resources_and_options_makes_no_difference(resources: dict) -> None:
    turned = dict(reversed(resources.items()))
    turned["slurm_extra"] = " ".join(reversed(turned.get("slurm_extra", "").split()))
    assert make_request(turned, 1).key == make_request(resources, 1).key


@given(RESOURCES, st.sampled_from(["gpus-per-node", "gres", "gpus"]))
def test_submitit_takes_every_request(commands: Any, tmp_path: Path, resources: dict, how: str) -> None:
    commands.add("srun")
    lines = script(make_request(resources, 1, how), tmp_path)
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append", f"#SBATCH --time={resources['runtime']}"} <= set(lines)
    assert not [line for line in lines if "wckey" in line or "None" in line or "False" in line]


def test_the_script_has_all_parameters(commands: Any, tmp_path: Path) -> None:
    commands.add("srun")
    resources = {
        "runtime": 600,
        "resumable": 1,
        "mem_mb": 4000,
        "gpus": "a100:2",
        "nodes": 2,
        "tasks_per_node": 2,
        "slurm_partition": "gpu",
        "slurm_account": "lab",
        "slurm_qos": "high",
        "constraint": "nvlink",
        "exclude": "n[1-2]",
        "slurm_extra": "--nice=5 --exclusive",
    }
    options = {line.removeprefix("#SBATCH ") for line in script(make_request(resources, 8, "gpus"), tmp_path)}
    assert options >= {
        "--time=600",
        "--nodes=2",
        "--ntasks-per-node=2",
        "--cpus-per-task=8",
        "--mem=4000M",
        "--gpus=a100:4",
        "--partition=gpu",
        "--account=lab",
        "--qos=high",
        "--constraint=nvlink",
        "--exclude='n[1-2]'",
        "--nice=5",
        "--exclusive",
        "--requeue",
        "--open-mode=append",
        "--signal=USR2@90",
        "--job-name=rule",
        "--comment=batch",
    }
    assert not [option for option in options if option.startswith(("--wckey", "--array", "--gpus-per-node", "--gres"))]


@pytest.mark.parametrize(
    ("how", "option"),
    [("gpus", "--gpus=4"), ("gres", "--gres=gpu:2"), ("gpus-per-node", "--gpus-per-node=2")],
)
def test_the_script_asks_for_gpus_once(commands: Any, tmp_path: Path, how: str, option: str) -> None:
    commands.add("srun")
    lines = script(make_request({"runtime": 1, "gpus": 2, "nodes": 2}, 1, how), tmp_path)
    assert [line for line in lines if "--g" in line] == [f"#SBATCH {option}"]
