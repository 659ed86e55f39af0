"""One SLURM cluster for all tests here, as good as new for each."""

from collections.abc import Iterator

import pytest

from .cluster import Cluster, SlurmMissing, require_slurm


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster, for which SLURM is installed if it can be."""
    # What an installation says is to be seen while it goes on.
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        try:
            require_slurm()
        except SlurmMissing as missing:
            pytest.skip(str(missing))
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _reset_cluster(cluster: Cluster) -> Iterator[None]:
    """Leave the next test a cluster without faults and jobs."""
    yield
    cluster.reset()
