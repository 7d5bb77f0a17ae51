"""What is claimed when Redis goes away, and when the gateway is told to stop: deliveries on their way finish and are settled
once, nothing else begins, and no attempt is used up."""
import signal
import time

import pytest

import heave
from redis_servers import Redis

SENDER = "alerts@contoso.test"
SLOTS, MESSAGES = 4, 16


@pytest.fixture
def own(tmp_path):
    simulator = heave.Simulator(tmp_path / "sim", "--acs-quota", "off")
    redis = Redis(tmp_path / "redis")
    yield simulator, redis
    redis.signal(signal.SIGCONT)
    redis.stop()
    simulator.stop()


def make_gateway(folder, own, **changes):
    simulator, redis = own
    gateway = heave.Gateway(folder, simulator, {
        "threads": {"ingress": 1, "delivery": 1},
        "queue": {"redis": f"redis://127.0.0.1:{redis.port}", "lease": "3s"},
        "routes": [{"match": {"recipient": "any"}, "via": ["acs"]}], **changes}, start=False)
    gateway.conf["backends"] = {"acs": {**gateway.conf["backends"]["acs"], "concurrency": SLOTS}}
    gateway.write_conf()
    gateway.start()
    return gateway


def submit(gateway):
    return [gateway.send(SENDER, [f"m{i}@example.net"], heave.mime_message(SENDER, f"m{i}@example.net", f"m {i}"))
            for i in range(MESSAGES)]


def arrived(simulator):
    """Requests the service took; it answers them later (a slow fault)."""
    return simulator.summary()["acs"]["transactions"]


def batches(gateway):
    sums = {}
    for queue in gateway.queue()["queues"]:
        for state, count in queue["batches"].items():
            sums[state] = sums.get(state, 0) + count
    return sums


def all_once(gateway, simulator, ids):
    """Every message delivered by its first attempt, and nothing sent twice."""
    for message_id in ids:
        gateway.wait_states(message_id, {"delivered": 1}, 60)
        assert [r["attempts"] for r in gateway.status(message_id)["recipients"]] == [1]
    summary = simulator.summary()["acs"]
    assert (summary["transactions"], summary["duplicates"], summary["repeated_operations"]) == (MESSAGES, 0, 0)


@pytest.mark.parametrize("how", ["killed", "stopped", "stopped for longer than a lease"])
def test_redis_goes_away_under_deliveries(tmp_path, own, how):
    simulator, redis = own
    gateway = make_gateway(tmp_path / "gw", own)
    try:
        simulator.fault(service="acs", kind="slow", delay_ms=1500)
        ids = submit(gateway)
        heave.wait_until(lambda: arrived(simulator) >= SLOTS, 30, "every slot to be taken")
        if how == "killed":
            redis.signal(signal.SIGKILL)
            redis.process.child.wait()
        else:
            redis.signal(signal.SIGSTOP)
        on_the_way = arrived(simulator)
        heave.wait_until(lambda: not gateway.is_ready(), 30, "the gateway to notice")
        # Longer than the service takes (and a lease lasts): the answers come, nobody can be told, nobody else begins.
        time.sleep(5 if how.endswith("lease") else 2.5)
        # What was started on the way to a server that had just stopped is counted by the service, not yet by us.
        assert on_the_way <= arrived(simulator) <= 2 * SLOTS
        simulator.clear_faults()
        if how == "killed":
            redis.start()
        else:
            redis.signal(signal.SIGCONT)
        heave.wait_until(gateway.is_ready, 30, "the gateway to be ready again")
        all_once(gateway, simulator, ids)
        assert batches(gateway) == dict.fromkeys(batches(gateway), 0)
    finally:
        assert gateway.stop() == 0


def test_graceful_stop_gives_leases_back(tmp_path, own):
    simulator, _ = own
    gateway = make_gateway(tmp_path / "gw", own)
    simulator.fault(service="acs", kind="slow", delay_ms=1000)
    ids = submit(gateway)
    heave.wait_until(lambda: arrived(simulator) >= 2 * SLOTS, 30, "two rounds of deliveries, and claims ahead")
    assert gateway.stop() == 0
    begun = arrived(simulator)
    assert begun < MESSAGES

    gateway.conf["roles"] = ["ingest"]  # looks, and sends nothing
    gateway.write_conf()
    gateway.start()
    states = [gateway.status(message_id)["recipients"][0] for message_id in ids]
    assert sum(r["state"] == "delivered" and r["attempts"] == 1 for r in states) == begun, states
    assert sum(r["state"] == "queued" and r["attempts"] == 0 for r in states) == MESSAGES - begun, states
    assert batches(gateway) == {**dict.fromkeys(batches(gateway), 0), "ready": MESSAGES - begun}
    assert gateway.stop() == 0

    simulator.clear_faults()
    gateway.conf["roles"] = ["ingest", "dispatch"]
    gateway.write_conf()
    gateway.start()
    try:
        all_once(gateway, simulator, ids)
    finally:
        assert gateway.stop() == 0
