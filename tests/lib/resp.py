"""A Redis connection of a few lines, and a redis-server of one's own."""
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time

import heave


class RedisError(Exception):
    pass


class Redis:
    """One blocking connection; `call("GET", "key")` returns bytes, int, None or lists of them."""

    def __init__(self, port=None, path=None, timeout=20):
        if path is not None:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            self.socket.connect(str(path))
        else:
            self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.file = self.socket.makefile("rb")

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, *args):
        parts = [a if isinstance(a, bytes) else str(a).encode() for a in args]
        self.socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        return self._answer()

    def _answer(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.file.read(size + 2)[:-2]
        if kind == b"*":
            return None if int(rest) < 0 else [self._answer() for _ in range(int(rest))]
        raise RedisError(f"not RESP: {line!r}")

    def keys(self, pattern):
        """All keys that match, by SCAN."""
        cursor, found = b"0", set()
        while True:
            cursor, some = self.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            found.update(k.decode() for k in some)
            if cursor == b"0":
                return sorted(found)


class RedisServer:
    """A redis-server on loopback that keeps what it promised: appendfsync always, noeviction."""

    def __init__(self, folder, *options):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = heave.free_port()
        self.options = options
        self.child = None
        self.start()

    def start(self):
        self.log = open(self.folder / "redis.log", "ab")
        self.child = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
             "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction", *self.options],
            stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        heave.wait_until(self.is_up, 30, "redis-server to answer")

    def is_up(self):
        try:
            with self.client() as client:
                return client.call("PING") == b"PONG"
        except (OSError, RedisError):
            return False

    def client(self):
        return Redis(self.port)

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()
        self.log.close()

    def stop(self):
        if self.child.poll() is None:
            self.child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(20)
            if self.child.poll() is None:
                self.kill()


def wait_gone(pid, seconds=30):
    """Until the process is no more (it need not be our child)."""
    end = time.monotonic() + seconds * heave.PATIENCE
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < end, f"process {pid} does not end"
        time.sleep(0.02)
