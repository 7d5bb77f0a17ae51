"""Real sentinels: a master that dies under load, an old master that comes back, what asynchronous replicas can lose."""
import contextlib
import signal
import time

import heave
import pytest
import redis_servers
from sending import SENDER, Senders, account, send


@pytest.fixture
def servers(tmp_path):
    made = redis_servers.SentinelSet(tmp_path / "redis", sentinel_settings=[
        "user watcher on >secret resetchannels &+switch-master -@all +sentinel|master +subscribe"])  # queue/README.md
    yield made
    made.stop()


def start(tmp_path, sim, servers, **queue):
    return heave.Gateway(tmp_path / "gateway", sim, {
        "queue": {"redis": servers.url, "sentinel_user": "watcher", "sentinel_password": "secret",
                  "durability": "replicated", "lease": "5s", **queue},
        "threads": {"ingress": 1, "delivery": 1}})


def wait_accepts(gateway):
    """Each loop looks for itself, so that one of them is ready says nothing of the others."""
    def accepted():
        with gateway.smtp() as client:
            client.ehlo()
            return client.mail(SENDER)[0] == 250
    heave.wait_until(accepted, 30, "new messages to be taken")


def wait_for_another(servers, old):
    heave.wait_until(lambda: servers.master_port() != old.port and servers.master().role() == "master", 30,
                     "another master")


@pytest.mark.parametrize("way", ["kill", pytest.param("stop", marks=pytest.mark.slow)])
def test_master_dies_under_load(tmp_path, clean_sim, servers, way):
    """Nothing that heard 250 is lost; accepting goes on by itself; the old master is not listened to."""
    gateway = start(tmp_path, clean_sim, servers)
    senders = Senders(gateway)
    try:
        senders.wait_accepted(100)
        old = servers.master()
        # The scripts have to be loaded and run again, behind the WAIT that was to vouch for them.
        for _ in range(5):
            old("SCRIPT", "FLUSH")
            senders.wait_accepted(10)
        assert not senders.refused
        old.go(way)
        wait_for_another(servers, old)
        senders.wait_accepted(100)
        # Back as it was: a master by its own configuration, until the sentinels make it a replica.
        old.come(way)
        heave.wait_until(lambda: old.role() == "slave", 30, "the old master to be a replica")
        senders.wait_accepted(50)
    finally:
        senders.stop()
    lost, twice = account(clean_sim, senders)
    assert not lost, (len(lost), gateway.process.tail())
    # A session is ended after many refusals; nothing is refused for good.
    assert all(reply.startswith(("451 4.3.0", "421", "SMTPServerDisconnected")) for reply in senders.refused)
    # Those whose start or end was on its way to the old master when it died.
    assert twice <= 50
    if way == "kill":
        assert "cmdstat_evalsha" not in old.info("commandstats"), "the old master was used"
    assert gateway.metric("heave_queue_durability", level="replicated") == 1
    assert gateway.stop() == 0


def test_replica_is_refused_as_master(tmp_path, sim, servers):
    """A standalone address that is a replica is said so, with what to do, and served as soon as it is a master."""
    replica = servers.servers[1]
    gateway = heave.Gateway(tmp_path / "gateway", sim, {
        "queue": {"redis": f"redis://127.0.0.1:{replica.port}"}}, start=False)
    gateway.start(ready=False)
    heave.wait_until(lambda: "is a replica (role:slave); queue.redis must name the master" in gateway.process.tail(),
                     20, "the sentence")
    assert not gateway.is_ready()
    gateway.process.stop(signal.SIGKILL)


def test_no_replica_left(tmp_path, clean_sim, servers):
    """Without replicas `replicated` promises nothing: 451 within a second or two, and none of it is in doubt."""
    gateway = start(tmp_path, clean_sim, servers)
    first = send(gateway, "before@contoso.test")
    gateway.wait_states(first, {"delivered": 1})
    for server in servers.servers:
        if server is not servers.master():
            server.signal(signal.SIGSTOP)
            server.kill()
    with gateway.smtp() as client:
        client.ehlo()

        def refused():
            began = time.monotonic()
            code, text = client.mail(SENDER)
            assert time.monotonic() - began < 2, "nobody waits for replicas that are not there"
            client.rset()
            return (code, text[:5]) == (451, b"4.3.0")
        heave.wait_until(refused, 5, "MAIL to be refused")
    heave.wait_until(lambda: not gateway.is_ready(), 5, "the gateway to be not ready")
    assert "Redis has 0 of the 1 replicas" in gateway.process.tail()
    servers.servers[1].start()
    wait_accepts(gateway)
    assert gateway.stop() == 0


def test_what_fsync_alone_can_lose(tmp_path, clean_sim, servers):
    """With `fsync` and asynchronous replicas, a fail-over loses what the old master had not sent on: exactly that."""
    gateway = start(tmp_path, clean_sim, servers, durability="fsync", redis=servers.url)
    old = servers.master()
    replicas = [s for s in servers.servers if s is not old]
    clean_sim.fault(service="hve", kind="reply", text="451 4.7.0 later")
    kept = send(gateway, "kept@contoso.test")
    heave.wait_until(lambda: all(int(r.info("replication")["slave_repl_offset"]) >= 1 and
                                 r.info("replication")["master_link_status"] == "up" for r in replicas), 10, "links")
    # They hear nothing from here on, as with a network that is slower than the clients.
    for replica in replicas:
        replica.signal(signal.SIGSTOP)
    old("CLIENT", "KILL", "TYPE", "replica")
    lost = send(gateway, "lost@contoso.test")
    old.kill()
    for replica in replicas:
        replica.signal(signal.SIGCONT)
    wait_for_another(servers, old)
    heave.wait_until(gateway.is_ready, 30, "the new master")
    wait_accepts(gateway)
    assert gateway.states(kept) == {"queued": 1}
    status, _ = heave.http_json("GET", f"{gateway.admin}/v1/messages/{lost}")
    assert status == 404
    clean_sim.clear_faults()
    gateway.wait_states(kept, {"delivered": 1})
    # The old master's disk has it, as promised: whoever starts it alone finds it.
    for server in servers.sentinels + replicas:
        server.kill()
    old.start()
    keys = old("KEYS", f"*:m:{lost}")
    assert len(keys) == 1
    with contextlib.suppress(AssertionError):
        gateway.stop(20)


def test_check(tmp_path, sim, servers):
    gateway = heave.Gateway(tmp_path / "gateway", sim, {"queue": {
        "redis": servers.url, "durability": "replicated", "replicas": 2}}, start=False)
    report = gateway.run("check", "-c", str(gateway.conf_path))
    assert report.returncode == 0, report
    assert f"redis: 127.0.0.1:{servers.servers[0].port}: " in report.stdout
    gateway.conf["queue"]["redis"] = servers.url.replace("/mail", "/nobody")
    gateway.write_conf()
    wrong = gateway.run("check", "-c", str(gateway.conf_path))
    assert wrong.returncode == 1 and 'knows no master "nobody"' in wrong.stderr
    gateway.conf["queue"] = {"redis": servers.url, "durability": "replicated", "replicas": 3}
    gateway.write_conf()
    few = gateway.run("check", "-c", str(gateway.conf_path))
    assert few.returncode == 1 and "Redis has 2 of the 3 replicas" in few.stderr
