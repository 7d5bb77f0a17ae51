"""A Redis that is there and says no: each refusal is answered politely, said once in the log, and over when it ends."""
import shutil
import signal
import smtplib
import threading
import time

import heave
import pytest
import redis_servers
from sending import SENDER, send

HTTP_MESSAGE = {"from": SENDER, "to": ["b@contoso.test"], "subject": "s", "text": "t"}


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    server = redis_servers.Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def external(tmp_path_factory, sim, redis):
    """A gateway on that server; the tests put right what they put wrong."""
    gateway = heave.Gateway(tmp_path_factory.mktemp("gateway"), sim, {
        "queue": {"redis": f"redis://127.0.0.1:{redis.port}"}, "threads": {"ingress": 1, "delivery": 1}})
    yield gateway
    assert gateway.stop() == 0


def submit(gateway):
    """The reply to one message, wherever in the transaction it comes, and how long that took."""
    began = time.monotonic()
    with gateway.smtp() as client:
        client.ehlo()
        code, text = client.mail(SENDER)
        if code == 250:
            code, text = client.rcpt("a@contoso.test")
        if code == 250:
            code, text = client.data(heave.mime_message(SENDER, "a@contoso.test"))
        return code, text.decode(), time.monotonic() - began


def refuses_mail(gateway):
    with gateway.smtp() as client:
        client.ehlo()
        return client.mail(SENDER)[0] == 451


def log_of(gateway):
    return gateway.process.log_path.read_text(errors="replace")


def accepted(gateway):
    try:
        return submit(gateway)[0] == 250
    except smtplib.SMTPException:
        return False


def wait_refused(gateway, reply, seconds=10):
    """SMTP says `reply`, HTTP 503 with Retry-After: never a refusal for good."""
    seen = []

    def refused():
        code, text, _ = submit(gateway)
        assert code == 250 or 400 <= code < 500, (code, text)
        seen.append((code, text))
        return f"{code} {text}".startswith(reply)
    heave.wait_until(refused, seconds, f"{reply}; heard {seen[-3:]}")
    status, headers, _ = heave.http("POST", f"{gateway.http}/v1/messages", heave.json.dumps(HTTP_MESSAGE).encode(),
                                    {"Content-Type": "application/json", "Authorization": f"Bearer {heave.API_KEY}"})
    assert status == 503 and int(headers["Retry-After"]) >= 1


def wait_log(gateway, text, since):
    heave.wait_until(lambda: text in log_of(gateway)[since:], 10, f"'{text}' in the log: {log_of(gateway)[since:]}")


def kill_clients(redis):
    redis("CLIENT", "KILL", "TYPE", "normal")


def config(name, wrong, right):
    return (lambda r: r("CONFIG", "SET", name, wrong)), (lambda r: r("CONFIG", "SET", name, right))


def then_reconnect(steps):
    wrong, right = steps
    return (lambda r: (wrong(r), kill_clients(r))), right


def want_password(redis):
    redis("CONFIG", "SET", "requirepass", "secret")
    redis.login = ("secret",)
    kill_clients(redis)


def want_none(redis):
    redis("CONFIG", "SET", "requirepass", "")
    redis.login = None


def acl(wrong, right):
    return (lambda r: r("ACL", "SETUSER", "default", wrong)), (lambda r: r("ACL", "SETUSER", "default", right))


CASES = {
    "oom": (config("maxmemory", "100kb", "0"), "452 4.3.1",
            "Redis refuses: OOM command not allowed"),
    "readonly": ((lambda r: r("REPLICAOF", "127.0.0.1", "1"), lambda r: r("REPLICAOF", "NO", "ONE")), "451 4.3.0",
                 "is a replica (role:slave)"),
    "noreplicas": (config("min-replicas-to-write", "1", "0"), "451 4.3.0", "Redis refuses: NOREPLICAS"),
    "noperm": (acl("-evalsha", "+evalsha"), "451 4.3.0", "Redis refuses: NOPERM"),
    "no such command": (acl("-zadd", "+zadd"), "451 4.3.0", "The ACL user lacks a right"),
    "noauth": ((want_password, want_none), "451 4.3.0", "NOAUTH"),
    "wrong policy": (then_reconnect(config("maxmemory-policy", "allkeys-lru", "noeviction")), "451 4.3.0",
                     "CONFIG SET maxmemory-policy noeviction"),
    "no append-only file": (then_reconnect(config("appendonly", "no", "yes")), "451 4.3.0",
                            "CONFIG SET appendonly yes"),
}


@pytest.mark.parametrize("name", CASES)
def test_refusal(redis, external, name):
    (wrong, right), reply, sentence = CASES[name]
    heave.wait_until(lambda: accepted(external), 20, "the gateway to take messages")
    before = len(log_of(external))
    wrong(redis)
    try:
        wait_refused(external, reply)
        wait_log(external, sentence, before)
    finally:
        right(redis)
    heave.wait_until(lambda: accepted(external), 20, "messages to be taken again, without a restart")
    # One line a minute, however many connections and messages were refused.
    assert log_of(external)[before:].count("Redis refuses: " + sentence.partition(": ")[2]) <= 2


def test_busy_and_script_killed(redis, external):
    """Somebody's endless script: BUSY for all until SCRIPT KILL."""
    heave.wait_until(lambda: accepted(external), 20, "the gateway to take messages")
    before = len(log_of(external))
    redis("CONFIG", "SET", "lua-time-limit", "100")

    def run():
        with pytest.raises(redis_servers.RedisError, match="killed"):
            with redis_servers.Client(redis.port, 60) as client:
                client("EVAL", "while true do end", "0")
    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_refused(external, "451 4.3.0")
        wait_log(external, "Redis refuses: BUSY", before)
    finally:
        redis("SCRIPT", "KILL")
        thread.join()
    heave.wait_until(lambda: accepted(external), 20, "messages to be taken again")


def test_stopped_server(redis, external):
    """There, connected, and silent: refused within two seconds or so, and taken again when it goes on. The one that
    was on its way is answered by what became of it."""
    heave.wait_until(lambda: accepted(external), 20, "the gateway to take messages")
    before = len(log_of(external))
    lost = external.metric("heave_redis_changes_total", state="down")
    redis.signal(signal.SIGSTOP)
    try:
        heave.wait_until(lambda: refuses_mail(external), 3, "MAIL to be refused")
        wait_log(external, "Redis has not answered for more than a second", before)
    finally:
        redis.signal(signal.SIGCONT)
    heave.wait_until(lambda: accepted(external), 10, "messages to be taken again")
    assert external.metric("heave_redis_changes_total", state="down") == lost, "the connections stayed"


def test_settles_wait_while_redis_is_away(redis, external, clean_sim):
    """A delivery that runs when Redis dies is finished, and its end written when Redis is back: sent once."""
    heave.wait_until(lambda: accepted(external), 20, "the gateway to take messages")
    # A claim whose answer was lost with its connection, in a test before, comes back when its lease has ended.
    heave.wait_until(lambda: external.metric("heave_queue_messages_open") == 0, 90, "the others to be delivered")
    clean_sim.reset()
    clean_sim.fault(service="hve", kind="slow", delay_ms=1500, count=1)
    message = send(external, "slow@contoso.test")
    heave.wait_until(lambda: external.metric("heave_queue_batches", state="started") >= 1, 10, "the start")
    redis.kill()
    clean_sim.wait_delivery("slow@contoso.test")
    redis.start()
    heave.wait_until(external.is_ready, 20, "the gateway")
    external.wait_states(message, {"delivered": 1})
    assert sum(d["recipient"] == "slow@contoso.test" for d in clean_sim.deliveries()) == 1


def test_loading(tmp_path, sim):
    """A server that reads a long file at start is waited for, and said to be loading."""
    redis = redis_servers.Redis(tmp_path / "redis", "aof-use-rdb-preamble no")
    gateway = heave.Gateway(tmp_path / "gateway", sim, {"queue": {"redis": f"redis://127.0.0.1:{redis.port}"}})
    try:
        assert accepted(gateway)
        with redis_servers.Client(redis.port, 60) as client:
            client("EVAL", "for i = 1, 3000 do redis.call('SET', 'x' .. i, i) end", "0")
        redis.kill()
        redis.conf.write_text(redis.conf.read_text() + "key-load-delay 1000\n" + (
            "loading-process-events-interval-bytes 1024\n" if redis_servers.major_version() >= 7 else ""))
        starting = threading.Thread(target=redis.start)
        starting.start()
        wait_log(gateway, "loading", 0)
        assert not accepted(gateway)
        starting.join()
        heave.wait_until(lambda: accepted(gateway), 20, "messages to be taken again")
        assert gateway.stop() == 0
    finally:
        redis.stop()


def test_disk_that_takes_no_snapshot(tmp_path, sim):
    """MISCONF: Redis itself takes no writes because it cannot save."""
    redis = redis_servers.Redis(tmp_path / "redis", "appendonly no", "save 3600 1",
                                f"dir {_made(tmp_path / 'gone')}")
    gateway = heave.Gateway(tmp_path / "gateway", sim, {
        "queue": {"redis": f"redis://127.0.0.1:{redis.port}", "durability": "memory"}})
    try:
        assert accepted(gateway)
        shutil.rmtree(tmp_path / "gone")
        before = len(log_of(gateway))
        redis("BGSAVE")
        heave.wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err", 20, "the failure")
        wait_refused(gateway, "451 4.3.0")
        wait_log(gateway, "Redis refuses: MISCONF", before)
        redis("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        heave.wait_until(lambda: accepted(gateway), 20, "messages to be taken again")
        assert gateway.stop() == 0
    finally:
        redis.stop()


def _made(folder):
    folder.mkdir()
    return folder
