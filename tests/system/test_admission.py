"""A full queue refuses bulk first and alerts last, politely and early, and takes mail again as soon as there is room."""
import base64
import os
import socket

import heave
from own_redis import OwnRedis

import pytest

SENDER = "alerts@contoso.test"


def conf_of(instance):
    """The peer's network is a client of the lane bulk, which it may not choose; `monitor` logs in for alert."""
    clients = {c["name"]: c for c in instance.conf["clients"]}
    clients["local"].update({"lane": "bulk"})
    instance.write_conf()
    instance.start()
    return instance


def post(gateway, kib=1, key=heave.API_KEY):
    text = base64.b64encode(os.urandom(kib * 768)).decode()
    body = {"from": SENDER, "to": ["a@contoso.test"], "subject": "Run", "text": text}
    return heave.http("POST", f"{gateway.http}/v1/messages", heave.json.dumps(body).encode(),
                      {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})


def post_head(gateway):
    """The status of the answer to the head of a large request, of whose body nothing is sent."""
    with socket.create_connection(("127.0.0.1", gateway.http_port), 30 * heave.PATIENCE) as peer:
        peer.sendall(f"POST /v1/messages HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {heave.API_KEY}\r\n"
                     "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n".encode())
        return int(peer.recv(100).split()[1])


def smtp_codes(gateway, login=False):
    """Replies to MAIL and, after a yes, to the message."""
    with gateway.smtp() as client:
        client.ehlo("test.contoso.test")
        if login:
            client.login(heave.SMTP_USER, heave.SMTP_PASSWORD)
        code, text = client.mail(SENDER)
        if code != 250:
            return [(code, text)]
        client.rcpt("a@contoso.test")
        return [(code, text), client.data(heave.mime_message(SENDER, "a@contoso.test"))]


def refused(gateway):
    """Lane to reason, as /readyz tells."""
    status, answer = heave.http_json("GET", f"{gateway.admin}/readyz")
    assert status == 200, answer  # a gateway that refuses some lanes stays in service
    return {row["lane"]: row["reason"] for row in answer["lanes_refused"]}


def test_bulk_first_alert_last(tmp_path, clean_sim):
    clean_sim.fault(service="hve", kind="throttle", probability=1.0)
    clean_sim.fault(service="graph", kind="throttle", probability=1.0)
    gateway = conf_of(heave.Gateway(tmp_path, clean_sim, start=False, changes={
        "queue": {"redis": "embedded", "data_dir": str(tmp_path / "data"), "max_bytes": "1MiB"}}))
    try:
        assert refused(gateway) == {}
        answers = []
        while len(answers) < 200 and (not answers or answers[-1][0] == 202):
            answers.append(post(gateway, 20))
        status, headers, body = answers[-1]
        assert status == 503 and int(headers["Retry-After"]) > 0, body
        assert heave.json.loads(body)["type"] == "urn:heave:problem:queue-full"
        accepted = [heave.json.loads(body)["id"] for status, _, body in answers if status == 202]
        assert 20 < len(accepted) < 60  # four fifths of a MiB, by 20 KiB
        heave.wait_until(lambda: refused(gateway) == {"bulk": "bytes"}, 10, "bulk to be closed")
        # Put off before the message is sent; alerts go on.
        code, text = smtp_codes(gateway)[-1]
        assert code == 452 and text.startswith(b"4.3.1") and b"full" in text
        assert post_head(gateway) == 503
        assert [code for code, _ in smtp_codes(gateway, login=True)] == [250, 250]
        assert gateway.metric("heave_admission_open", lane="bulk") == 0
        assert gateway.metric("heave_admission_open", lane="alert") == 1
        assert gateway.metric("heave_admission_refused_total", lane="bulk") >= 3
        listed = gateway.run("queue", "list", "-c", str(gateway.conf_path))
        assert "new messages of lane bulk are put off: bytes" in listed.stdout, listed
        # It empties, and takes mail again, without a restart.
        clean_sim.clear_faults()
        for message_id in accepted:
            gateway.wait_states(message_id, {"delivered": 1}, 60)
        heave.wait_until(lambda: refused(gateway) == {}, 10, "bulk to be open")
        assert post(gateway, 20)[0] == 202
        assert [code for code, _ in smtp_codes(gateway)] == [250, 250]
        assert "admission lane=bulk state=refused reason=bytes" in gateway.process.tail(200000)
    finally:
        clean_sim.clear_faults()
        assert gateway.stop() == 0


def test_count(tmp_path, clean_sim):
    """queue.max_messages: each lane at its part."""
    clean_sim.fault(service="hve", kind="throttle", probability=1.0)
    clean_sim.fault(service="graph", kind="throttle", probability=1.0)
    gateway = conf_of(heave.Gateway(tmp_path, clean_sim, start=False, changes={
        "queue": {"redis": "embedded", "data_dir": str(tmp_path / "data"), "max_messages": 10}}))
    try:
        for _ in range(8):
            assert post(gateway)[0] == 202
        heave.wait_until(lambda: refused(gateway) == {"bulk": "messages"}, 10, "bulk to be closed")
        assert post(gateway)[0] == 503
        assert [code for code, _ in smtp_codes(gateway, login=True)] == [250, 250]
    finally:
        clean_sim.clear_faults()
        assert gateway.stop() == 0


@pytest.mark.parametrize("limit", ["95%", "100%"])
def test_redis_memory(tmp_path, clean_sim, limit):
    """Redis near its maxmemory, and above it: every lane is put off with the answer for "full", until there is room."""
    redis = OwnRedis(tmp_path / "redis", "--maxmemory", "30mb")
    gateway = conf_of(heave.Gateway(tmp_path / "gw", clean_sim, start=False,
                                    changes={"queue": {"redis": redis.url, "max_memory": limit}}))
    try:
        assert post(gateway)[0] == 202
        redis.call("SETRANGE", "filler", 29 * 1024 * 1024 if limit == "95%" else 30 * 1024 * 1024 - 1000000, "x")
        if limit == "100%":
            redis.call("SETRANGE", "more", 4 * 1024 * 1024, "x")
        heave.wait_until(lambda: post(gateway)[0] == 503, 10, "the first refusal")
        heave.wait_until(lambda: set(refused(gateway).values()) == {"memory"} and "alert" in refused(gateway), 10,
                         "all lanes to be closed")
        status, headers, body = post(gateway)
        assert status == 503 and int(headers["Retry-After"]) > 0
        assert b"short of memory" in body
        for login in (False, True):
            code, text = smtp_codes(gateway, login)[-1]
            assert code == 452 and text.startswith(b"4.3.1"), (code, text)
        redis.call("DEL", "filler", "more")
        heave.wait_until(lambda: refused(gateway) == {}, 10, "the lanes to be open")
        status, _, body = post(gateway)
        assert status == 202
        gateway.wait_states(heave.json.loads(body)["id"], {"delivered": 1})
        assert [code for code, _ in smtp_codes(gateway)] == [250, 250]
    finally:
        assert gateway.stop() == 0
        redis.stop()
