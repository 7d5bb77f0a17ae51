"""A real Redis Cluster of six nodes: slots on the move under load, a master that dies under load."""
import threading

import heave
import pytest
import redis_servers
from sending import SENDER, Senders, account, send


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = redis_servers.Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.stop()


@pytest.fixture
def clean_cluster(cluster):
    """The module's Cluster without keys, all masters answering."""
    heave.wait_until(cluster.is_ok, 30, "the Cluster")
    for node in cluster.nodes:
        if node.role() == "master":
            node("FLUSHALL")
    return cluster


def start(tmp_path, sim, cluster, name="gateway", **queue):
    return heave.Gateway(tmp_path / name, sim, {
        "queue": {"redis": cluster.url, "durability": "replicated", "lease": "5s", **queue},
        "threads": {"ingress": 1, "delivery": 1}})


def keys_of(cluster):
    """{port: number of keys} of the masters that have some."""
    return {n.port: size for n in cluster.nodes if n.role() == "master" and (size := n("DBSIZE")) > 0}


def test_spread_over_the_nodes(tmp_path, clean_sim, clean_cluster):
    """Sixteen shards by default; every master holds some; all is found and delivered; a large body too."""
    gateway = start(tmp_path, clean_sim, clean_cluster)
    senders = Senders(gateway, count=2)
    try:
        senders.wait_accepted(60)
    finally:
        senders.stop()
    large = send(gateway, "large@contoso.test", text="0123456789abcdef\r\n" * 60000)
    gateway.wait_states(large, {"delivered": 1})
    lost, twice = account(clean_sim, senders)
    assert (lost, twice) == (set(), 0)
    assert not senders.refused
    assert len(keys_of(clean_cluster)) == 3
    key = {"Idempotency-Key": "order-1"}
    body = {"from": "a@contoso.test", "to": ["b@contoso.test"], "subject": "s", "text": "t"}
    assert gateway.post(body, headers=key)[0] == 202
    status, answer = gateway.post(body, headers=key)
    assert status == 202 and answer
    # One connection per node and loop, the listeners and the guides: nothing grows with the shards.
    clients = sum(len(n("CLIENT", "LIST", "TYPE", "normal").splitlines()) for n in clean_cluster.nodes)
    assert clients <= 3 * (3 + 1) + len(clean_cluster.nodes) * 2
    assert gateway.stop() == 0


def test_slots_move_under_load(tmp_path, clean_sim, clean_cluster):
    """Every slot of the queue is moved to another master, key by key, while messages come and go: no client hears of
    it, nothing is lost, nothing is sent twice."""
    gateway = start(tmp_path, clean_sim, clean_cluster, shards=8)
    clean_sim.fault(service="hve", kind="reply", text="451 4.7.0 later", probability=0.7)  # so that much waits in the slots
    senders = Senders(gateway, count=6, pause=0)
    moved = 0
    try:
        senders.wait_accepted(400)
        masters = [n for n in clean_cluster.nodes if n.role() == "master"]
        for shard in range(8):
            source, slot = clean_cluster.master_of(f"{{h{shard}}}")
            target = masters[(masters.index(source) + 1) % len(masters)]
            moved += clean_cluster.move_slot(slot, source, target, pause=0.002)
            senders.wait_accepted(20)
    finally:
        senders.stop()
        clean_sim.clear_faults()
    lost, twice = account(clean_sim, senders)
    assert not lost, gateway.process.tail()
    assert twice == 0
    assert not senders.refused, (senders.refused, gateway.process.tail())
    assert moved > 100, "the test moved hardly anything"
    assert gateway.stop() == 0


def test_a_slot_that_stays_on_the_move(tmp_path, clean_sim, clean_cluster):
    """A shard whose slot is stuck half-way waits a bounded time; new messages go to the other shards."""
    gateway = start(tmp_path, clean_sim, clean_cluster, shards=4)
    source, slot = clean_cluster.master_of("{h2}")
    target = next(n for n in clean_cluster.nodes if n.role() == "master" and n is not source)
    target("CLUSTER", "SETSLOT", slot, "IMPORTING", source("CLUSTER", "MYID"))
    source("CLUSTER", "SETSLOT", slot, "MIGRATING", target("CLUSTER", "MYID"))
    senders = Senders(gateway, count=2)
    try:
        senders.wait_accepted(50)
        assert senders.slowest < 12
    finally:
        senders.stop()
        for node in (source, target):
            node("CLUSTER", "SETSLOT", slot, "STABLE")
    lost, twice = account(clean_sim, senders)
    assert (lost, twice) == (set(), 0)
    assert gateway.stop() == 0


@pytest.mark.parametrize("way", ["kill", pytest.param("stop", marks=pytest.mark.slow)])
def test_master_dies_under_load(tmp_path, clean_sim, clean_cluster, way):
    """Its shards are away until its replica is voted master; those of the others go on; nothing accepted is lost."""
    gateway = start(tmp_path, clean_sim, clean_cluster)
    senders = Senders(gateway, count=4)
    victim, slot = clean_cluster.master_of("{h0}")
    try:
        senders.wait_accepted(100)
        victim.go(way)
        senders.wait_accepted(100)
        heave.wait_until(lambda: any(first <= slot <= last and port != victim.port
                                     for first, last, port in clean_cluster.slots()), 30, "the vote")
        # The new master has no replica, so at `replicated` its shards take nothing new; what they hold goes out.
        senders.wait_accepted(20)
        victim.come(way)
        heave.wait_until(lambda: victim.role() == "slave" and
                         victim.info("replication")["master_link_status"] == "up", 30, "the old master as replica")
        senders.wait_accepted(100)
    finally:
        senders.stop()
    lost, twice = account(clean_sim, senders)
    assert not lost, (len(lost), gateway.process.tail())
    assert twice <= 50
    assert all(reply.startswith(("451 4.3.0", "421", "SMTPServerDisconnected")) for reply in senders.refused)
    status, totals = heave.http_json("GET", f"{gateway.admin}/v1/admin/queue")
    assert status == 200 and totals
    assert gateway.stop() == 0


def test_all_nodes_away_and_back(tmp_path, clean_sim, clean_cluster):
    """No node: 451 at once. All back: served again without a restart."""
    gateway = start(tmp_path, clean_sim, clean_cluster, durability="fsync")
    first = send(gateway, "a@contoso.test")
    gateway.wait_states(first, {"delivered": 1})
    for node in clean_cluster.nodes:
        node.kill()
    heave.wait_until(lambda: not gateway.is_ready(), 10, "the gateway to be not ready")

    def refused():
        with gateway.smtp() as client:
            client.ehlo()
            return client.mail(SENDER)[0] == 451
    heave.wait_until(refused, 5, "451")
    starts = [threading.Thread(target=node.start) for node in clean_cluster.nodes]
    for thread in starts:
        thread.start()
    for thread in starts:
        thread.join()
    heave.wait_until(clean_cluster.is_ok, 30, "the Cluster")
    heave.wait_until(gateway.is_ready, 30, "the gateway")
    gateway.wait_states(send(gateway, "b@contoso.test"), {"delivered": 1})
    assert gateway.stop() == 0


def test_wrong_topology_is_said(tmp_path, sim, clean_cluster):
    node = clean_cluster.nodes[0]
    gateway = heave.Gateway(tmp_path, sim, {"queue": {"redis": f"redis://127.0.0.1:{node.port}"}}, start=False)
    gateway.start(ready=False)
    heave.wait_until(lambda: "part of a Cluster. Say cluster:// in queue.redis." in gateway.process.tail(), 20,
                     "the sentence")
    gateway.kill()


@pytest.mark.slow
def test_cluster_down(tmp_path, clean_sim, clean_cluster):
    """A part without master and replica: the whole Cluster says CLUSTERDOWN, until one of them is back."""
    gateway = start(tmp_path, clean_sim, clean_cluster, durability="fsync")
    victim, _ = clean_cluster.master_of("{h0}")
    node_id = victim("CLUSTER", "MYID")
    replicas = [n for n in clean_cluster.nodes if n.role() == "slave" and
                n("CLUSTER", "NODES").find(f"myself,slave {node_id}") >= 0]
    senders = Senders(gateway, count=2)
    try:
        senders.wait_accepted(30)
        for node in [*replicas, victim]:
            node.kill()
        heave.wait_until(lambda: any("451 4.3.0" in reply for reply in senders.refused), 30, "451")
        heave.wait_until(lambda: not gateway.is_ready(), 30, "the gateway to be not ready")
        for node in [victim, *replicas]:
            node.start()
        heave.wait_until(clean_cluster.is_ok, 30, "the Cluster")
        senders.wait_accepted(30)
    finally:
        senders.stop()
    assert account(clean_sim, senders)[0] == set()
    assert gateway.stop() == 0


def test_check(tmp_path, sim, clean_cluster):
    gateway = heave.Gateway(tmp_path, sim, {"queue": {"redis": clean_cluster.url, "durability": "replicated"}},
                            start=False)
    report = gateway.run("check", "-c", str(gateway.conf_path))
    assert report.returncode == 0, report
    assert report.stdout.count("cluster, role master with 1 replicas online") == 3
    assert "durability replicated: by WAIT" in report.stdout
