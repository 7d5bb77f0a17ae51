#!/usr/bin/env python3
"""Proves heave-sim with software nobody here wrote, and with raw requests where no client can be made to misbehave.

    tests/system/sim_clients.py [--build DIR]        prints PASS/FAIL lines; exit 0 when all passed
    pytest tests/system/sim_clients.py               the same checks as tests

Needs node, npm and swaks. The npm packages of tests/system/sim are installed when they are not there yet. HEAVE_BUILD
names the build directory.
"""
import base64
import hashlib
import hmac
import json
import os
import pathlib
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import uuid
from email.utils import formatdate

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("HEAVE_BUILD", HERE.parent.parent / "build"))
PATIENCE = float(os.environ.get("HEAVE_TEST_PATIENCE", "1"))
ACS_KEY = "aGVhdmUtc2ltLWFjcy1hY2Nlc3Mta2V5LTAxMjM0NTY3"
HVE = "hve@contoso.test"
GRAPH_SCOPE = "https://graph.microsoft.com/.default"


class Sim:
    """One heave-sim in a directory of its own."""

    def __init__(self, *flags):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="heave-sim-"))
        self.bodies = self.dir / "bodies"
        self.log = open(self.dir / "sim.log", "wb")
        self.child = subprocess.Popen(
            [str(BUILD / "heave-sim"), "--dir", str(self.dir), "--keep-bodies", str(self.bodies), *flags],
            stdout=subprocess.PIPE, stderr=self.log)
        line = self.child.stdout.readline()
        assert line, (self.dir / "sim.log").read_text()
        self.ports = json.loads(line)
        assert self.ports["ready"] is True
        assert json.loads((self.dir / "sim.json").read_text()) == self.ports
        self.tls = ssl.create_default_context(cafile=str(self.dir / "ca.pem"))

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.child.send_signal(signal.SIGTERM)
        code = self.child.wait(20 * PATIENCE)
        self.log.close()
        errors = (self.dir / "sim.log").read_text()
        shutil.rmtree(self.dir)
        if kind is None:
            assert code == 0, f"heave-sim ended with {code}: {errors}"
            assert errors == "", errors

    def control(self, method, target, value=None):
        body = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['control']}{target}", data=body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30 * PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def summary(self, service):
        return json.loads(self.control("GET", "/summary")[1])[service]

    def deliveries(self, **query):
        _, body = self.control("GET", "/deliveries?" + urllib.parse.urlencode(query))
        return [json.loads(line) for line in body.splitlines()]

    def fault(self, **spec):
        status, body = self.control("POST", "/fault", spec)
        assert status == 200, body

    def request(self, service, method, target, body=b"", headers=None, timeout=30):
        """(status, headers, body) of one request over verified TLS."""
        url = f"https://localhost:{self.ports[service]}{target}"
        request = urllib.request.Request(url, data=body or None, method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=timeout * PATIENCE, context=self.tls) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def acs(self, method, target, body=b"", key=ACS_KEY, age=0, headers=None, **options):
        """A request signed as services.md 2.4 says."""
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        date = formatdate(time.time() - age, usegmt=True)
        text = f"{method}\n{target}\n{date};localhost:{self.ports['acs']};{digest}"
        mac = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
        return self.request("acs", method, target, body, {
            "Content-Type": "application/json", "x-ms-date": date, "x-ms-content-sha256": digest,
            "Authorization": f"HMAC-SHA256 SignedHeaders=x-ms-date;host;x-ms-content-sha256&Signature={mac}",
            **(headers or {})}, **options)

    def acs_send(self, to="a@example.com", **options):
        body = json.dumps({"senderAddress": "no-reply@contoso.test", "content": {"subject": "s", "plainText": "p"},
                           "recipients": {"to": [{"address": to}]}}).encode()
        return self.acs("POST", "/emails:send?api-version=2023-03-31", body, **options)

    def token(self, scope=GRAPH_SCOPE, tenant="sim", **fields):
        form = {"grant_type": "client_credentials", "client_id": "heave", "client_secret": "sim-secret", "scope": scope}
        form.update(fields)
        form = {name: value for name, value in form.items() if value is not None}
        status, _, body = self.request("token", "POST", f"/{tenant}/oauth2/v2.0/token",
                                       urllib.parse.urlencode(form).encode())
        return status, json.loads(body)

    def graph_send(self, token, to="a@example.com", mailbox="notify1@contoso.test", **options):
        body = json.dumps({"message": {"subject": "s", "toRecipients": [{"emailAddress": {"address": to}}]}}).encode()
        return self.request("graph", "POST", f"/v1.0/users/{mailbox}/sendMail", body,
                            {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}, **options)

    def smtp(self, login=True):
        client = smtplib.SMTP("localhost", self.ports["hve"], timeout=30 * PATIENCE)
        client.starttls(context=self.tls)
        client.ehlo()
        if login:
            client.login(HVE, "hve-password")
        return client


def reply(answer):
    code, text = answer
    return f"{code} {text.decode()}"


def message(mid="<m@test>", body=b"text\r\n", sender=HVE):
    return f"From: {sender}\r\nTo: x@contoso.test\r\nSubject: s\r\nMessage-ID: {mid}\r\n\r\n".encode() + body


def code_of(body):
    return json.loads(body)["error"]["code"]


# Official clients.

def run_node(sim, script):
    folder = HERE / "sim"
    if not (folder / "node_modules").is_dir():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, stdout=sys.stderr)
    result = subprocess.run(["node", script], cwd=folder, capture_output=True, text=True, timeout=300 * PATIENCE, env={
        **os.environ, "HEAVE_SIM_DIR": str(sim.dir), "NODE_EXTRA_CA_CERTS": str(sim.dir / "ca.pem")})
    sys.stdout.write(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


def test_acs_sdk():
    with Sim("--acs-quota", "off", "--acs-poll", "1") as sim:
        run_node(sim, "acs.js")


def test_graph_sdk():
    with Sim() as sim:
        run_node(sim, "graph.js")


def test_nodemailer():
    with Sim() as sim:
        run_node(sim, "hve.js")


def swaks(sim, *args):
    result = subprocess.run(
        ["swaks", "--server", f"localhost:{sim.ports['hve']}", "--tls", "--tls-verify", "--tls-ca-path",
         str(sim.dir / "ca.pem"), "--auth", "LOGIN", "--auth-user", HVE, "--from", HVE, *args],
        capture_output=True, text=True, timeout=60 * PATIENCE)
    return result.returncode, result.stdout + result.stderr


def test_swaks():
    with Sim() as sim:
        code, text = swaks(sim, "--auth-password", "hve-password", "--to", "a@contoso.test,b@contoso.test")
        assert code == 0 and " 250 2.6.0 " in text, text
        assert [d["recipient"] for d in sim.deliveries()] == ["a@contoso.test", "b@contoso.test"]
        code, text = swaks(sim, "--auth-password", "wrong", "--to", "a@contoso.test")
        assert code == 28 and "535 5.7.3 Authentication unsuccessful" in text, text
        many = ",".join(f"u{i}@contoso.test" for i in range(51))
        code, text = swaks(sim, "--auth-password", "hve-password", "--to", many)
        assert "452 4.5.3 Too many recipients" in text, text
        seen = sim.summary("hve")
        assert (seen["transactions"], seen["recipients"], seen["max_recipients"]) == (2, 52, 50), seen
        assert (seen["auth_failures"], seen["throttled"], seen["duplicates"]) == (1, 1, 0), seen


def test_curl_http2():
    with Sim() as sim:
        out = subprocess.run(
            ["curl", "-sS", "--http2", "--cacert", str(sim.dir / "ca.pem"), "-o", "/dev/null", "-w",
             "%{http_version} %{http_code}", f"https://localhost:{sim.ports['graph']}/v1.0/users/a/sendMail", "-d", "{}"],
            capture_output=True, text=True, timeout=30 * PATIENCE)
        assert out.stdout == "2 401", out.stdout + out.stderr


# HVE, by hand.

def test_hve_session_rules():
    with Sim() as sim:
        client = smtplib.SMTP("localhost", sim.ports["hve"], timeout=30 * PATIENCE)
        client.ehlo()
        assert client.has_extn("starttls") and not client.has_extn("auth")
        assert reply(client.docmd("AUTH", "LOGIN")).startswith("504 5.7.4")
        assert reply(client.docmd("MAIL", f"FROM:<{HVE}>")).startswith("530 5.7.57")
        client.starttls(context=sim.tls)
        client.ehlo()
        assert client.esmtp_features["auth"].split() == ["LOGIN", "XOAUTH2"]
        for name in ("pipelining", "dsn", "enhancedstatuscodes", "8bitmime", "chunking", "binarymime", "smtputf8"):
            assert client.has_extn(name), name
        assert client.esmtp_features["size"] == "10485760"
        client.login(HVE, "hve-password")
        assert reply(client.docmd("MAIL", "FROM:<other@contoso.test>")).startswith("550 5.7.62")
        assert reply(client.docmd("MAIL", f"FROM:<{HVE}> SIZE=20000000")).startswith("552 5.3.4")
        assert reply(client.docmd("MAIL", f"FROM:<{HVE}>")) == "250 2.1.0 Sender OK"
        assert reply(client.docmd("RCPT", "TO:<a@example.com>")).startswith("550 5.7.1")
        assert reply(client.docmd("DATA")).startswith("554 5.5.1")
        assert client.quit()[0] == 221
        assert sim.summary("hve")["transactions"] == 0


def raw_smtp(sim):
    """A session after AUTH, as a socket: smtplib repairs what some tests must break."""
    client = sim.smtp()
    client.sock.settimeout(30 * PATIENCE)
    return client, client.sock


def read_replies(sock, count):
    text = b""
    while text.count(b"\r\n") < count:
        piece = sock.recv(65536)
        assert piece, text
        text += piece
    return text.decode().split("\r\n")[:-1]


def test_hve_pipelining_and_bytes():
    """A whole session in one write, the message cut at every place where the parser must wait."""
    body = message("<bytes@test>", b"..\r\n.\r.x\r\n....\r\n" + "ä".encode() + b"\r\n" * 3 + b"end\r\n")
    stuffed = body.replace(b"\r\n.", b"\r\n..")
    with Sim() as sim:
        client, sock = raw_smtp(sim)
        head = f"MAIL FROM:<{HVE}>\r\nRCPT TO:<a@contoso.test>\r\nRCPT TO:<B@CONTOSO.test>\r\nDATA\r\n".encode()
        sock.sendall(head + stuffed + b".\r\n" + head + stuffed + b".\r\nQUIT\r\n")
        codes = [line[:3] for line in read_replies(sock, 11)]
        assert codes == ["250", "250", "250", "354", "250"] * 2 + ["221"], codes
        client.close()
        for transaction in (1, 2):
            assert (sim.bodies / f"hve-{transaction}.eml").read_bytes() == body
        client, sock = raw_smtp(sim)
        for cut in range(1, len(stuffed) + 3):
            sock.sendall(head)
            assert read_replies(sock, 4)[3][:3] == "354"
            wire = stuffed + b".\r\n"
            sock.sendall(wire[:cut])
            sock.sendall(wire[cut:])
            assert read_replies(sock, 1)[0][:3] == "250"
            assert (sim.bodies / f"hve-{cut + 2}.eml").read_bytes() == body, f"cut at {cut}"
        client.close()
        seen = sim.summary("hve")
        assert seen["distinct_recipients"] == 2 and seen["duplicates"] == seen["recipients"] - 2, seen


def test_hve_latency_keeps_the_order():
    """Commands that stand in the pipe behind a slow answer wait for it."""
    with Sim("--hve-latency-ms", "50") as sim:
        client, sock = raw_smtp(sim)
        one = f"MAIL FROM:<{HVE}>\r\nRCPT TO:<a@contoso.test>\r\nDATA\r\n".encode() + message() + b".\r\n"
        start = time.monotonic()
        sock.sendall(one * 4 + b"QUIT\r\n")
        codes = [line[:3] for line in read_replies(sock, 17)]
        assert codes == ["250", "250", "354", "250"] * 4 + ["221"], codes
        assert time.monotonic() - start >= 0.2
        client.close()


def test_hve_bdat():
    with Sim() as sim:
        client, sock = raw_smtp(sim)
        body = message("<bdat@test>", b"bare\nline feeds are legal here\r\n")
        sock.sendall(f"MAIL FROM:<{HVE}> BODY=BINARYMIME\r\nRCPT TO:<a@contoso.test>\r\nBDAT 20\r\n".encode()
                     + body[:20] + f"BDAT {len(body) - 20}\r\n".encode() + body[20:] + b"BDAT 0 LAST\r\n")
        codes = [line[:3] for line in read_replies(sock, 5)]
        assert codes == ["250"] * 5, codes
        assert (sim.bodies / "hve-1.eml").read_bytes() == body
        client.close()


def test_hve_refuses_bare_lf():
    with Sim() as sim:
        client, sock = raw_smtp(sim)
        sock.sendall(f"MAIL FROM:<{HVE}>\r\nRCPT TO:<a@contoso.test>\r\nDATA\r\n".encode()
                     + message(body=b"a\n.\nb\r\n") + b".\r\n")
        assert read_replies(sock, 4)[3].startswith("550 5.6.11 ")
        assert sim.summary("hve")["transactions"] == 0
        client.close()


def xoauth2(sim, token, user=HVE):
    client = sim.smtp(login=False)
    text = base64.b64encode(f"user={user}\x01auth=Bearer {token}\x01\x01".encode()).decode()
    first = reply(client.docmd("AUTH", "XOAUTH2"))
    assert first == "334 ", first
    answer = reply(client.docmd(text))
    client.close()
    return answer


def test_hve_tokens():
    scope = "https://outlook.office.com/.default"
    with Sim() as sim:
        assert xoauth2(sim, sim.token(scope)[1]["access_token"]).startswith("235 2.7.0")
        assert xoauth2(sim, sim.token()[1]["access_token"]).startswith("535 5.7.3 ")
        assert xoauth2(sim, sim.token(scope)[1]["access_token"], "x@contoso.test").startswith("535 5.7.3 ")
        sim.fault(service="token", kind="token_expired", count=1)
        assert xoauth2(sim, sim.token(scope)[1]["access_token"]).startswith("535 5.7.143")
    with Sim("--token-lifetime", "300") as sim:
        assert xoauth2(sim, sim.token(scope)[1]["access_token"]).startswith("535 5.7.142")
    with Sim("--token-roles", "none") as sim:
        assert xoauth2(sim, sim.token(scope)[1]["access_token"]).startswith("535 5.7.144")


def test_hve_faults():
    with Sim("--fault", "hve:reply:phase=rcpt:match=bob@:count=1:text=550 5.1.10 RESOLVER.ADR.RecipientNotFound") as sim:
        client = sim.smtp()
        client.docmd("MAIL", f"FROM:<{HVE}>")
        assert reply(client.docmd("RCPT", "TO:<al@contoso.test>")).startswith("250")
        assert reply(client.docmd("RCPT", "TO:<bob@contoso.test>")) == "550 5.1.10 RESOLVER.ADR.RecipientNotFound"
        assert reply(client.data(message())).startswith("250 2.6.0 <m@test>")
        sim.fault(service="hve", kind="status", status=421, text="4.3.2 Service not available", phase="mail", count=1)
        assert reply(client.docmd("MAIL", f"FROM:<{HVE}>")) == "421 4.3.2 Service not available"
        client = sim.smtp()
        sim.fault(service="hve", kind="slow", delay_ms=300, count=1)
        start = time.monotonic()
        client.sendmail(HVE, ["c@contoso.test"], message("<slow@test>"))
        assert time.monotonic() - start >= 0.2  # timers count from the start of the loop's turn
        sim.fault(service="hve", kind="throttle", retry_after=1, count=1)
        for _ in range(2):  # the second is inside the closed period
            try:
                client.sendmail(HVE, ["c@contoso.test"], message("<later@test>"))
                raise AssertionError("accepted while closed")
            except smtplib.SMTPDataError as error:
                assert error.smtp_code == 432, error
        sim.fault(service="hve", kind="reset", phase="mail", count=1)
        try:
            client.docmd("MAIL", f"FROM:<{HVE}>")
            raise AssertionError("answered instead of reset")
        except (smtplib.SMTPServerDisconnected, OSError):
            pass
        sim.fault(service="hve", kind="hang", phase="accepted", count=1)
        time.sleep(1.0)  # the period above ends by the clock: there is no event to wait for
        client = sim.smtp()
        client.sock.settimeout(0.5 * PATIENCE)
        try:
            client.sendmail(HVE, ["d@contoso.test"], message("<hang@test>"))
            raise AssertionError("answered instead of hanging")
        except (smtplib.SMTPServerDisconnected, TimeoutError):
            assert len(sim.deliveries(message_id="<hang@test>")) == 1
        assert sim.summary("hve")["throttled"] == 3


def test_hve_without_tls_and_as_sink():
    with Sim("--hve-tls", "off") as sim:
        client = smtplib.SMTP("localhost", sim.ports["hve"], timeout=30 * PATIENCE)
        client.login(HVE, "hve-password")
        client.sendmail(HVE, ["a@contoso.test"], message())
    with Sim("--hve-tls", "implicit", "--hve-open", "--max-recipients", "500") as sim:
        client = smtplib.SMTP_SSL("localhost", sim.ports["hve"], context=sim.tls, timeout=30 * PATIENCE)
        client.sendmail("any@where.test", [f"u{i}@example.com" for i in range(500)], message(sender="x@y.test"))
        assert sim.summary("hve")["max_recipients"] == 500


# ACS, by hand.

def test_acs_signature():
    with Sim("--acs-quota", "off") as sim:
        assert sim.acs_send()[0] == 202
        assert sim.acs_send(age=200)[0] == 202
        for options in ({"age": 400}, {"age": -400}, {"key": base64.b64encode(b"x").decode()},
                        {"headers": {"x-ms-content-sha256": base64.b64encode(bytes(32)).decode()}},
                        {"headers": {"Authorization": "HMAC-SHA256 SignedHeaders=x-ms-date&Signature=x"}}):
            status, headers, body = sim.acs_send(**options)
            assert (status, headers["x-ms-error-code"], code_of(body)) == (401, "Denied", "Denied"), options
        token = sim.token()[1]["access_token"]  # for Graph, not for ACS
        assert sim.acs_send(headers={"Authorization": f"Bearer {token}"})[0] == 401
        assert sim.summary("acs")["auth_failures"] == 6


def test_acs_answers():
    with Sim("--acs-quota", "off", "--acs-running-ms", "200") as sim:
        operation = str(uuid.uuid4())
        status, headers, body = sim.acs_send(headers={"Operation-Id": operation})
        assert status == 202 and json.loads(body) == {"id": operation, "status": "Running"}
        assert headers["retry-after"] == "30"
        target = f"/emails/operations/{operation}?api-version=2023-03-31"
        assert headers["operation-location"] == f"https://localhost:{sim.ports['acs']}{target}"
        status, headers, body = sim.acs("GET", target)
        assert (status, json.loads(body)["status"]) in ((200, "Running"), (200, "Succeeded"))
        end = time.monotonic() + 20 * PATIENCE
        while json.loads(sim.acs("GET", target)[2])["status"] == "Running":
            assert time.monotonic() < end
            time.sleep(0.05)
        assert sim.acs("GET", f"/emails/operations/{uuid.uuid4()}?api-version=2023-03-31")[0] == 404
        assert code_of(sim.acs("POST", "/emails:send", b"{}")[2]) == "MissingApiVersionParameter"
        assert sim.acs("POST", "/emails:send?api-version=2023-03-31", b"{")[0] == 400
        assert sim.acs("POST", "/emails:send?api-version=2023-03-31", b" " * 10485761)[0] == 400


def test_acs_quota():
    with Sim("--acs-quota", "3/2s,100/h") as sim:
        for _ in range(3):
            assert sim.acs_send()[0] == 202
        status, headers, body = sim.acs_send()
        error = json.loads(body)["error"]
        assert (status, error["code"], headers["retry-after"]) == (429, "TooManyRequests", "2"), (error, headers)
        assert error["message"] == "PerSubscriptionPerMinuteLimitExceeded - Please try again after 2 seconds."
        # The refused request counted: one second later the window is still full of it and its neighbours.
        time.sleep(1.0)
        assert sim.acs_send()[0] == 429
        time.sleep(2.1)
        assert sim.acs_send()[0] == 202
        seen = sim.summary("acs")
        assert (seen["transactions"], seen["throttled"], seen["requests_during_retry_after"]) == (4, 2, 1), seen
    with Sim() as sim:
        codes = [sim.acs_send()[0] for _ in range(31)]
        assert codes == [202] * 30 + [429]
    with Sim("--acs-quota", "1000/m,5/h") as sim:
        codes = [sim.acs_send() for _ in range(6)]
        assert codes[5][0] == 429 and "PerSubscriptionPerHourLimitExceeded" in codes[5][2].decode()


def test_acs_faults():
    with Sim("--acs-quota", "off") as sim:
        operation = str(uuid.uuid4())
        sim.fault(service="acs", kind="status", status=503, phase="accepted", count=1)
        assert sim.acs_send(headers={"Operation-Id": operation})[0] == 503
        assert sim.acs_send(headers={"Operation-Id": operation})[0] == 202
        sim.fault(service="acs", kind="lost_answer", count=1)
        try:
            sim.acs_send("lost@example.com")
            raise AssertionError("answered instead of dropping the connection")
        except (urllib.error.URLError, OSError, EOFError):
            pass
        assert len(sim.deliveries(recipient="lost@example.com")) == 1
        sim.fault(service="acs", kind="throttle", retry_after=1, count=1)
        assert sim.acs_send()[0] == 429
        start = time.monotonic()
        time.sleep(0.2)
        assert sim.acs_send()[0] == 429
        time.sleep(1.05 - (time.monotonic() - start))
        assert sim.acs_send()[0] == 202  # the second refusal did not put the end off
        sim.fault(service="acs", kind="bad_certificate", count=1)
        try:
            sim.acs_send()
            raise AssertionError("the bad certificate was believed")
        except urllib.error.URLError as error:
            assert isinstance(error.reason, ssl.SSLCertVerificationError), error
        seen = sim.summary("acs")
        assert (seen["transactions"], seen["lost_answers"], seen["repeated_operations"]) == (3, 1, 1), seen
        assert seen["requests_during_retry_after"] == 1, seen
    for flag, status in (("409", 409), ("400", 400)):
        with Sim("--acs-quota", "off", "--acs-repeat", flag) as sim:
            codes = [sim.acs_send(headers={"Operation-Id": str(uuid.UUID(int=5))})[0] for _ in range(2)]
            assert codes == [202, status], codes


# Graph and tokens, by hand.

def test_graph_concurrency():
    with Sim("--graph-latency-ms", "400") as sim:
        token = sim.token()[1]["access_token"]
        answers = []

        def send():
            answers.append(sim.graph_send(token))
        threads = [threading.Thread(target=send) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(status for status, _, _ in answers)
        assert codes == [202] * 4 + [429] * 2, codes
        status, headers, body = next(a for a in answers if a[0] == 429)
        error = json.loads(body)["error"]
        assert error["code"] == "ApplicationThrottled" and "MailboxConcurrency" in error["message"], error
        assert headers["retry-after"] == "2" and error["innerError"]["request-id"] == headers["request-id"]
        assert sim.graph_send(token)[0] == 202  # the four places are free again


def test_graph_windows():
    with Sim("--graph-quota", "3/10m", "--graph-daily-recipients", "1") as sim:
        token = sim.token()[1]["access_token"]
        assert sim.graph_send(token)[0] == 202
        status, _, body = sim.graph_send(token)
        assert (status, code_of(body)) == (403, "ErrorExceededMessageLimit")
        assert sim.graph_send(token, mailbox="notify2@contoso.test")[0] == 202  # a mailbox of its own
        sim.graph_send(token)
        status, headers, body = sim.graph_send(token)
        assert (status, code_of(body)) == (429, "ApplicationThrottled") and 590 <= int(headers["retry-after"]) <= 600


def test_graph_tokens():
    with Sim() as sim:
        status, headers, body = sim.graph_send("")
        assert (status, code_of(body)) == (401, "InvalidAuthenticationToken")
        token = sim.token()[1]["access_token"]
        assert sim.graph_send(token[:-2] + ("AA" if token[-2:] != "AA" else "BB"))[0] == 401
        status, headers, body = sim.graph_send(token)
        assert status == 202 and body == b"" and headers["request-id"] and headers["date"]
        sim.fault(service="graph", kind="token_expired", count=1)
        assert sim.graph_send(token)[0] == 401
        status, _, body = sim.request("graph", "POST", "/v1.0/me/sendMail", b"{}", {"Authorization": f"Bearer {token}"})
        assert status == 400 and "delegated" in body.decode()
    with Sim("--token-roles", "none") as sim:
        status, _, body = sim.graph_send(sim.token()[1]["access_token"])
        assert (status, code_of(body)) == (403, "ErrorAccessDenied")


def graph_mime(sim, token, text, mailbox="notify1@contoso.test"):
    return sim.request("graph", "POST", f"/v1.0/users/{mailbox}/sendMail", base64.encodebytes(text.encode()),
                       {"Content-Type": "text/plain", "Authorization": f"Bearer {token}"})


def test_graph_mime_addresses():
    with Sim() as sim:
        token = sim.token()[1]["access_token"]
        status, _, body = graph_mime(sim, token, "\r\n".join([
            'From: "Notify, (really) <x@y>" (a \\) comment) <NOTIFY1@contoso.test>',
            "To: plain@example.com, Name Last <angle@example.com>,",
            '\t"Quoted, Name" <quoted@example.com>, (comment, with <fake@example.com>) after@example.com,',
            '  "local part"@example.com',
            "Cc: Group: one@example.com, Two <two@example.com>;, undisclosed-recipients:;",
            "bcc: =?utf-8?B?w6Q=?= <bcc@example.com>",
            "Message-ID:", " <folded@test>", "", "To: not@header.test", ""]))
        assert status == 202, body
        assert [d["recipient"] for d in sim.deliveries(message_id="<folded@test>")] == [
            "plain@example.com", "angle@example.com", "quoted@example.com", "after@example.com",
            '"local part"@example.com', "one@example.com", "two@example.com", "bcc@example.com"]
        head = "From: notify1@contoso.test\r\n"
        for text, status, code in ((head + "Subject: s\r\n\r\n", 400, "ErrorInvalidRecipients"),
                                   (head + "To: a@@b\r\n\r\n", 400, "ErrorInvalidRecipients"),
                                   ("From: boss@contoso.test\r\nTo: a@b.test\r\n\r\n", 403, "ErrorSendAsDenied"),
                                   ("\r\nTo: a@b.test\r\n", 400, "ErrorMimeContentInvalid")):
            seen, _, body = graph_mime(sim, token, text)
            assert (seen, code_of(body)) == (status, code), (text, body)
        assert graph_mime(sim, token, head + "To: a@b.test\r\n\r\n", "nobody@contoso.test")[0] == 404


def test_token_errors():
    with Sim("--client", "second:other", "--token-lifetime", "120") as sim:
        status, body = sim.token()
        assert status == 200 and body["token_type"] == "Bearer" and body["expires_in"] == 120, body
        claims = body["access_token"].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        assert claims["aud"] == "https://graph.microsoft.com" and claims["appid"] == "heave"
        assert claims["roles"] == ["Mail.Send", "SMTP.SendAsApp"] and claims["exp"] - claims["iat"] == 120
        assert sim.token(client_id="second", client_secret="other")[0] == 200
        for fields, status, error, number in (
                ({"client_secret": "wrong"}, 401, "invalid_client", 7000215),
                ({"client_id": "stranger"}, 400, "unauthorized_client", 700016),
                ({"tenant": "nowhere"}, 400, "invalid_request", 90002),
                ({"scope": "https://graph.microsoft.com/Mail.Send"}, 400, "invalid_scope", 70011),
                ({"scope": "https://elsewhere.test/.default"}, 400, "invalid_resource", 500011),
                ({"grant_type": "password"}, 400, "unsupported_grant_type", 70003),
                ({"client_secret": None}, 400, "invalid_request", 900144)):
            seen, body = sim.token(**fields)
            assert (seen, body["error"], body["error_codes"]) == (status, error, [number]), body
            assert body["error_description"].startswith(f"AADSTS{number}: "), body
        _, _, body = sim.request("token", "GET", "/sim/v2.0/.well-known/openid-configuration")
        assert json.loads(body)["token_endpoint"].endswith("/sim/oauth2/v2.0/token")
        sim.fault(service="token", kind="status", status=503, code="temporarily_unavailable", retry_after=1, count=1)
        assert (sim.token()[0], sim.token()[0]) == (503, 429)  # closed for the announced second


# The control port.

def test_control():
    with Sim("--acs-quota", "off") as sim:
        client = sim.smtp()
        for i in range(5):
            client.sendmail(HVE, ["a@contoso.test", "A@contoso.test", "b@contoso.test"], message(f"<{i}@test>"))
        seen = sim.summary("hve")
        assert (seen["transactions"], seen["recipients"], seen["duplicates"]) == (5, 15, 5), seen
        assert seen["distinct_recipients"] == 2
        assert len(sim.deliveries(limit=4)) == 4 and len(sim.deliveries(offset=4)) == 11
        assert len(sim.deliveries(recipient="A@CONTOSO.TEST", message_id="<3@test>")) == 2
        entry = sim.deliveries(recipient="b@contoso.test")[4]
        assert {k: entry[k] for k in ("service", "account", "message_id", "transaction")} == {
            "service": "hve", "account": HVE, "message_id": "<4@test>", "transaction": 5}
        assert entry["bytes"] == len(message("<4@test>")) and entry["at"].endswith("Z")
        assert sim.control("GET", "/bodies?service=hve&transaction=5") == (200, message("<4@test>"))
        assert sim.control("GET", "/bodies?service=hve&transaction=6")[0] == 404
        for bad in ({"service": "smtp", "kind": "slow"}, {"service": "hve", "kind": "nothing"},
                    {"service": "hve", "kind": "status"}, {"service": "acs", "kind": "reset", "phase": "rcpt"},
                    {"service": "acs", "kind": "slow", "probability": 2}, {"service": "acs", "kind": "slow", "x": 1}, 7):
            status, body = sim.control("POST", "/fault", bad)
            assert status == 400 and json.loads(body)["error"], bad
        status, body = sim.control("POST", "/fault", [{"service": "acs", "kind": "slow", "probability": 0.5},
                                                      {"service": "hve", "kind": "reset", "count": 2}])
        assert status == 200 and [f["left"] for f in json.loads(body)["faults"]] == [-1, 2]
        assert json.loads(sim.control("DELETE", "/fault")[1]) == {"faults": []}
        assert sim.control("POST", "/reset")[0] == 200
        assert sim.summary("hve")["recipients"] == 0 and sim.deliveries() == []
        client.sendmail(HVE, ["a@contoso.test"], message("<0@test>"))
        assert sim.summary("hve")["duplicates"] == 0  # forgotten by the reset


def test_certificate_is_kept():
    with tempfile.TemporaryDirectory() as folder:
        seen = []
        for _ in range(2):
            child = subprocess.Popen([str(BUILD / "heave-sim"), "--dir", folder], stdout=subprocess.PIPE)
            assert child.stdout.readline()
            child.send_signal(signal.SIGTERM)
            assert child.wait(20 * PATIENCE) == 0
            child.stdout.close()
            seen.append((pathlib.Path(folder) / "server.pem").read_bytes())
        assert seen[0] == seen[1]
        for name in ("ca.key", "server.key", "bad.key"):
            assert (pathlib.Path(folder) / name).stat().st_mode & 0o777 == 0o600


def test_wrong_flags():
    for args in ([], ["--dir", "/nonexistent/deeper"], ["--dir", "/tmp", "--acs-quota", "many"], ["--dir", "/tmp", "--no"],
                 ["--dir", "/tmp", "--fault", "acs:nothing"]):
        result = subprocess.run([str(BUILD / "heave-sim"), *args], capture_output=True, text=True, timeout=20 * PATIENCE)
        assert result.returncode in (1, 2) and result.stderr.startswith("heave-sim: "), (args, result)


def main():
    global BUILD
    if "--build" in sys.argv:
        BUILD = pathlib.Path(sys.argv[sys.argv.index("--build") + 1]).resolve()
    passed = failed = 0
    for name, run in [(n, f) for n, f in globals().items() if n.startswith("test_")]:
        try:
            run()
            passed += 1
            print(f"PASS {name}", flush=True)
        except Exception:  # noqa: a check may fail in any way; the next ones still run
            failed += 1
            traceback.print_exc(file=sys.stdout)
            print(f"FAIL {name}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
