"""A TCP proxy on loopback that can break: between gateway and Redis, and between gateway and service."""
import contextlib
import socket
import threading
import time


class Proxy:
    """Forwards `port` to `target` on 127.0.0.1. `mode` is for all connections, those there are and those to come:

    pass       forwards
    cut        connections are reset, new ones too
    blackhole  nothing comes through and nobody is told; what was under way arrives after the next `pass`
    delay      forwards `delay_s` later

    halve() leaves the connections there are half open: the far side is gone, the near side never hears of it.
    """

    def __init__(self, target):
        self.target, self.delay_s = target, 0.2
        self.changed = threading.Condition()
        self._mode = "pass"
        self.pairs = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def mode(self):
        return self._mode

    def set(self, mode):
        assert mode in ("pass", "cut", "blackhole", "delay", "closed")
        with self.changed:
            self._mode = mode
            pairs, self.pairs = (self.pairs, []) if mode in ("cut", "closed") else ([], self.pairs)
            self.changed.notify_all()
        for pair in pairs:
            for end in pair:
                self._reset(end)

    def halve(self):
        """The near ends stay open for as long as the near side keeps them."""
        with self.changed:
            pairs, self.pairs = self.pairs, []
        for near, far in pairs:
            self._reset(far, halved=near)

    def close(self):
        self.set("closed")
        self.listener.close()

    def _reset(self, end, halved=None):
        if halved is not None:
            self.orphans = getattr(self, "orphans", []) + [halved]
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            end.shutdown(socket.SHUT_RDWR)
        end.close()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if self._mode == "cut":
                self._reset(near)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 5)
                far.settimeout(None)
            except OSError:
                self._reset(near)
                continue
            with self.changed:
                self.pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink, near), daemon=True).start()

    def _pump(self, source, sink, near):
        while True:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            with self.changed:
                while self._mode == "blackhole":
                    self.changed.wait()
                late = self._mode == "delay"
            if late:
                time.sleep(self.delay_s)
            if near in getattr(self, "orphans", []):
                return  # half open: say nothing
            try:
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
            except OSError:
                self._reset(source)
                self._reset(sink)
                return
