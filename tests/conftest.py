"""Fixtures of the system tests: one simulator and one gateway a module, unless a test makes its own."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))

import heave  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than half a minute; not part of --quick and sanitizer runs")


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    simulator = heave.Simulator(tmp_path_factory.mktemp("sim"), "--acs-quota", "off",
                                "--keep-bodies", str(tmp_path_factory.mktemp("bodies")))
    yield simulator
    simulator.stop()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, sim):
    instance = heave.Gateway(tmp_path_factory.mktemp("gateway"), sim)
    yield instance
    assert instance.stop() == 0


@pytest.fixture
def clean_sim(sim):
    """The module's simulator with an empty ledger and no faults."""
    sim.reset()
    sim.clear_faults()
    yield sim
    sim.clear_faults()
