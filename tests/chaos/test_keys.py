"""A gateway dies with an idempotency key in its hands: the same submission, made again until it gets a yes, is one mail."""
import json

import pytest

import heave
from own_redis import OwnRedis

RECORD = "{h0}:i:erp:invoice-17"


def post(gateway):
    body = {"from": "erp@contoso.test", "to": ["a@contoso.test"], "subject": "Invoice 17", "text": "Attached."}
    headers = {"Authorization": f"Bearer {heave.API_KEY}", "Content-Type": "application/json",
               "Idempotency-Key": "invoice-17"}
    try:
        status, headers, answer = heave.http("POST", f"{gateway.http}/v1/messages", json.dumps(body).encode(), headers)
        return status, headers, json.loads(answer)
    except OSError:
        return 0, {}, None


@pytest.mark.parametrize("point", ["intake-before-enqueue", "enqueue-before-write", "enqueue-answered",
                                   "api-before-reply"])
def test_kill(tmp_path, point):
    sim = heave.Simulator(tmp_path / "sim")
    redis = OwnRedis(tmp_path / "redis")
    # The one that dies only accepts: what it had begun to deliver would be another story.
    gateway = heave.Gateway(tmp_path / "gw", sim, {"queue": {"redis": redis.url}, "roles": ["ingest"]},
                            env={"HEAVE_FAILPOINT": f"{point}:kill"})
    try:
        assert post(gateway)[0] == 0
        assert gateway.process.child.wait(20 * heave.PATIENCE) == -9
        assert f"failpoint {point} kill" in gateway.process.tail()
        stored = redis.call("HEXISTS", RECORD, "i") == "1"
        assert stored == (point in ("enqueue-answered", "api-before-reply"))
        gateway.env = {}
        gateway.conf["roles"] = ["ingest", "dispatch"]
        gateway.write_conf()
        gateway.start()
        status, headers, answer = post(gateway)
        if stored:
            assert status == 202 and headers["Idempotency-Replayed"] == "true"
        else:
            # The reservation of the dead one; it ends within a minute, which is made to pass here.
            assert status == 409 and int(headers["Retry-After"]) >= 1, answer
            assert 0 < int(redis.call("PTTL", RECORD)) <= 60000
            redis.call("PEXPIRE", RECORD, 1)
            status, headers, answer = heave.wait_until(lambda: (lambda a: a if a[0] == 202 else None)(post(gateway)), 10,
                                                       "the key to be free")
            assert "Idempotency-Replayed" not in headers
        gateway.wait_states(answer["id"], {"delivered": 1})
        assert [d["recipient"] for d in sim.deliveries()] == ["a@contoso.test"]
    finally:
        gateway.stop()
        redis.stop()
        sim.stop()


@pytest.fixture(scope="module", autouse=True)
def built_with_failpoints():
    """The suite's own build; another one would never die."""
    assert b"HEAVE_FAILPOINT" in (heave.BUILD / "heave").read_bytes(), f"{heave.BUILD} has no fail points"
