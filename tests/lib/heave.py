"""Starts the real gateway, the real simulators and a real Redis for the system tests, and asks them questions.

Every object owns its folder, ports and processes, waits for events instead of sleeping, and is stopped by pid.
"""
import base64
import contextlib
import json
import os
import pathlib
import signal
import smtplib
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("HEAVE_BUILD", ROOT / "build"))
ACS_KEY = "aGVhdmUtc2ltLWFjcy1hY2Nlc3Mta2V5LTAxMjM0NTY3"
HVE_ACCOUNT = "hve@contoso.test"
API_KEY = "test-api-key"
SMTP_USER, SMTP_PASSWORD = "monitor", "monitor-password"
# Sanitizers make everything several times slower; deadlines stretch with them.
PATIENCE = float(os.environ.get("HEAVE_TEST_PATIENCE", "1"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(condition, seconds=20, what="the condition"):
    """Polls `condition` until it is truthy and returns its value; fails with a sentence after `seconds`."""
    end = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds * PATIENCE:.0f} s in vain for {what}")
        time.sleep(0.05)


def http(method, url, body=None, headers=None, context=None, timeout=30):
    """One HTTP request; returns (status, headers, body bytes) whatever the status."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout * PATIENCE, context=context) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def http_json(method, url, value=None, headers=None):
    body = None if value is None else json.dumps(value).encode()
    status, _, answer = http(method, url, body, {"Content-Type": "application/json", **(headers or {})})
    return status, json.loads(answer) if answer else None


class Process:
    """A child with its output in a file."""

    def __init__(self, args, folder, name, env=None):
        self.log_path = pathlib.Path(folder) / f"{name}.log"
        self.log = open(self.log_path, "ab")
        self.child = subprocess.Popen(
            [str(a) for a in args], stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})})

    def tail(self, size=4000):
        return self.log_path.read_bytes()[-size:].decode(errors="replace")

    def stop(self, sig=signal.SIGTERM, seconds=40):
        if self.child.poll() is None:
            self.child.send_signal(sig)
        try:
            code = self.child.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"did not stop after signal {sig}:\n{self.tail()}")
        self.log.close()
        return code


class Simulator:
    """heave-sim with every service on a free port."""

    def __init__(self, folder, *flags):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bodies = flags[flags.index("--keep-bodies") + 1] if "--keep-bodies" in flags else None
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "sim.json").unlink()
        self.process = Process(
            [BUILD / "heave-sim", "--dir", self.folder, "--hve-port", "0", "--acs-port", "0", "--graph-port", "0",
             "--token-port", "0", "--control-port", "0", *flags], folder, "sim")
        self.ports = wait_until(self._ports, what="the simulator's ports")
        self.ca = self.folder / "ca.pem"
        self.control = f"http://127.0.0.1:{self.ports['control']}"

    def _ports(self):
        assert self.process.child.poll() is None, self.process.tail()
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return json.loads((self.folder / "sim.json").read_text())
        return None

    def summary(self):
        return http_json("GET", f"{self.control}/summary")[1]

    def deliveries(self):
        _, _, body = http("GET", f"{self.control}/deliveries", timeout=120)
        return [json.loads(line) for line in body.splitlines() if line]

    def fault(self, **spec):
        status, answer = http_json("POST", f"{self.control}/fault", spec)
        assert status // 100 == 2, answer

    def clear_faults(self):
        status, _, body = http("DELETE", f"{self.control}/fault")
        assert status // 100 == 2, body

    def body(self, delivery):
        """The bytes the service took in that transaction (needs --keep-bodies)."""
        pattern = f"{delivery['service']}-{delivery['transaction']}.*"
        return next(pathlib.Path(self.bodies).glob(pattern)).read_bytes()

    def wait_delivery(self, recipient, seconds=30):
        """The delivery of this recipient, as soon as there is one."""
        def found():
            return next((d for d in self.deliveries() if d["recipient"].lower() == recipient.lower()), None)
        return wait_until(found, seconds, f"a delivery to {recipient}")

    def reset(self):
        status, _, body = http("POST", f"{self.control}/reset", b"")
        assert status // 100 == 2, body

    def stop(self):
        self.process.stop()


_HASHES = {}


def crypt_hash(secret):
    """A hash as an administrator makes it: with heave passwd."""
    if secret not in _HASHES:
        out = subprocess.run([BUILD / "heave", "passwd", "--stdin"], input=secret.encode(), capture_output=True,
                             check=True)
        _HASHES[secret] = out.stdout.decode().strip()
    return _HASHES[secret]


class Gateway:
    """heave serve with SMTP, HTTP and admin listeners on free ports, routed to a simulator.

    `changes` replaces top-level keys of the configuration; `lanes`, `backends` and so on may be given whole.
    """

    def __init__(self, folder, sim=None, changes=None, start=True, env=None):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.smtp_port, self.http_port, self.admin_port, self.tls_port = (free_port() for _ in range(4))
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        self.http = f"http://127.0.0.1:{self.http_port}"
        self.env = env or {}
        self.conf_path = self.folder / "heave.yaml"
        self.conf = self._conf(sim)
        for key, value in (changes or {}).items():
            self.conf[key] = value
        self.write_conf()
        self.process = None
        if start:
            self.start()

    def _conf(self, sim):
        conf = {
            "hostname": "gw.contoso.test",
            "listeners": [
                {"protocol": "smtp", "bind": f"127.0.0.1:{self.smtp_port}", "auth": "optional",
                 "auth_without_tls": True, "max_message_bytes": "50MiB"},
                {"protocol": "http", "bind": f"127.0.0.1:{self.http_port}"},
                {"protocol": "admin", "bind": f"127.0.0.1:{self.admin_port}"},
            ],
            "queue": {"redis": "embedded", "data_dir": str(self.folder / "data")},
            "tenant": {"accepted_domains": ["contoso.test"]},
            "lanes": {
                "alert": {"share": "50%", "retry": "500ms, 1s, 2s*", "expires": "6h", "on_unknown": "retry"},
                "normal": {"share": "35%", "retry": "500ms, 1s, 2s*", "expires": "24h", "on_unknown": "retry"},
                "bulk": {"share": "15%", "retry": "500ms, 1s, 2s*", "expires": "72h", "on_unknown": "hold"},
            },
            "clients": [
                {"name": "local", "networks": ["127.0.0.0/8"], "from": ["*"]},
                {"name": "monitor", "user": SMTP_USER, "password_hash": crypt_hash(SMTP_PASSWORD),
                 "from": ["*@contoso.test"], "lane": "alert"},
                {"name": "erp", "api_key_hash": crypt_hash(API_KEY), "from": ["*@contoso.test"], "lane": "bulk"},
            ],
        }
        if sim is not None:
            conf["credentials"] = {"entra": {
                "type": "client_secret", "authority": f"https://localhost:{sim.ports['token']}", "tenant_id": "sim",
                "client_id": "heave", "client_secret": "sim-secret", "ca_file": str(sim.ca)}}
            conf["backends"] = {
                "hve": {"type": "hve", "host": "localhost", "port": sim.ports["hve"], "ca_file": str(sim.ca),
                        "accounts": [{"user": HVE_ACCOUNT, "password": "hve-password"}], "connections": 4},
                "acs": {"type": "acs", "endpoint": f"https://localhost:{sim.ports['acs']}", "access_key": ACS_KEY,
                        "sender": "no-reply@contoso.test", "ca_file": str(sim.ca)},
                "graph": {"type": "graph", "endpoint": f"https://localhost:{sim.ports['graph']}",
                          "credential": "entra", "ca_file": str(sim.ca),
                          "mailboxes": ["notify1@contoso.test", "notify2@contoso.test"]},
            }
            conf["routes"] = [{"match": {"recipient": "internal"}, "via": ["hve", "graph"]},
                              {"match": {"recipient": "external"}, "via": ["acs", "graph"]}]
        return conf

    def write_conf(self):
        # JSON is YAML, and needs no YAML library here.
        self.conf_path.write_text(json.dumps(self.conf, indent=1))

    def start(self, ready=True):
        self.process = Process([BUILD / "heave", "serve", "-c", self.conf_path], self.folder, "heave", self.env)
        if ready:
            wait_until(self.is_ready, 30, "the gateway to be ready")

    def is_ready(self):
        assert self.process.child.poll() is None, f"the gateway ended:\n{self.process.tail()}"
        try:
            return http("GET", f"{self.admin}/readyz", timeout=5)[0] == 200
        except OSError:
            return False

    def is_alive(self):
        try:
            return http("GET", f"{self.admin}/livez", timeout=5)[0] == 200
        except OSError:
            return False

    def redis_pid(self):
        """The embedded server's process id, from its pid file."""
        return int((self.folder / "data" / "redis.pid").read_text())

    def smtp(self, timeout=60):
        return smtplib.SMTP("127.0.0.1", self.smtp_port, timeout=timeout * PATIENCE)

    def send(self, sender, recipients, message):
        """Submits over SMTP; returns the queue id of the 250."""
        with self.smtp() as client:
            client.ehlo("test.contoso.test")
            client.mail(sender)
            for recipient in recipients:
                code, text = client.rcpt(recipient)
                assert code == 250, (recipient, code, text)
            code, text = client.data(message)
            assert code == 250, (code, text)
            return text.decode().split()[-1]

    def post(self, value, key=API_KEY, headers=None):
        return http_json("POST", f"{self.http}/v1/messages", value,
                         {"Authorization": f"Bearer {key}", **(headers or {})})

    def status(self, message_id):
        status, answer = http_json("GET", f"{self.admin}/v1/messages/{message_id}")
        assert status == 200, (status, answer)
        return answer

    def states(self, message_id):
        counts = {}
        for recipient in self.status(message_id)["recipients"]:
            counts[recipient["state"]] = counts.get(recipient["state"], 0) + 1
        return counts

    def wait_states(self, message_id, expected, seconds=30):
        def same():
            return self.states(message_id) == expected
        try:
            wait_until(same, seconds, f"{message_id} to be {expected}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.status(message_id)}\n{self.process.tail()}") from None

    def queue(self):
        """The totals, as soon as Redis can tell them."""
        def totals():
            status, answer = http_json("GET", f"{self.admin}/v1/admin/queue")
            return answer if status == 200 else None
        return wait_until(totals, 60, "the queue's totals")

    def metrics(self):
        return http("GET", f"{self.admin}/metrics")[2].decode()

    def metric(self, name, **labels):
        """Sum of the series of `name` whose labels include `labels`."""
        total = 0.0
        for line in self.metrics().splitlines():
            series, _, value = line.rpartition(" ")
            if series.split("{")[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
                total += float(value)
        return total

    def kill(self):
        """kill -9 of the gateway alone; its Redis is left as it is."""
        self.process.child.kill()
        self.process.child.wait()
        self.process.log.close()

    def stop(self, seconds=60):
        if self.process is None or self.process.child.poll() is not None:
            return None
        return self.process.stop(seconds=seconds)

    def run(self, *args, **kwargs):
        """A command of the program against this gateway."""
        return subprocess.run([BUILD / "heave", *args], capture_output=True, text=True,
                              timeout=60 * PATIENCE, **kwargs)


def tls_context(ca):
    return ssl.create_default_context(cafile=str(ca))


def mime_message(sender, to, subject="Report", text="Hello", extra=""):
    """A small ready message with CR LF."""
    return (f"From: Sender <{sender}>\r\nTo: {to}\r\nSubject: {subject}\r\n{extra}"
            f"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n").encode()


def b64(data):
    return base64.b64encode(data).decode()


def sample_message(sender, to, mark):
    """A message as people send them: UTF-8 subject, text and HTML, an inline image, an attachment. CR LF bytes."""
    from email.message import EmailMessage
    from email.policy import SMTP

    message = EmailMessage(policy=SMTP.clone(cte_type="8bit"))
    message["From"] = f"Müller & Söhne <{sender}>"
    message["To"] = ", ".join(to)
    message["Subject"] = f"Grüße aus Zürich ✓ {mark}"
    message["X-Mark"] = mark
    message["Message-ID"] = f"<{mark}@test.contoso.test>"
    message.set_content("Grüße!\n.\n..dots\nFrom the shell\n" + "x" * 300 + "\n", cte="quoted-printable")
    message.add_alternative('<p>Grüße <img src="cid:logo@contoso.test"></p>\n', subtype="html", cte="base64")
    image = bytes(range(256)) * 3
    message.get_payload()[1].add_related(image, "image", "png", cid="<logo@contoso.test>", filename="logo.png",
                                         disposition="inline")
    message.add_attachment(bytes(reversed(range(256))) * 40, "application", "pdf", filename="Übersicht März.pdf")
    return bytes(message)


def split_message(raw):
    """Header fields as a list of (lower-case name, bytes with folds) and the body bytes."""
    head, _, body = raw.partition(b"\r\n\r\n")
    fields = []
    for line in head.split(b"\r\n"):
        if line[:1] in (b" ", b"\t") and fields:
            fields[-1] = (fields[-1][0], fields[-1][1] + b"\r\n" + line)
        else:
            fields.append((line.split(b":")[0].lower().decode(), line))
    return fields, body


def parts_of(raw):
    """What a reader sees: subject, texts, and (name, type, content id, bytes) of everything else."""
    from email import message_from_bytes
    from email.policy import default

    message = message_from_bytes(raw, policy=default)
    texts, files = {}, []
    for part in message.walk():
        if part.is_multipart():
            continue
        content = part.get_payload(decode=True)
        if part.get_content_maintype() == "text" and part.get_filename() is None:
            texts[part.get_content_subtype()] = content.decode().replace("\r\n", "\n")
        else:
            files.append((part.get_filename(), part.get_content_type(), (part["Content-ID"] or "").strip("<>"), content))
    return message["Subject"], texts, sorted(files, key=lambda f: f[0])


def seconds_of(at):
    """A time of the simulator's ledger (RFC 3339 or milliseconds) as seconds."""
    if isinstance(at, (int, float)):
        return at / 1000
    from datetime import datetime
    return datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp()
