"""A redis-server of a test's own, for gateways that share one or that need it set up in a special way."""
import subprocess

import heave


class OwnRedis:
    """Persistent as the gateway wants it; `settings` are further words of the command line."""

    def __init__(self, folder, *settings):
        folder.mkdir(parents=True, exist_ok=True)
        self.port = heave.free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.process = heave.Process(
            ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--dir", folder, "--appendonly", "yes",
             "--appendfsync", "always", "--maxmemory-policy", "noeviction", "--save", "", *settings], folder, "redis")
        heave.wait_until(lambda: self._cli("PING").stdout.strip() == "PONG", what="redis-server to answer")

    def _cli(self, *words):
        return subprocess.run(["redis-cli", "-p", str(self.port), "--raw", *map(str, words)], capture_output=True,
                              text=True, timeout=30 * heave.PATIENCE)

    def call(self, *words):
        """A command's answer as text."""
        done = self._cli(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self):
        self.process.stop()
