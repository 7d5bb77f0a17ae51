"""Repeats of an alert inside its window: accepted, counted, not sent again, and told of with the next one."""
import threading

import heave

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
