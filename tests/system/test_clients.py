"""Programs nobody here wrote hand in a real mail; every service gets it as it was sent."""
import json
import os
import pathlib
import shutil
import smtplib
import subprocess

import pytest

import heave
import postfix

SENDER = "alerts@contoso.test"
# What the HVE backend documents to change: identity (forced by the service), trace, and what a submission server completes.
DOCUMENTED = {"from", "sender", "reply-to", "x-original-from", "received", "date", "message-id", "bcc"}
NODE = pathlib.Path(__file__).parent / "sim"


def run(args, **kwargs):
    done = subprocess.run([str(a) for a in args], capture_output=True, timeout=120, **kwargs)
    assert done.returncode == 0, (args, done.stdout[-2000:], done.stderr[-2000:])
    return done


def by_swaks(gateway, recipients, path):
    run(["swaks", "--server", "127.0.0.1", "--port", gateway.smtp_port, "--from", SENDER, "--to", ",".join(recipients),
         "--auth", "PLAIN", "--auth-user", heave.SMTP_USER, "--auth-password", heave.SMTP_PASSWORD,
         "--data", f"@{path}", "--no-strip-from"])


def by_curl_smtp(gateway, recipients, path):
    flags = [flag for r in recipients for flag in ("--mail-rcpt", r)]
    run(["curl", "-sS", f"smtp://127.0.0.1:{gateway.smtp_port}", "--mail-from", SENDER, *flags,
         "--user", f"{heave.SMTP_USER}:{heave.SMTP_PASSWORD}", "--upload-file", path])


def by_curl_http(gateway, recipients, path):
    to = "&".join(f"to={r}" for r in recipients)
    run(["curl", "-sS", "--fail-with-body", f"{gateway.http}/v1/messages?from={SENDER}&{to}", "-H",
         f"Authorization: Bearer {heave.API_KEY}", "-H", "Content-Type: message/rfc822", "--data-binary", f"@{path}"])


def by_smtplib(gateway, recipients, path):
    with smtplib.SMTP("127.0.0.1", gateway.smtp_port) as client:
        client.login(heave.SMTP_USER, heave.SMTP_PASSWORD)
        assert client.sendmail(SENDER, recipients, path.read_bytes()) == {}


def by_nodemailer(gateway, recipients, path):
    script = """
const nodemailer = require('nodemailer');
const [port, from, to, path] = process.argv.slice(1);
const transport = nodemailer.createTransport({host: '127.0.0.1', port: Number(port), secure: false, ignoreTLS: true});
transport.sendMail({envelope: {from, to: to.split(',')}, raw: {path}})
  .then(info => { if (info.rejected.length) throw new Error('rejected ' + info.rejected); console.log(info.response); })
  .catch(error => { console.error(error); process.exit(1); });
"""
    run(["node", "-e", script, gateway.smtp_port, SENDER, ",".join(recipients), path], cwd=NODE)


def by_msmtp(gateway, recipients, path):
    run(["msmtp", "--host=127.0.0.1", f"--port={gateway.smtp_port}", f"--from={SENDER}", "--auth=off", "--tls=off",
         "--file=/dev/null", *recipients], input=path.read_bytes())


def by_postfix(gateway, recipients, path):
    server = postfix.Postfix(heave.free_port(), f"[127.0.0.1]:{gateway.smtp_port}", 5)
    try:
        with smtplib.SMTP("127.0.0.1", server.port) as client:
            assert client.sendmail(SENDER, recipients, path.read_bytes()) == {}
        heave.wait_until(lambda: "status=sent" in server.log(), 30, "Postfix to relay:\n" + server.log())
    finally:
        server.stop()


CLIENTS = [by_swaks, by_curl_smtp, by_curl_http, by_smtplib, by_nodemailer, by_msmtp, by_postfix]


def needs(client):
    if client is by_postfix and os.geteuid() != 0:
        pytest.skip("a Postfix of our own needs root")
    if client is by_nodemailer and not (NODE / "node_modules").exists():
        pytest.fail("npm ci was not run in tests/system/sim")
    if client is by_msmtp and shutil.which("msmtp") is None:
        pytest.fail("msmtp is not installed")


def sent_fields(raw):
    """Fields a client sent that must arrive as they are."""
    fields, _ = heave.split_message(raw)
    return [field for name, field in fields if name not in DOCUMENTED]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda c: c.__name__[3:])
def test_hve_gets_every_byte(clean_sim, gateway, tmp_path, client):
    needs(client)
    mark = client.__name__.replace("_", "-")
    raw = heave.sample_message(SENDER, ["inside@contoso.test"], mark)
    path = tmp_path / "mail.eml"
    path.write_bytes(raw)
    path.chmod(0o644)
    client(gateway, ["inside@contoso.test"], path)
    arrived = clean_sim.body(clean_sim.wait_delivery("inside@contoso.test"))
    _, body = heave.split_message(raw)
    fields, got_body = heave.split_message(arrived)
    assert got_body.rstrip(b"\r\n") == body.rstrip(b"\r\n")
    if client is not by_swaks:  # swaks appends a line end of its own to --data
        assert got_body == body
    got = [field for name, field in fields if name not in DOCUMENTED]
    assert got == sent_fields(raw)
    identity = dict(fields)
    assert b"<hve@contoso.test>" in identity["from"]
    assert b"alerts@contoso.test" in identity["reply-to"]
    assert b"alerts@contoso.test" in identity["x-original-from"]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda c: c.__name__[3:])
def test_acs_gets_every_part(clean_sim, gateway, tmp_path, client):
    needs(client)
    raw = heave.sample_message(SENDER, ["outside@example.net"], "acs-" + client.__name__.replace("_", "-"))
    path = tmp_path / "mail.eml"
    path.write_bytes(raw)
    path.chmod(0o644)
    client(gateway, ["outside@example.net"], path)
    sent = json.loads(clean_sim.body(clean_sim.wait_delivery("outside@example.net")))
    subject, texts, files = heave.parts_of(raw)
    assert sent["content"]["subject"] == subject
    assert sent["content"]["plainText"].replace("\r\n", "\n").rstrip("\n") == texts["plain"].rstrip("\n")
    assert sent["content"]["html"].replace("\r\n", "\n").rstrip("\n") == texts["html"].rstrip("\n")
    got = sorted((a["name"], a["contentType"], a.get("contentId", ""), a["contentInBase64"]) for a in sent["attachments"])
    assert got == [(n, t, c, heave.b64(data)) for n, t, c, data in files]
    assert [r["address"] for r in sent["recipients"]["to"]] == ["outside@example.net"]
    assert sent["headers"].get("X-Mark") is not None


@pytest.fixture(scope="module")
def graph_gateway(tmp_path_factory, sim):
    changes = {"routes": [{"match": {"recipient": "any"}, "via": ["graph"]}]}
    instance = heave.Gateway(tmp_path_factory.mktemp("graph-gateway"), sim, changes)
    yield instance
    assert instance.stop() == 0


@pytest.mark.parametrize("client", CLIENTS, ids=lambda c: c.__name__[3:])
def test_graph_gets_every_part(clean_sim, graph_gateway, tmp_path, client):
    needs(client)
    raw = heave.sample_message(SENDER, ["anyone@example.net"], "graph-" + client.__name__.replace("_", "-"))
    path = tmp_path / "mail.eml"
    path.write_bytes(raw)
    path.chmod(0o644)
    client(graph_gateway, ["anyone@example.net"], path)
    arrived = clean_sim.body(clean_sim.wait_delivery("anyone@example.net"))
    assert heave.parts_of(arrived) == heave.parts_of(raw)
