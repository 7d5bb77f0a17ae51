"""Repeats of an alert inside its window: accepted, counted, not sent again, and told of with the next one."""
import threading
from email import message_from_bytes, policy

import heave
from own_redis import OwnRedis

import pytest

MONITOR = "zabbix@contoso.test"


@pytest.fixture()
def gateway(tmp_path, clean_sim):
    instance = heave.Gateway(tmp_path, clean_sim, start=False)
    clients = {c["name"]: c for c in instance.conf["clients"]}
    clients["local"]["dedup"] = {"mode": "simple", "window": "3s", "ignore_digits": True}
    clients["erp"]["dedup"] = {"mode": "throttle", "window": "10m", "limit": 3}
    instance.write_conf()
    instance.start()
    yield instance
    assert instance.stop() == 0


def submit(gateway, subject, to="ops@contoso.test", extra=""):
    """Over SMTP; the text of the 250."""
    with gateway.smtp() as client:
        client.ehlo("test.contoso.test")
        client.mail(MONITOR)
        client.rcpt(to)
        code, text = client.data(heave.mime_message(MONITOR, to, subject, extra=extra))
    assert code == 250, (code, text)
    return text.decode()


def test_simple(gateway, clean_sim):
    first = submit(gateway, "Disk 91% full")
    first_id = first.split()[-1]
    assert "queued as" in first
    repeats = 0
    for number in range(3):
        repeat = submit(gateway, f"disk  {92 + number}% full")
        if "repeat" in repeat:  # unless three seconds are over already
            assert repeat.split()[-1] == first_id
            repeats += 1
    assert repeats > 0
    # Another recipient, and another key, are no repeats.
    assert "queued as" in submit(gateway, "Disk 91% full", "other@contoso.test")
    assert "queued as" in submit(gateway, "Disk 91% full", extra="X-Heave-Dedup-Key: disk-b\r\n")
    assert gateway.metric("heave_messages_total", client="local", verdict="deduplicated") == repeats

    def next_one():
        answer = submit(gateway, "Disk 99% full")
        return answer if "queued as" in answer else None
    second_id = heave.wait_until(next_one, 20, "the window to end").split()[-1]
    total = gateway.metric("heave_messages_total", client="local", verdict="deduplicated")
    gateway.wait_states(second_id, {"delivered": 1})
    told = [clean_sim.body(d) for d in clean_sim.deliveries() if d["recipient"] == "ops@contoso.test"]
    counts = [int(value) for body in told for name, value in
              ((f, line.split(b":")[1]) for f, line in heave.split_message(body)[0]) if name == "x-heave-suppressed"]
    assert counts == [int(total)]
    assert not any(b"X-Heave-Dedup-Key" in body for body in told)


def test_throttle_over_http(gateway, clean_sim):
    def post(subject, **more):
        headers = {"Idempotency-Key": more.pop("key")} if "key" in more else None
        status, answer = gateway.post({"from": "erp@contoso.test", "to": ["ops@contoso.test"], "subject": subject,
                                       "text": "x", **more}, headers=headers)
        assert status == 202, answer
        return answer

    passed = [post("Import failed") for _ in range(3)]
    assert not any("deduplicated" in answer for answer in passed)
    assert len({answer["id"] for answer in passed}) == 3
    fourth = post("Import failed", key="once")
    assert fourth["deduplicated"] is True and fourth["id"] == passed[2]["id"]
    assert (fourth["accepted"], fourth["batches"]) == (1, 0)
    assert post("Import failed", key="once") == fourth  # a replay is no further repeat
    assert gateway.metric("heave_messages_total", client="erp", verdict="deduplicated") == 1
    assert "deduplicated" not in post("Import failed", dedup_key="run-8")
    for answer in passed:
        gateway.wait_states(answer["id"], {"delivered": 1})
    status, answer = gateway.post({"from": "erp@contoso.test", "to": ["ops@contoso.test"], "subject": "x", "text": "x",
                                   "dedup_key": "two words"})
    assert status == 422 and answer["errors"][0]["pointer"] == "/dedup_key"


def test_storm(gateway, clean_sim):
    """Forty at once from eight senders: three mails."""
    answers = []

    def run():
        for _ in range(5):
            answers.append(gateway.post({"from": "erp@contoso.test", "to": ["night@contoso.test"],
                                         "subject": "Host down", "text": "x"}))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60 * heave.PATIENCE)
    assert [status for status, _ in answers] == [202] * 40
    passed = {answer["id"] for _, answer in answers if "deduplicated" not in answer}
    assert len(passed) == 3
    assert {answer["id"] for _, answer in answers} == passed  # repeats name one that was let through
    for message_id in passed:
        gateway.wait_states(message_id, {"delivered": 1})
    assert len([d for d in clean_sim.deliveries() if d["recipient"] == "night@contoso.test"]) == 3


# Digests.

def digest_gateway(tmp_path, sim, window, **more):
    instance = heave.Gateway(tmp_path, sim, start=False, **more)
    for client in instance.conf["clients"]:
        if client["name"] in ("local", "erp"):
            client["dedup"] = {"mode": "digest", "window": window, "ignore_digits": True}
    instance.write_conf()
    instance.start()
    return instance


def collected(answer):
    assert "collected, to be sent as" in answer, answer
    return answer.split()[-1]


def digest_of(sim, recipient):
    """Subject, text and the attached messages, as their subjects by name, of the only mail to the recipient."""
    mails = [sim.body(d) for d in sim.deliveries() if d["recipient"] == recipient]
    assert len(mails) == 1, mails
    mail = message_from_bytes(mails[0], policy=policy.default)
    files = {part.get_filename(): part.get_content()["Subject"] for part in mail.iter_attachments()}
    return mail["Subject"], mail.get_body(("plain",)).get_content(), files


def test_digest(tmp_path, clean_sim):
    gateway = digest_gateway(tmp_path, clean_sim, "3s")
    try:
        ids = {collected(submit(gateway, f"Disk {90 + n}% full")) for n in range(4)}
        other = collected(submit(gateway, "Something else", "other@contoso.test"))
        status, answer = gateway.post({"from": "erp@contoso.test", "to": ["web@contoso.test"], "subject": "Once",
                                       "text": "x"}, headers={"Idempotency-Key": "k"})
        assert (status, answer["collected"], answer["batches"]) == (202, True, 0)
        assert gateway.post({"from": "erp@contoso.test", "to": ["web@contoso.test"], "subject": "Once", "text": "x"},
                            headers={"Idempotency-Key": "k"})[1] == answer
        assert len(ids) == 1  # four within three seconds: one mail
        message_id = ids.pop()
        assert http_status(gateway, message_id) == 404  # not before the window is over
        heave.wait_until(lambda: http_status(gateway, message_id) == 200, 20, "the digest")
        gateway.wait_states(message_id, {"delivered": 1})
        subject, text, files = digest_of(clean_sim, "ops@contoso.test")
        assert subject == "Digest of 4: Disk 90% full"
        assert all(f"Disk {90 + n}% full" in text for n in range(4))
        assert "4 messages from" in text and text.count("Hello") == 4
        assert files == {f"message-00{n + 1}.eml": f"Disk {90 + n}% full" for n in range(4)}
        # One alone is sent as it was.
        for one, recipient in ((other, "other@contoso.test"), (answer["id"], "web@contoso.test")):
            heave.wait_until(lambda: http_status(gateway, one) == 200, 20, "the single message")
            gateway.wait_states(one, {"delivered": 1})
            assert digest_of(clean_sim, recipient)[2] == {}
        assert digest_of(clean_sim, "other@contoso.test")[0] == "Something else"
        assert gateway.metric("heave_messages_total", client="local", verdict="collected") == 5
    finally:
        assert gateway.stop() == 0


def http_status(gateway, message_id):
    return heave.http("GET", f"{gateway.admin}/v1/messages/{message_id}")[0]


def test_digest_is_bounded(tmp_path, clean_sim):
    """Many fill a collection before its window ends; a large message goes by itself."""
    gateway = digest_gateway(tmp_path, clean_sim, "1h")
    try:
        ids = {collected(submit(gateway, f"Job {n} failed", "many@contoso.test")) for n in range(200)}
        assert len(ids) == 1
        gateway_id = ids.pop()
        heave.wait_until(lambda: http_status(gateway, gateway_id) == 200, 20, "the full digest")
        gateway.wait_states(gateway_id, {"delivered": 1})
        subject, text, files = digest_of(clean_sim, "many@contoso.test")
        assert subject.startswith("Digest of 200:") and "Job 199 failed" in text
        assert set(files.values()) == {f"Job {n} failed" for n in range(200)}
        assert collected(submit(gateway, "Job 200 failed", "many@contoso.test")) != gateway_id
        with gateway.smtp() as client:
            client.ehlo("test.contoso.test")
            client.mail(MONITOR)
            client.rcpt("large@contoso.test")
            code, text = client.data(heave.mime_message(MONITOR, "large@contoso.test", "Report", "x" * 70 + "\r\n" * 40000))
        assert code == 250 and b"queued as" in text
    finally:
        assert gateway.stop() == 0


def test_digest_survives_crashes(tmp_path, clean_sim):
    """Collected, the gateway killed, and again when the digest was due: everything arrives, once."""
    redis = OwnRedis(tmp_path / "redis")
    more = {"changes": {"queue": {"redis": redis.url}}}
    gateway = digest_gateway(tmp_path / "gw", clean_sim, "4s", **more)
    try:
        ids = {collected(submit(gateway, f"Link {n} down", "net@contoso.test")) for n in range(3)}
        assert len(ids) == 1
        message_id = ids.pop()
        gateway.kill()
        gateway.start()
        heave.wait_until(lambda: http_status(gateway, message_id) == 200, 30, "the digest")
        gateway.wait_states(message_id, {"delivered": 1})
        heave.wait_until(lambda: redis.call("ZCARD", "{h0}:jd") == "0", 10, "the end of the collection")
        assert len([d for d in clean_sim.deliveries() if d["recipient"] == "net@contoso.test"]) == 1

        ids = {collected(submit(gateway, f"Link {n} down", "core@contoso.test")) for n in range(2)}
        message_id = ids.pop()
        # As if its gateway had died between the enqueue and the end of the collection: it is handed out again.
        redis.call("COPY", f"{{h0}}:j:{message_id}", "{h0}:saved")
        redis.call("COPY", f"{{h0}}:ji:{message_id}", "{h0}:savedi")
        heave.wait_until(lambda: http_status(gateway, message_id) == 200, 30, "the second digest")
        gateway.wait_states(message_id, {"delivered": 1})
        heave.wait_until(lambda: redis.call("ZCARD", "{h0}:jd") == "0", 10, "the end of the collection")
        redis.call("COPY", "{h0}:saved", f"{{h0}}:j:{message_id}")
        redis.call("COPY", "{h0}:savedi", f"{{h0}}:ji:{message_id}")
        redis.call("ZADD", "{h0}:jd", 1, message_id)
        heave.wait_until(lambda: redis.call("ZCARD", "{h0}:jd") == "0", 10, "the collection to be ended again")
        assert len([d for d in clean_sim.deliveries() if d["recipient"] == "core@contoso.test"]) == 1
        assert gateway.queue()["messages_open"] == 0
        gateway.wait_states(message_id, {"delivered": 1})  # what became of the first one is still known
    finally:
        assert gateway.stop() == 0
        redis.stop()
