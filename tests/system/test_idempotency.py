"""One key, several submissions at once, two gateways: one message, and nobody hears anything else of it."""
import threading

import heave
from own_redis import OwnRedis

import pytest

SENDER = "erp@contoso.test"


@pytest.fixture()
def pair(tmp_path, clean_sim):
    """Two gateways on one Redis."""
    redis = OwnRedis(tmp_path / "redis")
    gateways = [heave.Gateway(tmp_path / name, clean_sim, {"queue": {"redis": redis.url}}) for name in ("one", "two")]
    yield redis, gateways
    for gateway in gateways:
        assert gateway.stop() == 0
    redis.stop()


def post(gateway, key, text="Hello"):
    body = {"from": SENDER, "to": ["a@contoso.test"], "subject": "Invoice", "text": text}
    headers = {"Authorization": f"Bearer {heave.API_KEY}", "Content-Type": "application/json", "Idempotency-Key": key}
    return heave.http("POST", f"{gateway.http}/v1/messages", heave.json.dumps(body).encode(), headers)


def accepted(gateways):
    return sum(g.metric("heave_messages_total", client="erp", verdict="accepted") for g in gateways)


def test_many_at_once(pair):
    _, gateways = pair
    start, answers = threading.Barrier(12), []

    def run(number):
        start.wait()
        for _ in range(10):
            status, headers, body = post(gateways[number % 2], "race")
            answers.append((status, headers, heave.json.loads(body)))
            if status == 202:
                return

    threads = [threading.Thread(target=run, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60 * heave.PATIENCE)
    assert {status for status, _, _ in answers} <= {202, 409}, answers
    assert all(int(headers["Retry-After"]) >= 1 for status, headers, _ in answers if status == 409)
    assert len({body["id"] for status, _, body in answers if status == 202}) == 1
    assert accepted(gateways) == 1
    status, headers, _ = post(gateways[0], "race")
    assert (status, headers["Idempotency-Replayed"]) == (202, "true")
    assert post(gateways[1], "race", "Other content")[0] == 422


def test_key_of_a_gateway_that_died(pair):
    """What it leaves is the reservation alone; it ends by itself, here as soon as time is made to pass."""
    redis, (gateway, other) = pair
    redis.call("HSET", "{h0}:i:erp:orphan", "t", "of-a-dead-gateway")
    redis.call("PEXPIRE", "{h0}:i:erp:orphan", 60000)
    status, headers, body = post(gateway, "orphan")
    assert status == 409 and int(headers["Retry-After"]) >= 1, body
    assert heave.json.loads(body)["type"].endswith("idempotency-in-flight")
    redis.call("PEXPIRE", "{h0}:i:erp:orphan", 1)
    status, _, body = heave.wait_until(lambda: (lambda a: a if a[0] == 202 else None)(post(other, "orphan")), 10,
                                       "the key to be free")
    gateway.wait_states(heave.json.loads(body)["id"], {"delivered": 1})
    assert int(redis.call("PTTL", "{h0}:i:erp:orphan")) > 23 * 3600 * 1000


def test_header_over_smtp(pair):
    """While a submission with the same key and envelope is being taken, 451; after it, its id."""
    redis, (gateway, other) = pair
    message = heave.mime_message(SENDER, "a@contoso.test", extra="X-Heave-Idempotency-Key: run-7\r\n")
    first = gateway.send(SENDER, ["a@contoso.test"], message)
    assert other.send(SENDER, ["a@contoso.test"], message) == first
    key = next(k for k in redis.call("KEYS", "{h0}:i:local:*").splitlines())
    redis.call("DEL", key)
    redis.call("HSET", key, "t", "of-another-gateway")
    redis.call("PEXPIRE", key, 60000)
    with gateway.smtp() as client:
        client.ehlo("test.contoso.test")
        client.mail(SENDER)
        client.rcpt("a@contoso.test")
        code, text = client.data(message)
    assert code == 451 and text.startswith(b"4.3.0"), (code, text)
    assert b"being taken" in text
