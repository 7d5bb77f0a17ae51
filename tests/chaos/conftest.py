"""Rounds mostly wait (for leases, retries, restarts), so a few run side by side; each test takes its own round's result."""
import concurrent.futures
import os
import pathlib
import sys
import traceback

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

WORKERS = int(os.environ.get("HEAVE_CHAOS_WORKERS", "4"))


@pytest.fixture(scope="session")
def rounds(request, tmp_path_factory):
    """The results by name of those rounds that this run has chosen, as futures."""
    import ledger
    from campaign import SEED
    from rounds import CASES

    chosen = [item.callspec.params["name"] for item in request.session.items
              if "rounds" in item.fixturenames and "name" in getattr(item, "callspec", item).params]
    pool = concurrent.futures.ThreadPoolExecutor(WORKERS)

    def run(name, folder):
        try:
            return CASES[name.partition("#")[0]](folder, ledger.dice(SEED, name)), None
        except BaseException:  # noqa: BLE001 - told by the test
            return None, traceback.format_exc()

    yield {name: pool.submit(run, name, tmp_path_factory.mktemp("round")) for name in chosen}
    pool.shutdown(cancel_futures=True)
