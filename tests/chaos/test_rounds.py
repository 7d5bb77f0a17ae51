"""One round at each fail point and one for each kind of fault; --soak repeats them with other dice."""
import os

import pytest

from campaign import SEED
from rounds import CASES

ROUNDS = int(os.environ.get("HEAVE_CHAOS_ROUNDS", "0"))


def names():
    """Each case once, then again until there are as many rounds as wanted."""
    once = list(CASES)
    return once + [f"{once[i % len(once)]}#{i // len(once) + 2}" for i in range(max(0, ROUNDS - len(once)))]


@pytest.mark.parametrize("name", names())
def test_round(rounds, name):
    said, failure = rounds[name].result()
    assert failure is None, f"HEAVE_CHAOS_SEED={SEED}\n{failure}"
    print(said)
