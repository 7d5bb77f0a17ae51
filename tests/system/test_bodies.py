"""Bodies in memory and at rest: a large message is in memory once, and what lies on the disk is packed and sealed."""
import base64
import contextlib
import hashlib
import os
import pathlib
import smtplib
import socketserver
import threading

import pytest

import heave
import own_redis
import redis_servers

MIB = 1 << 20
SENDER = "scanner@contoso.test"


def large_message(size, to="archive@contoso.test"):
    """A message with one attachment, `size` bytes in all: base64, which packs a little."""
    head = heave.mime_message(SENDER, to, "Scan", "see attachment")
    room = (size - len(head)) // 78
    return head + base64.encodebytes(os.urandom(57 * room)).replace(b"\n", b"\r\n")


class Memory:
    """Resident memory of a process, in bytes, and its peak since the last mark()."""

    def __init__(self, pid):
        self.folder = pathlib.Path(f"/proc/{pid}")
        self.base = 0

    def _field(self, name):
        for line in (self.folder / "status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise AssertionError(name)

    def mark(self):
        (self.folder / "clear_refs").write_text("5")
        self.base = self._field("VmRSS")

    def growth(self):
        return self._field("VmHWM") - self.base


class Sink(socketserver.ThreadingTCPServer):
    """An SMTP server that takes everything and remembers how long each message was."""
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self):
        self.sizes = []
        self.bodies = []
        super().__init__(("127.0.0.1", 0), SinkSession)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


class SinkSession(socketserver.StreamRequestHandler):
    def say(self, text):
        self.wfile.write(text.encode() + b"\r\n")

    def handle(self):
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            self.say("220 sink")
            while line := self.rfile.readline():
                verb = line[:4].upper()
                if verb == b"EHLO":
                    self.say("250-sink\r\n250-SIZE 104857600\r\n250 8BITMIME")
                elif verb == b"DATA":
                    self.say("354 go on")
                    lines = []
                    while (line := self.rfile.readline()) not in (b".\r\n", b""):
                        lines.append(line[line.startswith(b"."):])
                    if not line:
                        return  # the client broke off
                    content = b"".join(lines)
                    self.server.sizes.append(len(content))
                    self.server.bodies.append(hashlib.sha256(content.partition(b"\r\n\r\n")[2]).hexdigest())
                    self.say("250 2.0.0 Ok")
                elif verb == b"QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 Ok")


@pytest.fixture
def sink():
    server = Sink()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def redis(tmp_path):
    server = own_redis.OwnRedis(tmp_path / "redis")
    yield server
    server.stop()


def relay(sink, **more):
    return {"backends": {"relay": {"type": "smtp", "host": "127.0.0.1", "port": sink.port, "tls": "off",
                                   "auth": "none"}},
            "routes": [{"via": ["relay"]}], "threads": {"ingress": 1, "delivery": 1}, **more}


SANITIZED = "asan" in str(heave.BUILD) or "tsan" in str(heave.BUILD)


@pytest.mark.skipif(SANITIZED, reason="the sanitizers' own memory hides what is measured")
@pytest.mark.parametrize("protocol", ["smtp", "http"])
def test_memory_of_a_large_message(tmp_path, sink, redis, protocol):
    """25 MiB go in and out; neither process ever holds them twice."""
    size = 25 * MIB
    ingest = heave.Gateway(tmp_path / "in", changes=relay(sink, queue={"redis": redis.url}, roles=["ingest"]),
                           start=False)
    ingest.conf["listeners"][1]["max_message_bytes"] = "50MiB"
    ingest.write_conf()
    ingest.start()
    dispatch = None
    message = large_message(size)

    def submit(content):
        if protocol == "smtp":
            return send(ingest, content)
        status, _, body = heave.http("POST", f"{ingest.http}/v1/messages", content,
                                     {"Content-Type": "message/rfc822", "Authorization": f"Bearer {heave.API_KEY}"},
                                     timeout=120)
        assert status == 202, body
        return heave.json.loads(body)["id"]
    try:
        send(ingest, heave.mime_message(SENDER, "archive@contoso.test"))
        submit(heave.mime_message(SENDER, "archive@contoso.test"))  # checking the key the first time takes 16 MiB
        memory = Memory(ingest.process.child.pid)
        memory.mark()
        submit(message)
        grown_in = memory.growth()
        stored = int(redis.call("HGET", "{h0}:k", "bytes"))
        dispatch = heave.Gateway(tmp_path / "out", changes=relay(sink, queue={"redis": redis.url},
                                                                 roles=["dispatch"]), start=False)
        dispatch.conf["listeners"] = dispatch.conf["listeners"][2:]
        dispatch.write_conf()
        dispatch.start()
        memory = Memory(dispatch.process.child.pid)
        heave.wait_until(lambda: redis.call("HGET", "{h0}:k", "bytes") == "0", 60, "the deliveries")
        memory.mark()
        last = submit(message)
        dispatch.wait_states(last, {"delivered": 1}, 60)
        grown_out = memory.growth()
        print(f"{protocol}: in {grown_in / MIB:.1f} MiB, out {grown_out / MIB:.1f} MiB for {len(message) / MIB:.1f}"
              f" MiB; counted {stored / MIB:.1f} MiB")
        assert all(s > len(message) for s in sink.sizes if s > MIB)
        assert grown_in < 1.5 * size
        assert grown_out < 1.5 * size
        heave.wait_until(lambda: redis.call("HGET", "{h0}:k", "bytes") == "0", 20, "an empty queue")
    finally:
        ingest.stop()
        if dispatch is not None:
            dispatch.stop()


def send(gateway, message, to="a@contoso.test"):
    """A gateway that has just started may put the first one off: its ingress threads connect after it is ready."""
    def attempt():
        try:
            return gateway.send(SENDER, [to], message)
        except AssertionError as refusal:
            assert "451" in str(refusal), refusal
            return None
    return heave.wait_until(attempt, 20, "the message to be taken")


def key_line(name):
    return f"{name}:{base64.b64encode(os.urandom(32)).decode()}\n"


def on_disk(gateway):
    return b"".join(f.read_bytes() for f in (gateway.folder / "data").rglob("*") if f.is_file() and ".aof" in f.name)


def restart(gateway, keys, roles):
    gateway.stop()
    pathlib.Path(gateway.conf["queue"]["encryption_key_file"]).write_text(keys)
    gateway.conf["roles"] = roles
    gateway.write_conf()
    gateway.start()


def test_sealed_at_rest_and_rotated(tmp_path, sink):
    """No text of a body reaches the disk; a new key in front seals, the old one opens; a key that is gone holds the
    batch and names itself."""
    keys = tmp_path / "keys"
    first, second = key_line("2026-05"), key_line("2026-11")
    keys.write_text(first)
    keys.chmod(0o644)
    marker = "Wm9uZ-Marker-of-a-secret-body"
    gateway = heave.Gateway(tmp_path / "gw", changes=relay(sink, roles=["ingest"]), start=False)
    gateway.conf["queue"].update(encryption_key_file=str(keys), compression=False)
    gateway.write_conf()
    try:
        check = gateway.run("check", "-c", str(gateway.conf_path))
        assert check.returncode == 0 and f"encryption key file {keys} can be read by others" in check.stderr
        keys.chmod(0o600)
        assert "can be read" not in gateway.run("check", "-c", str(gateway.conf_path)).stderr
        gateway.start()
        text = "\r\n".join([marker] * 50)
        ids = [send(gateway, heave.mime_message(SENDER, "a@contoso.test", text=text)),
               send(gateway, heave.mime_message(SENDER, "b@contoso.test", text="\r\n".join([marker] * 20000)))]
        stored = on_disk(gateway)
        assert ids[0].encode() in stored and marker.encode() not in stored

        restart(gateway, second + first, ["ingest", "dispatch"])
        for message_id in ids:
            gateway.wait_states(message_id, {"delivered": 1})
        assert max(sink.sizes) > 20000 * len(marker)
        assert marker.encode() not in on_disk(gateway)

        restart(gateway, second + first, ["ingest"])
        last = send(gateway, heave.mime_message(SENDER, "c@contoso.test", text=text))
        restart(gateway, first, ["ingest", "dispatch"])  # the newer key is gone
        heave.wait_until(lambda: sum(row["batches"]["held"] for row in gateway.queue()["queues"]) == 1, 20,
                         "the batch to be held")
        assert 'the key "2026-11"' in str(gateway.status(last)["recipients"])
        assert gateway.states(last) == {"queued": 1}
        assert marker.encode() not in on_disk(gateway)
    finally:
        gateway.stop()


def test_packed_at_rest(tmp_path, sink):
    """What packs well takes little room, with compression off its whole size."""
    sizes = {}
    for packed in (True, False):
        gateway = heave.Gateway(tmp_path / str(packed), changes=relay(sink, roles=["ingest"]), start=False)
        gateway.conf["queue"]["compression"] = packed
        gateway.write_conf()
        gateway.start()
        try:
            for length in (500, 20000):
                send(gateway, heave.mime_message(SENDER, "a@contoso.test", text="\r\n".join(["all is well"] * length)))
            sizes[packed] = len(on_disk(gateway))
        finally:
            gateway.stop()
    assert sizes[False] > 260000 and sizes[True] < 40000


def test_slots_move_under_large_bodies(tmp_path, sink):
    """Slots move to and fro while large messages come and go: what was accepted arrives once, byte for byte."""
    cluster = redis_servers.Cluster(tmp_path / "cluster", replicas=0)
    gateway = heave.Gateway(tmp_path / "gw", changes=relay(sink, queue={"redis": cluster.url, "shards": 2}))
    accepted, put_off, done = set(), {}, threading.Event()

    def send(size):
        while not done.is_set():
            message = large_message(size)
            mark = hashlib.sha256(message.partition(b"\r\n\r\n")[2]).hexdigest()
            try:
                gateway.send(SENDER, ["archive@contoso.test"], message)
                accepted.add(mark)
            except (AssertionError, smtplib.SMTPException) as refusal:
                put_off[mark] = refusal
            done.wait(0.05)
    threads = [threading.Thread(target=send, args=(size,)) for size in (300_000, 2 * MIB, 5 * MIB)]
    try:
        for thread in threads:
            thread.start()
        for turn in range(8):
            before = len(accepted)
            source, slot = cluster.master_of(f"{{h{turn % 2}}}")
            target = cluster.nodes[(cluster.nodes.index(source) + 1) % 3]
            cluster.move_slot(slot, source, target, pause=0.005, batch=3)
            heave.wait_until(lambda: len(accepted) >= before + 3, 30, "three more messages")
        done.set()
        for thread in threads:
            thread.join()
        heave.wait_until(lambda: accepted <= set(sink.bodies), 60, "the deliveries")
        print(f"{len(accepted)} accepted, {len(put_off)} put off, {len(sink.bodies)} delivered")
        # A body that was changed on the way would be nobody's.
        assert set(sink.bodies) <= accepted | set(put_off), gateway.process.tail()
        assert len(set(sink.bodies)) == len(sink.bodies)
        assert sum(row["batches"]["held"] for row in gateway.queue()["queues"]) == 0
        assert all("451" in str(refusal) for refusal in put_off.values()), put_off
    finally:
        done.set()
        gateway.stop()
        cluster.stop()
