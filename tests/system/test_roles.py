"""Several gateways on one Redis: roles apart, and four that do everything. All is delivered exactly once."""
import threading
import time

import pytest

import heave
from redis_servers import Redis

SENDER = "alerts@contoso.test"


@pytest.fixture
def own(tmp_path):
    """A simulator and a Redis of the test's own."""
    simulator = heave.Simulator(tmp_path / "sim", "--acs-quota", "off")
    redis = Redis(tmp_path / "redis")
    yield simulator, redis
    redis.stop()
    simulator.stop()


def make_gateway(folder, own, **changes):
    simulator, redis = own
    return heave.Gateway(folder, simulator, {
        "queue": {"redis": f"redis://127.0.0.1:{redis.port}", "shards": 4},
        "routes": [{"match": {"recipient": "internal"}, "via": ["hve"]}, {"match": {"recipient": "any"}, "via": ["acs"]}],
        **changes})


def submit(gateway, mark, count):
    """Small messages to two recipients each, one behind each backend, in one session."""
    with gateway.smtp() as client:
        client.ehlo("test.contoso.test")
        for i in range(count):
            recipients = [f"{mark}-{i}@contoso.test", f"{mark}-{i}@example.net"]
            assert client.mail(SENDER)[0] == 250
            for recipient in recipients:
                assert client.rcpt(recipient)[0] == 250
            code, text = client.data(heave.mime_message(SENDER, recipients[0], f"{mark} {i}"))
            assert code == 250, (code, text)


def delivered_once(simulator, expected, seconds=60):
    def counts():
        summary = simulator.summary()
        return [sum(summary[service][key] for service in ("hve", "acs"))
                for key in ("recipients", "duplicates", "repeated_operations")]
    heave.wait_until(lambda: counts()[0] >= expected, seconds, f"{expected} recipients at the services")
    assert counts() == [expected, 0, 0]


def nothing_left(gateway):
    def empty():
        queues = gateway.queue()["queues"]
        return all(count == 0 for queue in queues for count in queue["batches"].values())
    heave.wait_until(empty, 30, "the queue to be empty")


def test_ingest_and_dispatch_apart(tmp_path, own):
    simulator, redis = own
    front = make_gateway(tmp_path / "front", own, roles=["ingest"])
    try:
        submit(front, "early", 20)  # while nobody dispatches
        assert simulator.summary()["hve"]["recipients"] == 0
        back = make_gateway(tmp_path / "back", own, roles=["dispatch"])
        try:
            delivered_once(simulator, 40)
            submit(front, "later", 100)
            delivered_once(simulator, 240)
            nothing_left(front)
            assert front.metric("heave_attempts_total") == 0
            assert back.metric("heave_messages_total") == 0
            assert back.metric("heave_attempts_total") == 240

            # The other process hears of new work at once: it listens, and is quicker than its poll.
            assert int(redis("PUBSUB", "NUMSUB", "heave:ready")[1]) >= 1
            waits = []
            for i in range(10):
                began = time.time()
                front.send(SENDER, [f"hint-{i}@contoso.test"], heave.mime_message(SENDER, "x@contoso.test", f"hint {i}"))
                at = heave.seconds_of(simulator.wait_delivery(f"hint-{i}@contoso.test")["at"])
                waits.append(at - began)
            print(f"\nfrom one process's submission to the service through the other: {sorted(waits)[5] * 1000:.0f} ms")
        finally:
            assert back.stop() == 0
    finally:
        assert front.stop() == 0


def test_four_with_both_roles(tmp_path, own):
    simulator, _ = own
    gateways = [make_gateway(tmp_path / f"gw{i}", own, threads={"ingress": 1, "delivery": 2}) for i in range(4)]
    try:
        threads = [threading.Thread(target=submit, args=(gateway, f"gw{i}", 150)) for i, gateway in enumerate(gateways)]
        for thread in threads:
            thread.start()
        status, _ = gateways[0].post({"from": SENDER, "subject": "News", "text": "News.",
                                      "to": [f"news-{i}@example.net" for i in range(2000)]})
        assert status == 202
        for thread in threads:
            thread.join()
        delivered_once(simulator, 4 * 150 * 2 + 2000, 120)
        nothing_left(gateways[3])
        attempts = [gateway.metric("heave_attempts_total") for gateway in gateways]
        assert sum(attempts) == 4 * 150 * 2 + 40, attempts
        assert all(attempts), attempts  # every one had its hand in it
        assert sum(gateway.metric("heave_recipients_finished_total", state="delivered") for gateway in gateways) == 3200
    finally:
        codes = [gateway.stop() for gateway in gateways]
    assert codes == [0] * 4
