"""Real Redis set-ups on loopback for the system tests: one server, a master with replicas and sentinels, a Cluster.

Every server has its own folder and port and is stopped by pid. HEAVE_REDIS_SERVER names another redis-server (6.2, 8,
Valkey) to run all of it with.
"""
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time

from heave import Process, free_port, wait_until

SERVER = os.environ.get("HEAVE_REDIS_SERVER", "redis-server")


def version():
    """(7, 0, 15) of the server the tests run; Valkey counts by its own number, which is above 7.2."""
    text = subprocess.run([SERVER, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in text.split("v=")[1].split()[0].split("."))


def major_version():
    return version()[0]


class RedisError(Exception):
    """An error reply."""


def _encode(words):
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def _read_reply(stream):
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"+":
        return rest.decode()
    if kind == b"-":
        raise RedisError(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"$":
        size = int(rest)
        return None if size < 0 else stream.read(size + 2)[:-2].decode(errors="replace")
    if kind == b"*":
        return None if int(rest) < 0 else [_read_reply(stream) for _ in range(int(rest))]
    raise ConnectionError(f"not a reply: {line!r}")


class Client:
    """A connection of the test's own; `with Client(port) as c: c("SET", "a", 1)`."""

    def __init__(self, port, timeout=10, login=None):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.stream = self.socket.makefile("rb")
        if login:
            self("AUTH", *login)

    def __call__(self, *words):
        self.socket.sendall(_encode(words))
        return _read_reply(self.stream)

    def close(self):
        self.stream.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Redis:
    """One redis-server; `settings` are lines of its configuration."""

    def __init__(self, folder, *settings, port=None, sentinel=False, login=None):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.sentinel = sentinel
        self.login = login
        self.conf = self.folder / "redis.conf"
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", "daemonize no", 'save ""']
        if not sentinel:
            lines += ["appendonly yes", "appendfsync always", "repl-diskless-sync-delay 0",
                      "repl-ping-replica-period 1"]
        self.conf.write_text("\n".join([*lines, *settings]) + "\n")
        self.process = None
        self.start()

    def start(self):
        mode = ["--sentinel"] if self.sentinel else []
        self.process = Process([SERVER, self.conf, *mode], self.folder, "redis")
        wait_until(self._answers, 20, f"the Redis server on port {self.port}")

    def _answers(self):
        assert self.process.child.poll() is None, self.process.tail()
        with contextlib.suppress(OSError, ConnectionError):
            try:
                return self("PING") == "PONG"
            except RedisError as error:
                return "LOADING" not in str(error)
        return False

    def __call__(self, *words):
        with Client(self.port, login=self.login) as client:
            return client(*words)

    def info(self, section):
        lines = self("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def role(self):
        return self("ROLE")[0]

    def pid(self):
        return self.process.child.pid

    def signal(self, number):
        self.process.child.send_signal(number)

    def kill(self):
        self.process.child.kill()
        self.process.child.wait()
        self.process.log.close()

    def go(self, way):
        """Away, by "kill" (connections end) or "stop" (they stay, silent)."""
        if way == "kill":
            self.kill()
        else:
            self.signal(signal.SIGSTOP)

    def come(self, way):
        if way == "kill":
            self.start()
        else:
            self.signal(signal.SIGCONT)

    def stop(self):
        if self.process.child.poll() is None:
            self.process.child.kill()
            self.process.child.wait()
        self.process.log.close()


class SentinelSet:
    """A master, `replicas` replicas and three sentinels that agree after a second without an answer."""

    NAME = "mail"

    def __init__(self, folder, replicas=2, settings=(), sentinel_settings=()):
        folder = pathlib.Path(folder)
        self.servers = [Redis(folder / "r0", *settings)]
        for i in range(replicas):
            self.servers.append(Redis(folder / f"r{i + 1}", f"replicaof 127.0.0.1 {self.servers[0].port}", *settings))
        wait_until(lambda: self.servers[0].info("replication").get("connected_slaves") == str(replicas) and
                   all("state=online" in value for key, value in self.servers[0].info("replication").items()
                       if key.startswith("slave") and key[5:].isdigit()), 30, "the replicas")
        watch = [f"sentinel monitor {self.NAME} 127.0.0.1 {self.servers[0].port} 2",
                 f"sentinel down-after-milliseconds {self.NAME} 1000",
                 f"sentinel failover-timeout {self.NAME} 6000",
                 f"sentinel parallel-syncs {self.NAME} 2"]
        self.sentinels = [Redis(folder / f"s{i}", *watch, *sentinel_settings, sentinel=True) for i in range(3)]
        wait_until(self._complete, 30, "the sentinels to know each other and the replicas")
        hosts = ",".join(f"127.0.0.1:{s.port}" for s in self.sentinels)
        self.url = f"sentinel://{hosts}/{self.NAME}"

    def _complete(self):
        for sentinel in self.sentinels:
            state = sentinel("SENTINEL", "MASTER", self.NAME)
            state = dict(zip(state[::2], state[1::2]))
            if (int(state["num-other-sentinels"]) < len(self.sentinels) - 1 or
                    int(state["num-slaves"]) < len(self.servers) - 1):
                return False
        return True

    def master_port(self):
        """As the first sentinel sees it."""
        return int(self.sentinels[0]("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME)[1])

    def master(self):
        port = self.master_port()
        return next(s for s in self.servers if s.port == port)

    def stop(self):
        for server in self.sentinels + self.servers:
            server.stop()


class Cluster:
    """`masters` masters with one replica each; slots in equal parts."""

    def __init__(self, folder, masters=3, replicas=1, settings=()):
        folder = pathlib.Path(folder)
        count = masters * (1 + replicas)
        self.nodes = [Redis(folder / f"n{i}", "cluster-enabled yes", "cluster-node-timeout 1500",
                            "cluster-config-file nodes.conf", *settings, port=_cluster_port()) for i in range(count)]
        self.ids = [node("CLUSTER", "MYID") for node in self.nodes]
        for i, node in enumerate(self.nodes):
            node("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for i in range(masters):
            first, end = 16384 * i // masters, 16384 * (i + 1) // masters
            self.nodes[i]("CLUSTER", "ADDSLOTSRANGE" if self._has_ranges() else "ADDSLOTS",
                          *([first, end - 1] if self._has_ranges() else range(first, end)))
        for node in self.nodes[1:]:
            self.nodes[0]("CLUSTER", "MEET", "127.0.0.1", node.port)
        wait_until(lambda: all(n.info_cluster("cluster_known_nodes") == count for n in self._views()), 30,
                   "the nodes to know each other")
        for i in range(masters, count):
            wait_until(lambda node=self.nodes[i], master=self.ids[i % masters]: _replicate(node, master), 30,
                       "a replica")
        wait_until(self._ready, 60, "the Cluster")
        self.url = "cluster://" + ",".join(f"127.0.0.1:{n.port}" for n in self.nodes[:masters])

    def _has_ranges(self):
        return int(self.nodes[0].info("server")["redis_version"].split(".")[0]) >= 7

    def _views(self):
        return [_View(node) for node in self.nodes if node.process.child.poll() is None]

    def _ready(self):
        return all(v.info_cluster("cluster_state") == "ok" for v in self._views()) and all(
            n.role() == "master" or n.info("replication").get("master_link_status") == "up" for n in self.nodes)

    def is_ok(self):
        return all(v.info_cluster("cluster_state") == "ok" for v in self._views())

    def slots(self):
        """[(first, last, port of the master)]"""
        node = next(n for n in self.nodes if n.process.child.poll() is None)
        return [(row[0], row[1], row[2][1]) for row in node("CLUSTER", "SLOTS")]

    def master_of(self, key):
        slot = self.nodes[0]("CLUSTER", "KEYSLOT", key)
        port = next(p for first, last, p in self.slots() if first <= slot <= last)
        return next(n for n in self.nodes if n.port == port), slot

    def move_slot(self, slot, source, target, pause=0.0, batch=10):
        """As `redis-cli --cluster reshard` moves one, key by key, with a pause between."""
        target_id, source_id = target("CLUSTER", "MYID"), source("CLUSTER", "MYID")
        moved = 0
        with Client(source.port, 60) as s, Client(target.port, 60) as t:
            t("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
            s("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
            while keys := s("CLUSTER", "GETKEYSINSLOT", slot, batch):
                s("MIGRATE", "127.0.0.1", target.port, "", 0, 60000, "KEYS", *keys)
                moved += len(keys)
                time.sleep(pause)
            t("CLUSTER", "SETSLOT", slot, "NODE", target_id)
            s("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        for node in self.nodes:
            with contextlib.suppress(OSError, ConnectionError, RedisError):
                if node.role() == "master":
                    node("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        return moved

    def stop(self):
        for node in self.nodes:
            node.stop()


class _View:
    def __init__(self, node):
        self.node = node

    def info_cluster(self, name):
        lines = self.node("CLUSTER", "INFO").splitlines()
        value = dict(line.split(":", 1) for line in lines if ":" in line)[name]
        return int(value) if value.isdigit() else value


def _replicate(node, master):
    try:
        return node("CLUSTER", "REPLICATE", master) == "OK"
    except RedisError:  # it has not heard of the master yet
        return False


def _cluster_port():
    """A port whose bus port (10,000 above) is free too."""
    while True:
        port = free_port()
        if port + 10000 < 65536:
            with contextlib.suppress(OSError), socket.socket() as bus:
                bus.bind(("127.0.0.1", port + 10000))
                return port
