"""heave-load against the gateway, and against servers that answer badly: what it says is what happened."""
import contextlib
import json
import pathlib
import socket
import subprocess
import threading

import heave
import pytest

LOAD = heave.BUILD / "heave-load"


def load(kind, *flags, code=0):
    """Runs heave-load to its end; returns its line of JSON."""
    done = subprocess.run([str(a) for a in (LOAD, kind, *flags)], capture_output=True, text=True,
                          timeout=120 * heave.PATIENCE)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout)


def check_shape(result):
    assert set(result) >= {"accepted", "accepted_per_s", "p50_ms", "p95_ms", "p99_ms", "max_ms", "errors", "seconds",
                           "bytes"}
    assert 0 <= result["p50_ms"] <= result["p95_ms"] <= result["p99_ms"] <= result["p999_ms"] <= result["max_ms"]
    if result["accepted"] > 0:
        assert result["max_ms"] > 0 and result["seconds"] > 0
        assert result["accepted_per_s"] == pytest.approx(result["accepted"] / result["seconds"], rel=0.01, abs=0.1)


def all_delivered(gateway, ids, messages, recipients=1):
    """Every id is a message of its own, and each of its recipients ends delivered."""
    lines = pathlib.Path(ids).read_text().split()
    assert len(lines) == len(set(lines)) == messages
    for message_id in lines:
        gateway.wait_states(message_id, {"delivered": recipients}, 60)


def smtp_flags(gateway, ids, **more):
    flags = {"server": f"127.0.0.1:{gateway.smtp_port}", "from": "alerts@contoso.test", "to": "team@contoso.test",
             "ids": ids, **more}
    return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


def distinct_message_ids(sim, count):
    assert len({d["message_id"] for d in sim.deliveries()}) == count


@pytest.mark.parametrize("extra", [[], ["--no-pipelining"], ["--one-per-connection"]],
                         ids=["pipelined", "awaiting", "one-per-connection"])
def test_smtp(tmp_path, clean_sim, gateway, extra):
    ids = tmp_path / "ids"
    before = gateway.metric("heave_sessions_total", protocol="smtp")
    result = load("smtp", *smtp_flags(gateway, ids, messages=60, connections=6, size=5000), *extra)
    check_shape(result)
    assert (result["accepted"], result["failed"], result["errors"]) == (60, 0, {})
    assert result["bytes"] > 60 * 5000
    all_delivered(gateway, ids, 60)
    distinct_message_ids(clean_sim, 60)
    assert clean_sim.summary()["hve"]["duplicates"] == 0
    sessions = 60 if "--one-per-connection" in extra else 6
    heave.wait_until(lambda: gateway.metric("heave_sessions_total", protocol="smtp") - before == sessions,
                     what=f"{sessions} ended sessions")


def test_smtp_many_recipients(tmp_path, clean_sim, gateway):
    ids = tmp_path / "ids"
    result = load("smtp", *smtp_flags(gateway, ids, messages=3, recipients=120, connections=2))
    assert (result["accepted"], result["recipients"]) == (3, 360)
    all_delivered(gateway, ids, 3, 120)
    assert {d["recipient"] for d in clean_sim.deliveries()} == {f"team{i}@contoso.test" for i in range(1, 121)}


@pytest.mark.parametrize("extra", [[], ["--auth-login"]], ids=["plain", "login"])
def test_smtp_auth(tmp_path, clean_sim, gateway, extra):
    ids = tmp_path / "ids"
    result = load("smtp", *smtp_flags(gateway, ids, messages=4, connections=2,
                                      auth=f"{heave.SMTP_USER}:{heave.SMTP_PASSWORD}"), *extra)
    assert result["accepted"] == 4
    all_delivered(gateway, ids, 4)
    first = pathlib.Path(ids).read_text().split()[0]
    assert gateway.status(first)["client"] == "monitor"


def test_wrong_password_ends_the_run(tmp_path, gateway):
    result = load("smtp", *smtp_flags(gateway, tmp_path / "ids", messages=500, connections=2,
                                      auth=f"{heave.SMTP_USER}:wrong"), code=1)
    check_shape(result)
    assert result["accepted"] == 0 and result["failed"] <= 2
    assert [kind.split()[0] for kind in result["errors"]] == ["535"]


def test_refused_recipients_are_no_success(tmp_path, gateway):
    # This client may send from its own domain only: every RCPT or MAIL is refused, 5xx.
    result = load("smtp", *smtp_flags(gateway, tmp_path / "ids", messages=5, connections=1,
                                      auth=f"{heave.SMTP_USER}:{heave.SMTP_PASSWORD}",
                                      **{"from": "someone@elsewhere.test"}), code=1)
    assert (result["accepted"], result["failed"]) == (0, 5)
    assert list(result["errors"].values()) == [5] and list(result["errors"])[0].startswith("5")


def test_smtp_starttls_to_the_simulator(clean_sim):
    result = load("smtp", "--server", f"localhost:{clean_sim.ports['hve']}", "--tls", "--ca-file", clean_sim.ca,
                  "--auth", f"{heave.HVE_ACCOUNT}:hve-password", "--from", heave.HVE_ACCOUNT,
                  "--to", "to@contoso.test", "--messages", 20, "--connections", 2, "--recipients", 3)
    assert (result["accepted"], result["recipients"], result["errors"]) == (20, 60, {})
    summary = clean_sim.summary()["hve"]
    assert (summary["transactions"], summary["recipients"], summary["duplicates"]) == (20, 60, 0)


def test_smtp_with_tls_from_the_first_byte(tmp_path):
    sim = heave.Simulator(tmp_path / "sim", "--hve-tls", "implicit")
    try:
        result = load("smtp", "--server", f"localhost:{sim.ports['hve']}", "--tls-implicit", "--ca-file", sim.ca,
                      "--auth", f"{heave.HVE_ACCOUNT}:hve-password", "--from", heave.HVE_ACCOUNT,
                      "--to", "to@contoso.test", "--messages", 6, "--one-per-connection", "--size", 1048576)
        assert (result["accepted"], result["errors"]) == (6, {})
        assert sim.summary()["hve"]["transactions"] == 6
    finally:
        sim.stop()


def test_https(tmp_path, sim):
    changes = {"tls": {"cert_file": str(sim.folder / "server.pem"), "key_file": str(sim.folder / "server.key")}}
    gateway = heave.Gateway(tmp_path, sim, changes, start=False)
    gateway.conf["listeners"].append({"protocol": "http", "bind": f"127.0.0.1:{gateway.tls_port}", "tls": "implicit"})
    gateway.write_conf()
    gateway.start()
    try:
        flags = ["--url", f"https://localhost:{gateway.tls_port}", "--key", heave.API_KEY, "--from",
                 "erp@contoso.test", "--to", "team@contoso.test", "--messages", 10, "--connections", 2]
        result = load("http", *flags, "--ca-file", sim.ca, "--ids", tmp_path / "ids")
        assert (result["accepted"], result["errors"]) == (10, {})
        all_delivered(gateway, tmp_path / "ids", 10)
        assert list(load("http", *flags, code=1)["errors"]) == ["certificate"]
    finally:
        assert gateway.stop() == 0


def test_an_unknown_certificate_ends_the_run(clean_sim):
    result = load("smtp", "--server", f"localhost:{clean_sim.ports['hve']}", "--tls", "--from", heave.HVE_ACCOUNT,
                  "--to", "to@contoso.test", "--messages", 50, code=1)
    assert (result["accepted"], result["errors"]) == (0, {"certificate": 1})


@pytest.mark.parametrize("extra", [[], ["--one-per-connection"]], ids=["kept", "one-per-connection"])
def test_http(tmp_path, clean_sim, gateway, extra):
    ids = tmp_path / "ids"
    result = load("http", "--url", f"{gateway.http}/v1/messages", "--key", heave.API_KEY, "--from",
                  "erp@contoso.test", "--to", "team@contoso.test", "--messages", 40, "--connections", 4,
                  "--recipients", 3, "--size", 3000, "--ids", ids, *extra)
    check_shape(result)
    assert (result["accepted"], result["recipients"], result["errors"]) == (40, 120, {})
    all_delivered(gateway, ids, 40, 3)
    distinct_message_ids(clean_sim, 40)


def test_http_wrong_key_ends_the_run(tmp_path, gateway):
    result = load("http", "--url", gateway.http, "--key", "wrong", "--from", "erp@contoso.test",
                  "--to", "team@contoso.test", "--messages", 500, "--connections", 2, code=1)
    assert result["accepted"] == 0 and result["failed"] <= 2
    assert list(result["errors"]) == ["401"]


def test_rate_is_kept(tmp_path, clean_sim, gateway):
    result = load("smtp", *smtp_flags(gateway, tmp_path / "ids", messages=40, connections=3, rate="40/s"))
    # The first leaves at once, the 40th after 39/40 of a second; it may be late, never early.
    assert result["accepted"] == 40 and 0.97 <= result["seconds"] < 3 * heave.PATIENCE


def test_duration_ends_the_run(tmp_path, clean_sim, gateway):
    result = load("smtp", *smtp_flags(gateway, tmp_path / "ids", connections=3, rate="50/s", duration=1))
    assert 10 <= result["accepted"] <= 51 and result["failed"] == 0
    all_delivered(gateway, tmp_path / "ids", result["accepted"])


def test_an_interrupted_run_says_what_it_did(tmp_path, clean_sim, gateway):
    ids = tmp_path / "ids"
    flags = smtp_flags(gateway, ids, messages=100000, connections=2, rate="20/s")
    before = gateway.metric("heave_messages_total")
    child = subprocess.Popen([str(LOAD), "smtp", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        heave.wait_until(lambda: gateway.metric("heave_messages_total") - before >= 3, what="three messages")
        child.terminate()
        out, errors = child.communicate(timeout=20 * heave.PATIENCE)
    finally:
        child.kill()
        child.wait()
    result = json.loads(out)
    assert child.returncode == 1, errors
    assert 3 <= result["accepted"] < 100000 and result["failed"] == 0
    all_delivered(gateway, ids, result["accepted"])


# ---- Servers that answer badly ----

class Script(threading.Thread):
    """A server that plays one scripted session after the other: each is a function of the accepted socket."""

    def __init__(self, *sessions):
        super().__init__(daemon=True)
        self.sessions, self.mistake = sessions, None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(30 * heave.PATIENCE)
        self.server = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.start()

    def run(self):
        try:
            with self.listener:
                for session in self.sessions:
                    client, _ = self.listener.accept()
                    client.settimeout(30 * heave.PATIENCE)
                    with client, client.makefile("rb") as lines:
                        session(client, lines)
        except Exception as error:  # seen by finish()
            self.mistake = error

    def finish(self):
        self.join(40 * heave.PATIENCE)
        assert not self.is_alive() and self.mistake is None, self.mistake


def expect(lines, word):
    line = lines.readline()
    assert line.upper().startswith(word), (line, word)


def begin(client, lines, pipelining=False):
    client.sendall(b"220 script\r\n")
    expect(lines, b"EHLO")
    client.sendall(b"250-script\r\n250-PIPELINING\r\n250 8BITMIME\r\n" if pipelining else b"250 script\r\n")


def take_content(lines):
    while lines.readline() not in (b".\r\n", b""):
        pass


def take_message(client, lines, answer):
    for word, reply in ((b"MAIL", b"250 ok\r\n"), (b"RCPT", b"250 ok\r\n"), (b"DATA", b"354 go\r\n")):
        expect(lines, word)
        client.sendall(reply)
    take_content(lines)
    client.sendall(answer)


def quit_session(client, lines):
    expect(lines, b"QUIT")
    client.sendall(b"221 bye\r\n")


def scripted(*sessions, flags=(), kind="smtp", code=1):
    script = Script(*sessions)
    result = load(kind, "--server", script.server, "--to", "a@b.test", "--timeout", 20, *flags, code=code)
    script.finish()
    return result


def test_a_temporary_refusal_is_counted_and_not_repeated():
    def session(client, lines):
        begin(client, lines)
        take_message(client, lines, b"452 4.3.1 full\r\n")
        take_message(client, lines, b"250 2.0.0 Ok: queued as X1\r\n")
        quit_session(client, lines)
    result = scripted(session, flags=["--messages", 2])
    assert (result["accepted"], result["failed"], result["errors"]) == (1, 1, {"452 4.3.1": 1})


def test_a_temporary_refusal_is_repeated_when_asked(tmp_path):
    seen = []

    def session(client, lines):
        begin(client, lines)
        for answer in (b"451 4.3.0 later\r\n", b"250 2.0.0 Ok: queued as X1\r\n"):
            for word, reply in ((b"MAIL", b"250 ok\r\n"), (b"RCPT", b"250 ok\r\n"), (b"DATA", b"354 go\r\n")):
                expect(lines, word)
                client.sendall(reply)
            for line in iter(lines.readline, b".\r\n"):
                if line.startswith(b"Message-ID:"):
                    seen.append(line)
            client.sendall(answer)
        quit_session(client, lines)
    result = scripted(session, flags=["--retry", "--ids", tmp_path / "ids"], code=0)
    assert (result["accepted"], result["retried"], result["errors"]) == (1, 1, {"451 4.3.0": 1})
    assert len(seen) == 2 and seen[0] == seen[1]
    assert (tmp_path / "ids").read_text() == "X1\n"


def test_a_connection_lost_before_the_answer():
    def session(client, lines):
        begin(client, lines)
        for word, reply in ((b"MAIL", b"250 ok\r\n"), (b"RCPT", b"250 ok\r\n"), (b"DATA", b"354 go\r\n")):
            expect(lines, word)
            client.sendall(reply)
        take_content(lines)
    result = scripted(session)
    assert (result["accepted"], result["failed"], result["errors"]) == (0, 1, {"closed": 1})


def test_some_recipients_refused():
    def session(client, lines):
        begin(client, lines, pipelining=True)
        for word, reply in ((b"MAIL", b"250 ok\r\n"), (b"RCPT", b"250 ok\r\n"), (b"RCPT", b"550 5.1.1 who\r\n"),
                            (b"RCPT", b"250 ok\r\n"), (b"DATA", b"354 go\r\n")):
            expect(lines, word)
            client.sendall(reply)
        take_content(lines)
        client.sendall(b"250 ok\r\n")
        quit_session(client, lines)
    result = scripted(session, flags=["--recipients", 3])
    assert (result["accepted"], result["recipients"], result["errors"]) == (1, 2, {"550 5.1.1": 1})


def test_all_recipients_refused_and_data_taken():
    """RFC 2920 3.1: the client answers a 354 it cannot use with the dot alone."""
    def session(client, lines):
        begin(client, lines, pipelining=True)
        for word, reply in ((b"MAIL", b"250 ok\r\n"), (b"RCPT", b"550 no\r\n"), (b"RCPT", b"550 no\r\n"),
                            (b"DATA", b"354 go\r\n")):
            expect(lines, word)
            client.sendall(reply)
        assert lines.readline() == b".\r\n"
        client.sendall(b"554 no valid recipients\r\n")
        quit_session(client, lines)
    result = scripted(session, flags=["--recipients", 2])
    assert (result["accepted"], result["failed"], result["errors"]) == (0, 1, {"550": 2, "no recipient": 1})


def test_the_session_is_reset_after_a_refused_sender():
    def session(client, lines):
        begin(client, lines, pipelining=True)
        for word, reply in ((b"MAIL", b"550 5.7.1 not you\r\n"), (b"RCPT", b"503 5.5.1 MAIL first\r\n"),
                            (b"DATA", b"503 5.5.1 MAIL first\r\n"), (b"RSET", b"250 ok\r\n")):
            expect(lines, word)
            client.sendall(reply)
        quit_session(client, lines)
    result = scripted(session)
    assert (result["failed"], result["errors"]) == (1, {"550 5.7.1": 1})


def test_a_server_that_shuts_down_between_messages():
    """421 while a message is refused ends that session; the next message opens another."""
    def first(client, lines):
        begin(client, lines)
        expect(lines, b"MAIL")
        client.sendall(b"421 4.3.2 shutting down\r\n")

    def second(client, lines):
        begin(client, lines)
        take_message(client, lines, b"250 ok\r\n")
        quit_session(client, lines)
    result = scripted(first, second, flags=["--messages", 2])
    assert (result["accepted"], result["failed"], result["errors"]) == (1, 1, {"421 4.3.2": 1})


def test_what_is_no_smtp():
    def session(client, lines):
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert lines.readline() == b""
    result = scripted(session)
    assert result["errors"] == {"protocol": 1}


def test_a_silent_server_times_out():
    def session(client, lines):
        assert lines.readline() == b""
    result = scripted(session, flags=["--timeout", 1])
    assert result["errors"] == {"timeout": 1}


def test_nobody_listens():
    result = load("smtp", "--server", f"127.0.0.1:{heave.free_port()}", "--to", "a@b.test", "--messages", 3, code=1)
    assert (result["failed"], result["errors"]) == (3, {"connect": 3})


def take_request(lines):
    length = 0
    headers = []
    for line in iter(lines.readline, b"\r\n"):
        headers.append(line)
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return headers, json.loads(lines.read(length))


def test_http_retry_keeps_the_idempotency_key(tmp_path):
    keys = []

    def session(client, lines):
        for answer in (b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
                       b"HTTP/1.1 202 Accepted\r\nLocation: /v1/messages/M1\r\nTransfer-Encoding: chunked\r\n\r\n"
                       b"2\r\n{}\r\n0\r\n\r\n"):
            headers, body = take_request(lines)
            keys.extend(h for h in headers if h.lower().startswith(b"idempotency-key:"))
            assert body["to"] == ["a1@b.test", "a2@b.test"] and len(body["text"]) == 100
            client.sendall(answer)
        assert lines.readline() == b""
    result = scripted(session, kind="http", code=0,
                      flags=["--retry", "--recipients", 2, "--size", 100, "--ids", tmp_path / "ids"])
    assert (result["accepted"], result["retried"], result["errors"]) == (1, 1, {"503": 1})
    assert result["seconds"] >= 1
    assert len(keys) == 2 and keys[0] == keys[1]
    assert (tmp_path / "ids").read_text() == "M1\n"


def test_http_server_that_closes_after_each_answer():
    def session(client, lines):
        take_request(lines)
        client.sendall(b"HTTP/1.1 202 Accepted\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert lines.readline() == b""
    result = scripted(session, session, session, kind="http", code=0, flags=["--messages", 3])
    assert (result["accepted"], result["errors"]) == (3, {})


def test_what_is_no_http():
    def session(client, lines):
        take_request(lines)
        client.sendall(b"220 smtp here\r\n")
        with contextlib.suppress(ConnectionError):
            assert lines.readline() == b""
    result = scripted(session, kind="http")
    assert result["errors"] == {"protocol": 1}


def test_wrong_usage():
    for flags in (["bulk", "--to", "a@b.test"], ["smtp"], ["smtp", "--to", "a@b.test", "--insecure"], []):
        done = subprocess.run([str(LOAD), *flags], capture_output=True, text=True, timeout=20)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("heave-load: "), done
