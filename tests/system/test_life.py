"""The life of the process: reload by SIGHUP, drain by SIGTERM, a new start with mail waiting, listeners with TLS."""
import base64
import json
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess

import pytest

import heave

SENDER = "alerts@contoso.test"
MESSAGE = heave.mime_message(SENDER, "a@contoso.test")


def reload(gateway):
    """SIGHUP, and whether the new file was taken, from the metrics."""
    def count(result):
        return gateway.metric("heave_config_reloads_total", result=result)
    before = {result: count(result) for result in ("ok", "failed")}
    gateway.process.child.send_signal(signal.SIGHUP)
    return heave.wait_until(lambda: next((r for r in before if count(r) > before[r]), None), 10, "the reload") == "ok"


def login(gateway, user, password):
    with gateway.smtp() as client:
        client.login(user, password)
        assert client.mail(SENDER)[0] == 250


# Reload.

def test_reload(tmp_path, sim):
    """A good file works at once, also in sessions to come of other threads; a bad one changes nothing and is told."""
    gateway = heave.Gateway(tmp_path, sim, {"threads": {"ingress": 2, "delivery": 1}})
    try:
        with pytest.raises(smtplib.SMTPAuthenticationError):
            login(gateway, "fresh", "fresh-password")
        good = gateway.conf["clients"] + [{"name": "fresh", "user": "fresh", "from": ["*@contoso.test"],
                                           "password_hash": heave.crypt_hash("fresh-password")}]
        gateway.conf["clients"] = good
        gateway.write_conf()
        assert reload(gateway)
        for _ in range(6):
            login(gateway, "fresh", "fresh-password")
        assert "reload result=taken" in gateway.process.tail()
        assert gateway.metric("heave_config_last_reload_successful") == 1

        gateway.conf_path.write_text(json.dumps({**gateway.conf, "clients": good[:2], "clientz": []}))
        assert not reload(gateway)
        login(gateway, "fresh", "fresh-password")
        assert 'unknown key \\"clientz\\", did you mean \\"clients\\"?' in gateway.process.tail()
        assert 'reload result="kept the old configuration"' in gateway.process.tail()
        assert gateway.metric("heave_config_last_reload_successful") == 0

        gateway.conf["clients"] = good[:2]
        gateway.write_conf()
        assert reload(gateway)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            login(gateway, "fresh", "fresh-password")
        assert gateway.metric("heave_config_last_reload_successful") == 1
        message_id = gateway.send(SENDER, ["a@contoso.test"], MESSAGE)
        gateway.wait_states(message_id, {"delivered": 1})
    finally:
        assert gateway.stop() == 0


def test_reload_that_needs_a_restart(tmp_path, sim):
    """What cannot change in a running process is named, and the running values stay."""
    gateway = heave.Gateway(tmp_path, sim)
    try:
        gateway.conf["hostname"] = "other.contoso.test"
        gateway.write_conf()
        assert reload(gateway)
        assert "restart_needed_for=hostname" in gateway.process.tail()
        gateway.conf["backends"]["extra"] = {"type": "smtp", "host": "127.0.0.1", "port": 1, "tls": "off"}
        gateway.write_conf()
        assert not reload(gateway)
        message_id = gateway.send(SENDER, ["a@contoso.test"], MESSAGE)
        gateway.wait_states(message_id, {"delivered": 1})
    finally:
        assert gateway.stop() == 0


# Drain.

class OpenMessage:
    """An SMTP session in the middle of DATA."""

    def __init__(self, gateway):
        self.sock = socket.create_connection(("127.0.0.1", gateway.smtp_port), 30 * heave.PATIENCE)
        self.stream = self.sock.makefile("rb")
        self.reply()
        for line in ("EHLO test.contoso.test", f"MAIL FROM:<{SENDER}>", "RCPT TO:<a@contoso.test>", "DATA"):
            self.sock.sendall(line.encode() + b"\r\n")
            last = self.reply()
        assert last.startswith("354"), last
        self.sock.sendall(MESSAGE)

    def reply(self):
        while True:
            line = self.stream.readline()
            if line[3:4] != b"-":
                return line.decode().strip()

    def end(self):
        self.sock.sendall(b".\r\n")
        return self.reply()


def wait_draining(gateway):
    heave.wait_until(lambda: "how=draining" in gateway.process.tail(), 10, "the drain to begin")


def test_sigterm_finishes_what_was_begun(tmp_path, sim):
    """The message in DATA is taken, its session is told to go, everything ends with code 0, nothing is lost."""
    gateway = heave.Gateway(tmp_path, sim)
    redis = gateway.redis_pid()
    message = OpenMessage(gateway)
    idle = gateway.smtp()
    gateway.process.child.send_signal(signal.SIGTERM)
    wait_draining(gateway)
    assert idle.getreply()[0] == 421
    status, _, body = heave.http("GET", f"{gateway.admin}/readyz")
    assert status == 503 and json.loads(body)["draining"] is True
    assert gateway.process.child.poll() is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", gateway.smtp_port), 5)
    answer = message.end()
    assert answer.startswith("250 2.0.0"), answer
    assert message.reply().startswith("421")
    assert message.stream.read() == b""
    assert gateway.process.child.wait(40 * heave.PATIENCE) == 0
    heave.wait_until(lambda: not is_running(redis), 10, "Redis to end")
    gateway.start()
    gateway.wait_states(answer.split()[-1], {"delivered": 1})
    assert gateway.stop() == 0


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_second_sigterm_stops_at_once(tmp_path, sim):
    gateway = heave.Gateway(tmp_path, sim)
    redis = gateway.redis_pid()
    message = OpenMessage(gateway)
    gateway.process.child.send_signal(signal.SIGTERM)
    wait_draining(gateway)
    gateway.process.child.send_signal(signal.SIGTERM)
    assert gateway.process.child.wait(10 * heave.PATIENCE) == 1
    assert message.reply() == ""
    heave.wait_until(lambda: not is_running(redis), 10, "Redis to end")
    gateway.start()
    message_id = gateway.send(SENDER, ["a@contoso.test"], MESSAGE)
    gateway.wait_states(message_id, {"delivered": 1})
    assert gateway.stop() == 0


def test_drain_ends_by_its_timeout(tmp_path, sim):
    """A sender that never ends its message does not hold the process for longer than drain_timeout."""
    gateway = heave.Gateway(tmp_path, sim, {"drain_timeout": "1s"})
    message = OpenMessage(gateway)
    assert gateway.stop(20) == 0
    assert message.reply().startswith("421") or message.stream.read() == b""


def test_restart_with_mail_waiting(tmp_path, sim):
    gateway = heave.Gateway(tmp_path, sim, {"roles": ["ingest"]})
    waiting = [gateway.send(SENDER, ["a@contoso.test", "b@example.net"], MESSAGE) for _ in range(5)]
    assert gateway.stop() == 0
    del gateway.conf["roles"]
    gateway.write_conf()
    gateway.start()
    for message_id in waiting:
        gateway.wait_states(message_id, {"delivered": 2})
    assert gateway.stop() == 0


# TLS.

def make_certificate(folder, name):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt", "-days", "2", "-subj",
                    f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,DNS:gw.contoso.test,IP:127.0.0.1"],
                   check=True, capture_output=True)
    return folder / f"{name}.crt", folder / f"{name}.key"


class TlsGateway(heave.Gateway):
    """STARTTLS, implicit TLS and HTTPS as in the README, and a plain listener for comparison."""

    def __init__(self, folder, sim):
        self.starttls_port, self.smtps_port = heave.free_port(), heave.free_port()
        self.cert, key = make_certificate(folder, "gateway")
        super().__init__(folder, sim, start=False)
        self.conf["tls"] = {"cert_file": self.cert.name, "key_file": key.name}
        self.conf["listeners"] += [
            {"protocol": "smtp", "bind": f"127.0.0.1:{self.starttls_port}", "tls": "starttls", "auth": "optional"},
            {"protocol": "smtp", "bind": f"127.0.0.1:{self.smtps_port}", "tls": "implicit", "auth": "required"},
            {"protocol": "http", "bind": f"127.0.0.1:{self.tls_port}", "tls": "implicit"}]
        self.write_conf()
        self.start()


@pytest.fixture(scope="module")
def tls(tmp_path_factory, sim):
    gateway = TlsGateway(tmp_path_factory.mktemp("tls"), sim)
    yield gateway
    assert gateway.stop() == 0


def submit(client):
    client.login(heave.SMTP_USER, heave.SMTP_PASSWORD)
    assert client.sendmail(SENDER, ["a@contoso.test"], MESSAGE) == {}


def test_starttls(tls):
    """AUTH is offered only after TLS; what came before the handshake is forgotten."""
    with smtplib.SMTP("localhost", tls.starttls_port, timeout=60 * heave.PATIENCE) as client:
        client.ehlo()
        assert client.has_extn("starttls") and not client.has_extn("auth")
        code, text = client.docmd("AUTH PLAIN", base64.b64encode(b"\0monitor\0monitor-password").decode())
        assert code == 538 or code == 530, (code, text)
        client.starttls(context=heave.tls_context(tls.cert))
        client.ehlo()
        assert client.has_extn("auth") and not client.has_extn("starttls")
        assert client.sock.version() == "TLSv1.3"
        submit(client)


def test_implicit_tls_wants_auth(tls):
    context = heave.tls_context(tls.cert)
    with smtplib.SMTP_SSL("localhost", tls.smtps_port, timeout=60 * heave.PATIENCE, context=context) as client:
        client.ehlo()
        code, text = client.mail(SENDER)
        assert code == 530 and b"5.7.0" in text, (code, text)
        submit(client)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_refused(tls):
    context = heave.tls_context(tls.cert)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", tls.smtps_port), 30) as sock:
        with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
            context.wrap_socket(sock, server_hostname="localhost")


def test_https_key_and_basic(tls):
    context = heave.tls_context(tls.cert)
    body = json.dumps({"from": SENDER, "to": ["a@contoso.test"], "subject": "x", "text": "y"}).encode()
    url = f"https://localhost:{tls.tls_port}/v1/messages"

    def post(authorization):
        headers = {"Content-Type": "application/json", "Authorization": authorization}
        return heave.http("POST", url, body, headers, context)

    def basic(password):
        return "Basic " + base64.b64encode(f"{heave.SMTP_USER}:{password}".encode()).decode()
    assert post(f"Bearer {heave.API_KEY}")[0] == 202
    assert post(basic(heave.SMTP_PASSWORD))[0] == 202
    status, headers, _ = post(basic("wrong"))
    assert status == 401 and "Basic" in headers["WWW-Authenticate"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl speaks HTTP/2 here")
def test_http2_with_curl(tls):
    """By ALPN over TLS and with prior knowledge without."""
    def version(*args):
        ended = subprocess.run(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", *args],
                               capture_output=True, text=True, timeout=60 * heave.PATIENCE)
        assert ended.returncode == 0, ended
        return ended.stdout
    url = f"https://localhost:{tls.tls_port}/livez"
    assert version("--cacert", str(tls.cert), url) == "2 200"
    assert version("--cacert", str(tls.cert), "--http1.1", url) == "1.1 200"
    assert version("--http2-prior-knowledge", f"{tls.http}/livez") == "2 200"
    assert version(f"{tls.http}/livez") == "1.1 200"


def test_reload_takes_a_new_certificate(tls):
    """Renewal is a SIGHUP; half a renewal (a key that does not fit) keeps what works."""
    def served():
        return ssl.get_server_certificate(("127.0.0.1", tls.tls_port)).strip()
    first = served()
    renewed, renewed_key = make_certificate(tls.folder, "renewed")
    shutil.copy(renewed, tls.folder / "gateway.crt")
    assert not reload(tls)
    assert served() == first
    shutil.copy(renewed_key, tls.folder / "gateway.key")
    assert reload(tls)
    assert served() == renewed.read_text().strip() != first


def test_health(tls):
    for base in (tls.admin, tls.http):
        for path in ("livez", "readyz", "openapi.json"):
            status, headers, body = heave.http("GET", f"{base}/{path}")
            assert status == 200 and headers["Content-Type"] == "application/json", (base, path)
            assert json.loads(body)
    assert json.loads(heave.http("GET", f"{tls.http}/openapi.json")[2])["openapi"].startswith("3.1")
    assert heave.http("GET", f"{tls.admin}/metrics")[0] == 200
    status, headers, body = heave.http("GET", f"{tls.http}/nothing")
    assert status == 404 and headers["Content-Type"] == "application/problem+json" and json.loads(body)["detail"]
