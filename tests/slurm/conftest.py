"""Fixtures: one SLURM cluster for all tests of this folder, reset after each."""

from collections.abc import Iterator

import pytest

from .cluster import Cluster, SlurmMissing, require_slurm


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Return the cluster; SLURM is installed if possible."""
    # Show the output of an installation while it runs.
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        try:
            require_slurm()
        except SlurmMissing as missing:
            pytest.skip(str(missing))
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _reset_cluster(cluster: Cluster) -> Iterator[None]:
    """Remove faults and jobs after each test."""
    yield
    cluster.reset()
