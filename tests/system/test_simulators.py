"""The checks of sim_clients.py as part of the system tests."""
from sim_clients import *  # noqa: F401,F403
