"""What the rounds of the chaos suite are made of: an arena (simulator, Redis, gateways), a load, a fault, the ledger."""
import contextlib
import os
import pathlib
import signal
import time

import heave
import ledger as books
import resp

SMTP_MESSAGES = int(os.environ.get("HEAVE_CHAOS_SMTP", "60"))
HTTP_MESSAGES = int(os.environ.get("HEAVE_CHAOS_HTTP", "30"))
SEED = os.environ.get("HEAVE_CHAOS_SEED", "1")
LARGE = "x" * 75 + "\r\n"
LEASE = "1s"
LEASE_S = 1.0


class Arena:
    """One round's world. `redis`: "embedded" or a resp.RedisServer; `roles`: one list of roles a gateway."""

    def __init__(self, folder, name, dice, redis="external", roles=(("ingest", "dispatch"),), changes=None, queue=None,
                 redis_options=(), env=None, redis_port=None, sim_ports=None, start=True, inside=False):
        self.folder, self.name, self.dice = pathlib.Path(folder), name, dice
        self.exits = contextlib.ExitStack()
        self.ledger, self.inside = books.Ledger(name), inside
        self.sim = heave.Simulator(self.folder / "sim", "--acs-quota", "off")
        self.exits.callback(self.sim.stop)
        self.redis = None
        conf = {"lease": LEASE, "shards": 4, **(queue or {})}
        if redis == "embedded":
            conf.update(redis="embedded", data_dir=str(self.folder / "data"))
        else:
            self.redis = resp.RedisServer(self.folder / "redis", *redis_options)
            self.exits.callback(self.redis.stop)
            conf["redis"] = f"redis://127.0.0.1:{redis_port(self.redis.port) if redis_port else self.redis.port}/0"
        self.gateways = []
        if sim_ports is not None:
            sim_ports(self.sim)
        for index, own in enumerate(roles):
            made = heave.Gateway(self.folder / f"gw{index}", self.sim,
                                 {"queue": dict(conf), "roles": list(own), "threads": {"ingress": 2, "delivery": 2},
                                  "drain_timeout": "5s", **(changes or {})}, start=False,
                                 env=(env or {}).get(index))
            for backend in made.conf["backends"].values():
                backend["timeouts"] = {"connect": "3s", "reply": "4s"}
            made.write_conf()
            self.gateways.append(made)
        if start:
            for made in self.gateways:
                self.start(made)
        self.exits.callback(self.end)

    def start(self, gateway, env=None, ready=True):
        """`env` is for this start alone."""
        usual, gateway.env = gateway.env, {**gateway.env, **(env or {})}
        gateway.start(ready)
        gateway.env = usual

    def end(self):
        for gateway in self.gateways:
            if gateway.process is not None and gateway.process.child.poll() is None:
                gateway.process.child.send_signal(signal.SIGCONT)
                gateway.process.child.kill()
                gateway.process.child.wait()
                gateway.process.log.close()
        if self.redis is None:
            with contextlib.suppress(FileNotFoundError, ValueError):
                resp.wait_gone(int((self.folder / "data" / "redis.pid").read_text()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.exits.close()

    def client(self):
        if self.redis is not None:
            return self.redis.client()
        return resp.Redis(path=self.folder / "data" / "redis.sock")

    def started(self):
        """Batches marked STARTED. An embedded Redis may just be ending for the next one to start."""
        def asked():
            try:
                with self.client() as client:
                    return [books.started_batches(client)]
            except (OSError, resp.RedisError):
                return None
        return heave.wait_until(asked, 20, "Redis to tell the leases")[0]

    # Loads.

    def recipients(self, number, kind):
        base = f"{self.name}.{kind}{number}"
        if self.inside:
            return [f"{base}@contoso.test"]
        if number % 7 == 3:
            return [f"{base}.{i}@contoso.test" for i in range(3)] + [f"{base}@example.com"]
        return [f"{base}@example.com"] if number % 3 == 1 else [f"{base}@contoso.test"]

    def body(self, number, large):
        return LARGE * 2500 if large and number % 4 == 0 else f"number {number}"

    def loads(self, smtp=None, http=None, large=False, pause=0.0, gateways=None, first=0):
        """Two SMTP threads and one HTTP thread, started; the numbers of their messages begin at `first`."""
        smtp, http = SMTP_MESSAGES if smtp is None else smtp, HTTP_MESSAGES if http is None else http
        ingest = gateways or [g for g in self.gateways if "ingest" in g.conf["roles"]]
        made = [books.SmtpLoad(self.ledger, ingest[i:] + ingest[:i], range(first + i, first + smtp, 2), lambda n: self.recipients(n, "s"),
                               lambda n: self.body(n, large), pause) for i in range(2)]
        made.append(books.HttpLoad(self.ledger, ingest, range(first, first + http), lambda n: self.recipients(n, "h"),
                                   lambda n: self.body(n, large), pause))
        for load in made:
            load.start()
        return made

    # Faults.

    def died(self, gateway):
        return gateway.process.child.poll() is not None

    def note_started(self):
        self.ledger.fault(self.started())

    def after_death(self, gateway, env=None):
        """A gateway was killed: counts what it had started, and starts it again."""
        code = gateway.process.child.wait()
        assert code == -signal.SIGKILL, f"the gateway ended by itself, code {code}:\n{books.happenings(gateway)}"
        gateway.process.log.close()
        if self.redis is not None:
            self.note_started()
            self.start(gateway, env)
        else:
            # Its Redis went with it. The sweeper leaves leases alone for a lease after the start.
            self.start(gateway, env)
            self.note_started()

    def kill(self, gateway):
        gateway.process.child.kill()
        self.after_death(gateway)

    def signal(self, gateway, number):
        gateway.process.child.send_signal(number)

    # The end of a round.

    def finish(self, loads, seconds=90, allowed=("delivered",)):
        try:
            books.run_loads(loads, seconds=seconds)
            books.wait_settled(self.gateways[0], seconds)
            return self.verdict(allowed)
        finally:
            for gateway in self.gateways:
                code = gateway.process.child.poll()
                assert code is None, f"the gateway ended by itself, code {code}:\n{books.happenings(gateway)}"

    def verdict(self, allowed=("delivered",)):
        # A settlement may still be on its way when the last batch has moved: the sweeper's next round is after it.
        with self.client() as client:
            found = books.check(self.ledger, self.gateways[0], self.sim, client, allowed)
        books.demand(found)
        return found

    def log_of(self, gateway):
        return gateway.process.log_path.read_text(errors="replace")


def pause(seconds):
    """Time that has to pass (a lease, an outage); never a stand-in for an event."""
    time.sleep(seconds * heave.PATIENCE)
