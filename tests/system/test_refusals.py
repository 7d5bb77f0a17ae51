"""Bad input and our own trouble: each gets the documented reply and leaves the gateway healthy (never 5xx for our trouble)."""
import http.client
import os
import signal
import smtplib
import socket

import pytest

import heave

SENDER = "alerts@contoso.test"
MESSAGE = heave.mime_message(SENDER, "a@contoso.test")


@pytest.fixture(autouse=True)
def still_healthy(gateway):
    """Whatever the test did, the next ordinary message goes through."""
    yield
    assert gateway.is_ready()
    message_id = gateway.send(SENDER, ["healthy@contoso.test"], MESSAGE)
    gateway.wait_states(message_id, {"delivered": 1})


def raw_smtp(port, *steps):
    """Sends each step after the reply to the one before; returns the last lines of all replies."""
    replies = []
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        stream = sock.makefile("rb")

        def reply():
            while True:
                line = stream.readline()
                if line[3:4] != b"-":
                    return line.decode().rstrip()
        replies.append(reply())
        for step in steps:
            sock.sendall(step)
            replies.append(reply())
    return replies


def test_wrong_password(gateway):
    with gateway.smtp() as client, pytest.raises(smtplib.SMTPAuthenticationError) as refused:
        client.login(heave.SMTP_USER, "wrong")
    assert refused.value.smtp_code == 535
    assert b"5.7.8" in refused.value.smtp_error


def test_unknown_client(gateway):
    with gateway.smtp() as client, pytest.raises(smtplib.SMTPAuthenticationError) as refused:
        client.login("nobody", "whatever")
    assert refused.value.smtp_code == 535


def test_foreign_network_may_not_relay(tmp_path, sim):
    clients = [{"name": "lab", "networks": ["192.0.2.0/24"], "from": ["*"]},
               {"name": "monitor", "user": "monitor", "password_hash": heave.crypt_hash("pw"), "from": ["*"]}]
    gateway = heave.Gateway(tmp_path, sim, {"clients": clients})
    try:
        replies = raw_smtp(gateway.smtp_port, b"EHLO x\r\n", b"MAIL FROM:<a@contoso.test>\r\n",
                           b"RCPT TO:<b@example.net>\r\n")
        assert replies[2].startswith(("530 5.7.0", "554 5.7.1")), replies
        assert replies[3].startswith("503"), replies
    finally:
        assert gateway.stop() == 0


def test_sender_of_somebody_else(gateway):
    with gateway.smtp() as client:
        client.login(heave.SMTP_USER, heave.SMTP_PASSWORD)
        code, text = client.mail("ceo@fabrikam.test")
        assert code == 553 and b"5.7.1" in text, (code, text)
        client.rset()
        assert client.mail("ok@contoso.test")[0] == 250
        assert client.rcpt("a@contoso.test")[0] == 250
        code, text = client.data(heave.mime_message("ceo@fabrikam.test", "a@contoso.test"))
        assert code == 550 and b"5.7.1" in text, (code, text)


def test_51_megabytes(gateway):
    line = b"x" * 76 + b"\r\n"
    big = MESSAGE + line * (51 * 1024 * 1024 // len(line))
    with gateway.smtp() as client:
        client.ehlo()
        code, text = client.mail(SENDER, [f"SIZE={len(big)}"])
        assert code == 552 and b"5.3.4" in text, (code, text)
        client.rset()
        assert client.mail(SENDER)[0] == 250
        assert client.rcpt("a@contoso.test")[0] == 250
        code, text = client.data(big)
        assert code == 552 and b"5.3.4" in text, (code, text)
        assert client.noop()[0] == 250
    status, _, _ = heave.http("POST", f"{gateway.http}/v1/messages?from={SENDER}&to=a@contoso.test", big,
                              {"Authorization": f"Bearer {heave.API_KEY}", "Content-Type": "message/rfc822"})
    assert status == 413


@pytest.mark.parametrize("ending", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n"])
def test_bare_line_ends_never_end_a_message(gateway, clean_sim, ending):
    """SMTP smuggling (CVE-2023-51764): only CR LF . CR LF ends the data; a bare LF or CR refuses the message."""
    smuggled = b"MAIL FROM:<evil@contoso.test>\r\nRCPT TO:<victim@contoso.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
    replies = raw_smtp(gateway.smtp_port, b"EHLO x\r\n", b"MAIL FROM:<alerts@contoso.test>\r\n",
                       b"RCPT TO:<a@contoso.test>\r\n", b"DATA\r\n",
                       b"Subject: outer\r\n\r\nhello" + ending + smuggled + b"\r\n.\r\n", b"QUIT\r\n")
    assert replies[5].startswith("5"), replies
    assert "5.6.11" in replies[5] or "5.5.2" in replies[5] or "5.6.0" in replies[5], replies
    assert replies[6].startswith("221"), replies
    assert not [d for d in clean_sim.deliveries() if "victim" in d["recipient"]]


def test_10001_recipients(gateway):
    with gateway.smtp() as client:
        client.ehlo()
        assert client.mail(SENDER)[0] == 250
        for start in range(0, 10000, 500):
            client.sock.sendall(b"".join(b"RCPT TO:<u%d@contoso.test>\r\n" % i for i in range(start, start + 500)))
            for _ in range(500):
                assert client.getreply()[0] == 250
        code, text = client.rcpt("onemore@contoso.test")
        assert code == 452 and b"4.5.3" in text, (code, text)
        assert client.rset()[0] == 250


def test_invalid_json(gateway):
    headers = {"Authorization": f"Bearer {heave.API_KEY}", "Content-Type": "application/json"}
    status, answer_headers, body = heave.http("POST", f"{gateway.http}/v1/messages", b'{"from": ', headers)
    assert status == 400
    assert answer_headers["Content-Type"].startswith("application/problem+json")
    status, answer = gateway.post({"from": "a@contoso.test", "to": "b@contoso.test", "subjekt": "x", "text": "y"})
    assert status == 422 and answer["errors"][0]["pointer"] == "/subjekt", answer
    status, answer = gateway.post({"from": "a@contoso.test", "to": 7, "text": "y"})
    assert status == 422 and answer["errors"][0]["pointer"] == "/to", answer


def test_wrong_key(gateway):
    status, answer = gateway.post({"from": "a@contoso.test", "to": "b@contoso.test", "text": "y"}, key="wrong")
    assert status == 401 and answer["status"] == 401


def test_header_injection(gateway):
    status, answer = gateway.post({"from": "a@contoso.test", "to": "b@contoso.test", "text": "y",
                                   "subject": "x\r\nBcc: victim@contoso.test"})
    assert status == 422, answer


def test_full_queue(tmp_path, sim):
    """Above max_bytes: 452 4.3.1 and 503 with Retry-After, and acceptance again when there is room."""
    changes = {"queue": {"redis": "embedded", "data_dir": str(tmp_path / "data"), "max_bytes": "1MiB"},
               "roles": ["ingest"]}
    gateway = heave.Gateway(tmp_path, sim, changes)
    try:
        body = MESSAGE + b"y" * 60 + b"\r\n" + (b"z" * 76 + b"\r\n") * 3000
        accepted = 0
        with gateway.smtp() as client:
            client.ehlo()
            for _ in range(20):
                client.mail(SENDER)
                client.rcpt("a@contoso.test")
                code, text = client.data(body)
                if code != 250:
                    break
                accepted += 1
        assert code == 452 and b"4.3.1" in text, (code, text)
        assert 2 <= accepted <= 6
        status, headers, _ = heave.http(
            "POST", f"{gateway.http}/v1/messages?from={SENDER}&to=a@contoso.test", body,
            {"Authorization": f"Bearer {heave.API_KEY}", "Content-Type": "message/rfc822"})
        assert status == 503 and int(headers["Retry-After"]) > 0
        gateway.stop()
        del gateway.conf["roles"]
        gateway.write_conf()
        gateway.start()
        heave.wait_until(lambda: gateway.metric("heave_queue_messages_open") == 0, 30, "the queue to empty")
        assert gateway.send(SENDER, ["a@contoso.test"], body)
    finally:
        assert gateway.stop() == 0


def test_redis_down(tmp_path, sim):
    """Redis stopped: 451 4.3.0 and 503, never 5xx otherwise; accepted again by itself when it runs on."""
    gateway = heave.Gateway(tmp_path, sim)
    try:
        before = gateway.send(SENDER, ["before@contoso.test"], MESSAGE)
        gateway.wait_states(before, {"delivered": 1})
        os.kill(gateway.redis_pid(), signal.SIGKILL)
        codes = set()

        def refused():
            with gateway.smtp() as client:
                client.ehlo()
                code, text = client.mail(SENDER)
                if code == 250:
                    client.rcpt("a@contoso.test")
                    code, text = client.data(MESSAGE)
                codes.add(code)
                return code == 451 and b"4.3.0" in text
        recovered = heave.wait_until(lambda: refused() or gateway.is_ready(), 10, "a reply")
        assert recovered
        assert codes <= {250, 451}, codes
        heave.wait_until(gateway.is_ready, 30, "Redis to be back")
        after = gateway.send(SENDER, ["after@contoso.test"], MESSAGE)
        gateway.wait_states(after, {"delivered": 1})
        gateway.wait_states(before, {"delivered": 1})
    finally:
        assert gateway.stop() == 0


def test_redis_stays_away(tmp_path, sim):
    """An external Redis that is gone: every protocol says so politely for as long as it lasts."""
    changes = {"queue": {"redis": f"redis://127.0.0.1:{heave.free_port()}/0"}}
    gateway = heave.Gateway(tmp_path, sim, changes, start=False)
    gateway.start(ready=False)
    try:
        heave.wait_until(gateway.is_alive, 20, "the process to live")
        assert not gateway.is_ready()
        with gateway.smtp() as client:
            client.ehlo()
            code, text = client.mail(SENDER)
            assert code == 451 and b"4.3.0" in text, (code, text)
        status, answer = gateway.post({"from": "a@contoso.test", "to": "b@contoso.test", "text": "y"})
        assert status == 503, answer
    finally:
        assert gateway.stop() == 0


def test_http_smuggling_is_refused(gateway):
    with socket.create_connection(("127.0.0.1", gateway.http_port), 30) as sock:
        sock.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert answer.status == 400


def test_too_many_errors_end_the_session(gateway):
    with gateway.smtp() as client:
        client.ehlo()
        code = 500
        for _ in range(60):
            code, _ = client.docmd("NONSENSE")
            if code == 421:
                break
        assert code == 421


@pytest.mark.parametrize("header", [
    "From: Me <alerts@contoso.test>, CEO <ceo@fabrikam.test>",
    "From: alerts@contoso.test\r\nFrom: ceo@fabrikam.test",
    'From: "CEO <ceo@fabrikam.test>',
], ids=["second mailbox", "second field", "unreadable"])
def test_every_from_is_checked(gateway, header):
    """A client bound to senders may not hide another one behind the first mailbox, or in a field no parser reads."""
    with gateway.smtp() as client:
        client.login(heave.SMTP_USER, heave.SMTP_PASSWORD)
        assert client.mail("alerts@contoso.test")[0] == 250
        assert client.rcpt("a@contoso.test")[0] == 250
        code, text = client.data(f"{header}\r\nTo: a@contoso.test\r\nSubject: x\r\n\r\nhi\r\n".encode())
        assert code == 550 and b"5.7.1" in text, (code, text)
