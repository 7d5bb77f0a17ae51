"""The commands as an administrator types them: what they print, and the exit codes scripts rely on.

0 done, 1 refused or invalid, 2 wrong usage, 3 not reachable, 75 try again later (EX_TEMPFAIL).
"""
import json
import os
import pty
import subprocess

import pytest

import heave

SENDER = "erp@contoso.test"
DONE, REFUSED, USAGE, UNREACHABLE, TRY_LATER = 0, 1, 2, 3, 75


def run(*args, key=None, stdin="", env=None):
    """A command with the given API key in its environment, and no other setting of ours."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HEAVE_")}
    own.update({"HEAVE_API_KEY": key} if key else {}, **(env or {}))
    return subprocess.run([heave.BUILD / "heave", *map(str, args)], capture_output=True, text=True, input=stdin,
                          timeout=60 * heave.PATIENCE, env=own)


def send(gateway, *args, key=heave.API_KEY, **kwargs):
    return run("send", "-c", gateway.conf_path, *args, key=key, **kwargs)


def composed(*more):
    return ["--from", SENDER, "--to", "a@contoso.test", "--subject", "Report", "--text", "Ready.", *more]


# Without a gateway.

def test_help_of_every_command():
    overview = run("help")
    assert overview.returncode == DONE
    names = [line.split()[0] for line in overview.stdout.splitlines() if line.startswith("  ")]
    assert names == ["serve", "check", "config", "send", "status", "explain", "find", "queue", "passwd", "version", "help"]
    for name in names:
        asked, flagged = run("help", name), run(name, "--help")
        assert asked.returncode == DONE and asked.stdout.startswith(f"Usage: heave {name}"), asked
        assert "Example: heave" in asked.stdout or name == "passwd", name
        if name not in ("version", "help"):
            assert (flagged.returncode, flagged.stdout) == (DONE, asked.stdout), name


def test_version():
    printed = run("version")
    assert printed.returncode == DONE and printed.stdout.startswith("heave "), printed
    assert run("--version").stdout == printed.stdout


@pytest.mark.parametrize("args, words", [
    ([], "Usage: heave COMMAND"),
    (["bogus"], 'there is no command "bogus"'),
    (["help", "bogus"], 'there is no command "bogus"'),
    (["serve"], "which configuration?"),
    (["check"], "give one file with -c FILE"),
    (["check", "--bogus"], "heave check: unrecognized option '--bogus'"),
    (["check", "-c"], "heave check: option requires an argument"),
    (["config", "--effective"], "needs -c FILE"),
    (["send", *composed()], "Give -c FILE or --url URL"),
    (["send", "--url", "ftp://x", *composed()], "is no address such as http://"),
    (["send", "--url", "http://127.0.0.1:1", "--from", SENDER, "--text", "x"], "at least one --to"),
    (["send", "--url", "http://127.0.0.1:1", "--from", SENDER, "--to", "a@b.test"], "nothing to send"),
    (["send", "--url", "http://127.0.0.1:1", "--subject", "x", "file.eml"], "a ready message takes no --subject"),
    (["send", "--url", "http://127.0.0.1:1", "--timeout", "soon", *composed()], "--timeout takes a duration"),
    (["status"], "give one message id"),
    (["status", "id"], "Give -c FILE or --url URL"),
    (["queue"], "say list, show"),
    (["queue", "burn"], "say list, show"),
    (["passwd", "hunter2"], "never an argument"),
])
def test_wrong_usage(args, words):
    ended = run(*args)
    assert ended.returncode == USAGE, ended
    assert words in ended.stderr, ended
    assert ended.stdout == ""
    assert "unknown option" not in ended.stderr


def test_passwd():
    hashes = [run("passwd", "--stdin", stdin="secret\n").stdout for _ in range(2)]
    assert all(line.startswith("$y$") and line.endswith("\n") for line in hashes)
    assert hashes[0] != hashes[1]
    assert run("passwd", "--stdin", stdin="\n").returncode == REFUSED


@pytest.mark.parametrize("again, code", [("secret", DONE), ("other", REFUSED)])
def test_passwd_asks_twice(again, code):
    """On a terminal: without echo, and only what was typed the same twice becomes a hash."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(heave.BUILD / "heave", ["heave", "passwd"])
    seen = b""
    answers = [(b"Password: ", b"secret\n"), (b"Again: ", again.encode() + b"\n")]
    try:
        while data := os.read(terminal, 1000):
            seen += data
            if answers and answers[0][0] in seen:
                os.write(terminal, answers.pop(0)[1])
    except OSError:
        pass  # Linux says EIO when the other side of the terminal is closed.
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == code, seen
    assert b"secret" not in seen
    assert (b"$y$" in seen) == (code == DONE), seen


def test_check_reports_every_mistake(tmp_path):
    path = tmp_path / "heave.yaml"
    path.write_text("""\
hostnam: gw.contoso.test
drain_timeout: 5 parsecs
tls: {cert_file: missing.crt, key_file: missing.key}
listeners:
  - {protocol: smtp, bind: "127.0.0.1:2525", max_recipient: 5}
  - {protocol: http, bind: "127.0.0.1:2525"}
queue: {redis: embedded, redis: embedded}
tenant: {accepted_domains: contoso.test}
backends:
  acs: {type: acs, endpoint: "https://x.test", sender: a@contoso.test}
routes:
  - {via: [asc]}
clients:
  - {name: one, user: one, password_hash: hello, lane: alarm}
""")
    report = run("check", "-c", path)
    assert report.returncode == REFUSED
    assert report.stdout + report.stderr != ""
    lines = (report.stdout + report.stderr).splitlines()
    for where, what in [
            ("1:1: hostnam:", 'did you mean "hostname"?'),
            ("2:16: drain_timeout:", "expected a duration such as 500ms"),
            ("3:18: tls.cert_file:", "No such file or directory"),
            ("3:41: tls.key_file:", "No such file or directory"),
            ("5:46: listeners.0.max_recipient:", 'did you mean "max_recipients"?'),
            ("6:28: listeners.1.bind:", "another listener has this address"),
            ("7:26: ", "stands here a second time"),
            ("8:28: tenant.accepted_domains:", "a list belongs here"),
            ("10:8: backends.acs:", "access_key is missing"),
            ("12:12: routes.0.via.0:", 'did you mean "acs"?'),
            ("14:43: clients.0.password_hash:", "expected what heave passwd prints"),
            ("14:56: clients.0.lane:", 'did you mean "alert"?')]:
        assert [line for line in lines if line.startswith(f"{path}:{where}") and what in line], (where, what, lines)
    assert lines[-1] == f"{path}: 12 mistakes", lines
    asked = run("check", "-c", path, "--json")
    assert asked.returncode == REFUSED
    answer = json.loads(asked.stdout)
    assert answer["ok"] is False and len(answer["mistakes"]) == 12
    assert answer["mistakes"][0]["line"] == 1 and answer["mistakes"][0]["column"] == 1
    assert run("serve", "-c", path).returncode == REFUSED


@pytest.mark.parametrize("text, words", [("", "the file is empty"), ("a: [1\n b", "not valid YAML"),
                                         (None, "No such file or directory")])
def test_check_of_no_configuration(tmp_path, text, words):
    path = tmp_path / "heave.yaml"
    if text is not None:
        path.write_text(text)
    report = run("check", "-c", path)
    assert report.returncode == REFUSED and words in report.stderr + report.stdout, report


# With one.

def test_check_and_config(gateway):
    assert run("check", "-c", gateway.conf_path).returncode == DONE
    overridden = {"HEAVE_QUEUE__MAX_BYTES": "1GiB"}
    shown = run("config", "--effective", "-c", gateway.conf_path, env=overridden)
    assert shown.returncode == DONE
    rows = {line.split()[0]: line.split(None, 1)[1] for line in shown.stdout.splitlines()}
    assert rows["queue.max_bytes"].split() == ["1GiB", "environment", "HEAVE_QUEUE__MAX_BYTES"]
    assert rows["queue.lease"].split() == ["60s", "default"]
    assert rows["hostname"].startswith("gw.contoso.test") and str(gateway.conf_path) in rows["hostname"]
    assert rows["clients.1.password_hash"].startswith("***")
    as_json = run("config", "--effective", "-c", gateway.conf_path, "--json", env=overridden)
    assert as_json.returncode == DONE and "1GiB" in as_json.stdout and json.loads(as_json.stdout)
    wrong = run("check", "-c", gateway.conf_path, env={"HEAVE_QUEUE__MAXBYTES": "1GiB"})
    assert wrong.returncode == REFUSED and "HEAVE_QUEUE__MAXBYTES" in wrong.stderr + wrong.stdout
    schema = json.loads(run("config", "--schema").stdout)
    assert schema["properties"]["listeners"] and schema["additionalProperties"] is False
    assert run("config", "--reference").stdout.startswith("# Configuration reference")


def test_send_and_wait(gateway):
    sent = send(gateway, *composed("--to", "b@example.net", "--wait", "--json"))
    assert sent.returncode == DONE, sent
    message = json.loads(sent.stdout)
    assert {r["address"]: (r["backend"], r["state"]) for r in message["recipients"]} == {
        "a@contoso.test": ("hve", "delivered"), "b@example.net": ("acs", "delivered")}
    status = run("status", message["id"], "-c", gateway.conf_path, "--json")
    assert status.returncode == DONE and json.loads(status.stdout) == message
    shown = run("status", message["id"], "-c", gateway.conf_path)
    assert shown.returncode == DONE and "b@example.net" in shown.stdout and "RECIPIENT" in shown.stdout


def test_send_prints_the_id(gateway):
    sent = send(gateway, *composed())
    assert sent.returncode == DONE
    head, row = sent.stdout.splitlines()
    assert head.split() == ["ID", "ACCEPTED", "REJECTED", "BATCHES"]
    gateway.wait_states(row.split()[0], {"delivered": 1})


def test_send_with_a_key_twice(gateway):
    first, second = (send(gateway, *composed("--idempotency-key", "night-1", "--json")) for _ in range(2))
    assert (first.returncode, second.returncode) == (DONE, DONE)
    assert json.loads(first.stdout)["id"] == json.loads(second.stdout)["id"]


def test_send_files(gateway, tmp_path):
    message = heave.mime_message(SENDER, "file@contoso.test")
    (tmp_path / "one.eml").write_bytes(message)
    (tmp_path / "two.eml").write_bytes(message.replace(b"\r\n", b"\n"))
    (tmp_path / "notes.txt").write_text("not a message")
    one = send(gateway, tmp_path / "one.eml", "--wait", "--json")
    assert one.returncode == DONE and json.loads(one.stdout)["recipients"][0]["address"] == "file@contoso.test"
    piped = send(gateway, "--to", "other@contoso.test", "--wait", "--json", "-", stdin=message.decode())
    assert piped.returncode == DONE
    assert [r["address"] for r in json.loads(piped.stdout)["recipients"]] == ["other@contoso.test"]
    folder = send(gateway, tmp_path, "--json")
    assert folder.returncode == DONE
    assert [answer["file"] for answer in json.loads(folder.stdout)] == ["one.eml", "two.eml"]
    (tmp_path / "bad.eml").write_text("no header at all")
    mixed = send(gateway, tmp_path, "--json")
    assert mixed.returncode == REFUSED and "bad.eml" in mixed.stderr
    assert len(json.loads(mixed.stdout)) == 2
    assert send(gateway, tmp_path / "missing.eml").returncode == REFUSED


def test_send_refused(gateway):
    wrong = send(gateway, *composed(), key="wrong")
    assert wrong.returncode == REFUSED and "401" in wrong.stderr
    foreign = send(gateway, "--from", "a@fabrikam.test", "--to", "a@contoso.test", "--text", "x")
    assert foreign.returncode == REFUSED and "403" in foreign.stderr
    invalid = send(gateway, "--from", SENDER, "--to", "nonsense", "--text", "x")
    assert invalid.returncode == REFUSED and "/to/0" in invalid.stderr


def test_send_without_a_key(tmp_path, sim):
    """Nobody is taken for a client, and the remedy is named."""
    clients = [{"name": "erp", "api_key_hash": heave.crypt_hash(heave.API_KEY), "from": ["*@contoso.test"]}]
    gateway = heave.Gateway(tmp_path, sim, {"clients": clients})
    try:
        ended = send(gateway, *composed(), key=None)
        assert ended.returncode == REFUSED and "HEAVE_API_KEY holds no key" in ended.stderr
    finally:
        assert gateway.stop() == 0


def test_not_reachable():
    url = f"http://127.0.0.1:{heave.free_port()}"
    for args in (["send", *composed()], ["status", "x"], ["queue", "list"]):
        ended = run(*args, "--url", url)
        assert ended.returncode == UNREACHABLE and "cannot be reached" in ended.stderr, ended
        assert run(*args, env={"HEAVE_URL": url}).returncode == UNREACHABLE


def test_try_later(tmp_path, sim):
    """Our own trouble is a reason to try again, for cron and for scripts: 75."""
    changes = {"queue": {"redis": f"redis://127.0.0.1:{heave.free_port()}/0"}}
    gateway = heave.Gateway(tmp_path, sim, changes, start=False)
    gateway.start(ready=False)
    try:
        heave.wait_until(gateway.is_alive, 20, "the process to live")
        assert send(gateway, *composed()).returncode == TRY_LATER
        assert run("queue", "list", "-c", gateway.conf_path).returncode == TRY_LATER
    finally:
        assert gateway.stop() == 0


def test_status_of_nothing(gateway):
    ended = run("status", "01ARZ3NDEKTSV4RRFFQ69G5FAV-0", "-c", gateway.conf_path)
    assert ended.returncode == REFUSED and "404" in ended.stderr


def test_wait_ends_with_what_became_of_it(tmp_path, sim, clean_sim):
    """--wait: 1 when a recipient failed for good, 75 when the time is over first."""
    routes = [{"match": {"domains": ["slow.test"]}, "via": ["nowhere"]}, {"via": ["hve"]}]
    gateway = heave.Gateway(tmp_path, sim, {"routes": routes}, start=False)
    gateway.conf["backends"]["nowhere"] = {"type": "smtp", "host": "127.0.0.1", "port": heave.free_port(),
                                           "tls": "off"}
    gateway.write_conf()
    gateway.start()
    try:
        late = send(gateway, "--from", SENDER, "--to", "a@slow.test", "--text", "x", "--wait", "--timeout", "1s")
        assert late.returncode == TRY_LATER, late
        queue = run("queue", "list", "-c", gateway.conf_path, "--json")
        assert queue.returncode == DONE and json.loads(queue.stdout)["messages_open"] == 1
        clean_sim.fault(service="hve", kind="reply", phase="rcpt", count=1,
                        text="550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found")
        failed = send(gateway, *composed("--wait", "--json"))
        assert failed.returncode == REFUSED, failed
        assert json.loads(failed.stdout)["recipients"][0]["state"] == "failed"
    finally:
        gateway.stop()


def test_queue(tmp_path, sim):
    """Accepted and not delivered: list counts the batches, show names the messages, also for who keeps a send key."""
    gateway = heave.Gateway(tmp_path, sim, {"roles": ["ingest"]})
    try:
        sent = [json.loads(send(gateway, *composed("--json")).stdout)["id"] for _ in range(2)]
        for key in (None, heave.API_KEY):
            listed = run("queue", "list", "-c", gateway.conf_path, "--json", key=key)
            assert listed.returncode == DONE, listed
            answer = json.loads(listed.stdout)
            assert answer["messages_open"] == 2
            assert [(q["lane"], q["backend"], q["batches"]["ready"]) for q in answer["queues"]
                    if q["batches"]["ready"]] == [("bulk", "hve", 2)]
            shown = run("queue", "show", "-c", gateway.conf_path, "--json", key=key)
            assert [m["id"] for m in json.loads(shown.stdout)["messages"]] == sent[::-1]
        assert "bulk  hve" in run("queue", "list", "-c", gateway.conf_path).stdout
        assert sent[0] in run("queue", "show", "-c", gateway.conf_path).stdout
        assert json.loads(run("queue", "show", sent[0], "-c", gateway.conf_path, "--json").stdout)["id"] == sent[0]
        none = run("queue", "list", "-c", gateway.conf_path, "--json", "--lane", "alert")
        assert json.loads(none.stdout)["queues"] == []
        assert run("queue", "show", "-c", gateway.conf_path, "--limit", "0").returncode == USAGE
        by_url = run("queue", "list", "--url", gateway.admin, key=heave.API_KEY)
        assert by_url.returncode == REFUSED and "HEAVE_API_KEY" in by_url.stderr
    finally:
        assert gateway.stop() == 0
