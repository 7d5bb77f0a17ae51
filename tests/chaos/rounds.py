"""The rounds: one at each fail point, and one for each kind of fault. A round is a function of (folder, dice) that raises
when a promise was broken and returns the ledger's line."""
import os
import signal
import threading

import heave
import ledger as books
from campaign import Arena, pause
from points import POINTS

BOTH = ("ingest", "dispatch")


# ---- Fail points ----

def at_point(folder, dice, name, point):
    """Dies (or fails) at the point under load, is started again, and everything comes to its end."""
    needs, action = point.get("needs"), point.get("action", "kill")
    two = needs not in ("embedded", "replica", "recovery", "sweep") and dice.random() < 0.5
    # Two share the work, so each comes by half as often.
    passage = dice.randint(1, max(1, point["most"] // (2 if two else 1)))
    armed = {"HEAVE_FAILPOINT": f"{name}:{action}@{passage}"}
    setting = SETTINGS.get(needs, Setting)()
    with Arena(folder, f"{name}", dice, redis="embedded" if needs == "embedded" else "external",
               roles=(BOTH, BOTH) if two else (BOTH,), start=False, **setting.arena()) as arena:
        victim = arena.gateways[-1]
        for gateway in arena.gateways[:-1]:
            arena.start(gateway)
        setting.before(arena)
        setting.start(arena, victim, armed)
        order = [victim, *arena.gateways[:-1]]
        loads = arena.loads(large=needs == "large", pause=setting.pause, gateways=order)
        setting.during(arena, victim)

        def fired():
            if f"failpoint {name} {action} passage" in arena.log_of(victim):
                return True
            if setting.repeats and not any(load.is_alive() for load in loads):
                # The other gateway did the work so far.
                setting.before(arena)
                loads.extend(arena.loads(large=needs == "large", gateways=order, first=1000 * len(loads)))
            return False

        try:
            heave.wait_until(fired, 60, f"{name} at passage {passage}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{books.happenings(victim)}") from None
        if action == "kill":
            heave.wait_until(lambda: arena.died(victim), 10, "the gateway to be dead")
            setting.heal(arena)
            arena.after_death(victim)
            setting.after(arena)
        else:
            setting.heal(arena)
        return f"passage {passage}, {'two gateways' if two else 'one'}; " + arena.finish(
            loads, allowed=setting.allowed).text


class Setting:
    """What a point needs to be reached, besides load."""

    pause = 0.0
    allowed = ("delivered",)
    repeats = True  # more load brings the point nearer

    def arena(self):
        return {}

    def before(self, arena):
        """Before the victim is there."""

    def start(self, arena, victim, armed):
        arena.start(victim, armed, ready=False)
        heave.wait_until(lambda: arena.died(victim) or victim.is_alive(), 30, "the gateway to be there")
        if not arena.died(victim):
            heave.wait_until(lambda: arena.died(victim) or victim.is_ready(), 30, "the gateway to be ready")

    def during(self, arena, victim):
        """When the load runs."""

    def after(self, arena):
        """When it runs again."""

    def heal(self, arena):
        arena.sim.clear_faults()


class Partial(Setting):
    """Some recipients of a batch are deferred, the others taken."""

    def before(self, arena):
        arena.sim.fault(service="hve", kind="reply", phase="rcpt", match=".1@contoso.test", text="450 4.2.1 try later",
                        count=12)


class Recovery(Setting):
    """A first crash leaves batches STARTED; the second one comes while they get their verdict."""

    repeats = False

    def start(self, arena, victim, armed):
        self.armed = armed
        super().start(arena, victim, {"HEAVE_FAILPOINT": "smtp-answered:kill@5"})

    def during(self, arena, victim):
        heave.wait_until(lambda: arena.died(victim), 30, "the first crash")
        victim.process.child.wait()
        arena.note_started()
        super().start(arena, victim, self.armed)


class Expiry(Setting):
    """The service says no for longer than messages live."""

    allowed = ("delivered", "expired")

    def arena(self):
        lanes = {name: {"share": share, "retry": "500ms*", "expires": "3s", "on_unknown": "retry"}
                 for name, share in (("alert", "50%"), ("normal", "35%"), ("bulk", "15%"))}
        return {"changes": {"lanes": lanes}}

    def before(self, arena):
        arena.sim.fault(service="hve", kind="reply", phase="mail", text="451 4.3.0 not now")


class Throttle(Setting):
    def before(self, arena):
        arena.sim.fault(service="acs", kind="throttle", retry_after=1, count=2)
        arena.sim.fault(service="hve", kind="reply", phase="mail", text="421 4.3.2 The maximum number of connections", count=2)


class Slow(Setting):
    """Leases are held for longer than a heartbeat."""

    def before(self, arena):
        arena.sim.fault(service="hve", kind="slow", delay_ms=600, count=20)


class Stop(Setting):
    pause = 0.01

    def during(self, arena, victim):
        heave.wait_until(lambda: arena.ledger.count() >= 10, 30, "some accepted messages")
        arena.signal(victim, signal.SIGTERM)


class Reload(Setting):
    pause = 0.01

    def during(self, arena, victim):
        heave.wait_until(lambda: arena.ledger.count() >= 10, 30, "some accepted messages")
        arena.signal(victim, signal.SIGHUP)


class Operator(Setting):
    """Somebody holds and releases whatever waits, without end."""

    pause = 0.01

    def before(self, arena):
        # Something has to wait for it.
        arena.sim.fault(service="hve", kind="reply", phase="mail", text="451 4.3.0 not now", count=30)

    def work(self, gateway, verb):
        # Not what is held because its outcome is unknown: that would end as it is.
        value = {"hold": {"all": True, "reason": "chaos"}, "release": {"selector": {"state": "held"}}}[verb]
        try:
            heave.http_json("POST", f"{gateway.admin}/v1/admin/queue/{verb}", value)
        except OSError:
            pass  # it dies over this

    def during(self, arena, victim):
        def go_on():
            while not arena.died(victim):
                for verb in ("hold", "release"):
                    self.work(victim, verb)

        self.hand = threading.Thread(target=go_on, daemon=True)
        self.hand.start()

    def after(self, arena):
        self.hand.join()
        self.work(arena.gateways[0], "release")


class Embedded(Setting):
    """Redis is killed, and the gateway as it starts it again. Each start passes the point once."""

    repeats = False

    pause = 0.01

    def start(self, arena, victim, armed):
        super().start(arena, victim, {"HEAVE_FAILPOINT": armed["HEAVE_FAILPOINT"].replace("@1", "@2")})

    def during(self, arena, victim):
        heave.wait_until(lambda: arena.ledger.count() >= 10, 30, "some accepted messages")
        # Two crashes within moments: what was being sent when Redis died lost its mark with it, and the one who would have
        # said it again died too. At most what the connections of both delivery threads carry.
        arena.ledger.fault(arena.started() + 2 * 4 * 2)
        os.kill(int((arena.folder / "data" / "redis.pid").read_text()), signal.SIGKILL)


class Replica(Setting):
    """`replicated`: WAIT follows each group."""

    repeats = False

    def arena(self):
        return {"queue": {"durability": "replicated"}}

    def before(self, arena):
        import resp
        replica = resp.RedisServer(arena.folder / "replica", "--replicaof", "127.0.0.1", str(arena.redis.port))
        arena.exits.callback(replica.stop)

        def linked():
            with arena.client() as client:
                return b"state=online" in client.call("INFO", "replication")
        heave.wait_until(linked, 30, "the replica to be in step")


SETTINGS = {"partial": Partial, "recovery": Recovery, "expiry": Expiry, "throttle": Throttle, "slow": Slow, "stop": Stop,
            "reload": Reload, "embedded": Embedded, "replica": Replica,
            "operator": Operator}


# ---- Kinds of faults ----

def gateway_kills(folder, dice, redis="external", roles=(BOTH,), victims=(0,), times=3):
    """kill -9 at moments of no importance."""
    with Arena(folder, f"kill{len(roles)}{redis[0]}", dice, redis=redis, roles=roles) as arena:
        loads = arena.loads(pause=0.01)
        total = sum(len(load.numbers) for load in loads)
        for turn in range(times):
            goal = total * (turn + 1) // (times + 1) + dice.randint(-5, 5)
            books.run_loads(loads, until=lambda goal=goal: arena.ledger.count() >= goal)
            arena.kill(arena.gateways[dice.choice(victims)])
        return arena.finish(loads).text


def redis_kills(folder, dice, redis="external", times=2):
    """kill -9 of Redis. The gateway lives, so nothing it sends is sent twice unless a lease ended meanwhile."""
    with Arena(folder, f"redis{redis[0]}", dice, redis=redis) as arena:
        gateway = arena.gateways[0]
        loads = arena.loads(pause=0.01)
        total = sum(len(load.numbers) for load in loads)
        for turn in range(times):
            goal = total * (turn + 1) // (times + 1) + dice.randint(-5, 5)
            books.run_loads(loads, until=lambda goal=goal: arena.ledger.count() >= goal)
            arena.note_started()
            if arena.redis is None:
                os.kill(int((arena.folder / "data" / "redis.pid").read_text()), signal.SIGKILL)
            else:
                arena.redis.kill()
                pause(dice.uniform(0.05, 1.5))
                arena.redis.start()
            heave.wait_until(gateway.is_ready, 60, "Redis to be back")
        return arena.finish(loads).text


def stopped_gateway(folder, dice):
    """SIGSTOP of one of two for longer than a lease: the other one takes over, and what the first says late is refused."""
    with Arena(folder, "stopped", dice, roles=(BOTH, BOTH)) as arena:
        sleeper = arena.gateways[1]
        arena.sim.fault(service="hve", kind="slow", delay_ms=200)
        loads = arena.loads(pause=0.01, gateways=arena.gateways[:1])
        for _ in range(2):
            before = arena.ledger.count()
            books.run_loads(loads, until=lambda before=before: arena.ledger.count() >= before + 20 + dice.randint(0, 10))
            heave.wait_until(lambda: arena.started() > 0 or not any(load.is_alive() for load in loads), 20, "started batches")
            arena.signal(sleeper, signal.SIGSTOP)
            arena.note_started()
            pause(2.5 * 1.0)
            arena.signal(sleeper, signal.SIGCONT)
        arena.sim.clear_faults()
        return arena.finish(loads).text


# ---- Networks, disks, clocks, services ----

def broken_network(folder, dice, between, how):
    """The connections between the gateway and Redis, or the service, are cut, go silent, or are half open, twice."""
    from proxy import Proxy
    made = []

    def proxied(port):
        made.append(Proxy(port))
        return made[-1].port

    def services(sim):
        sim.ports.update({name: proxied(sim.ports[name]) for name in ("hve", "acs")})

    setting = {"redis_port": proxied} if between == "redis" else {"sim_ports": services}
    with Arena(folder, f"{between}-{how}", dice, **setting) as arena:
        gateway = arena.gateways[0]
        loads = arena.loads(pause=0.01)
        total = sum(len(load.numbers) for load in loads)
        for turn in range(2):
            goal = total * (turn + 1) // 3 + dice.randint(-5, 5)
            books.run_loads(loads, until=lambda goal=goal: arena.ledger.count() >= goal)
            arena.note_started()
            if between == "redis" and how in ("half-open", "blackhole"):
                # The lease of these rounds is shorter than it takes to find a connection dead (10 s): what is being sent
                # when the way goes silent loses its lease, and its mark never arrives. At most what the connections carry.
                arena.ledger.fault(2 * 4 * 2)
            for proxy in made:
                proxy.halve() if how == "half-open" else proxy.set(how)
            arena.note_started()
            if how != "half-open":
                # Longer and shorter than a lease, by turns.
                pause(dice.uniform(0.2, 0.8) if turn == 0 else dice.uniform(1.5, 3.0))
            arena.note_started()
            for proxy in made:
                proxy.set("pass")
            if between == "redis":
                heave.wait_until(gateway.is_ready, 60, "the gateway to find Redis again")
            arena.note_started()
        books.run_loads(loads, seconds=90)
        books.wait_settled(gateway, 90)
        if between == "service":
            # Nobody crashed: the gateway itself knows whose answer it did not hear.
            arena.ledger.fault(arena.log_of(gateway).count(" verdict=unknown "))
        line = arena.verdict().text
        for proxy in made:
            proxy.close()
        return line


def disk_full(folder, dice):
    """The disk under Redis runs full under load: nothing is promised that is not kept, and it goes on when there is room."""
    import subprocess
    disk = folder / "redis"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "heave-chaos", disk], capture_output=True).returncode != 0:
        return "skipped: mounting a tmpfs is not allowed here"
    try:
        with Arena(folder, "diskfull", dice) as arena:
            gateway = arena.gateways[0]
            loads = arena.loads(smtp=60, http=30, pause=0.02)
            books.run_loads(loads, until=lambda: arena.ledger.count() >= 20 + dice.randint(0, 10))
            arena.note_started()
            fill = disk / "fill"
            with open(fill, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 4096)
                except OSError:
                    pass
            before = arena.ledger.count()
            heave.wait_until(lambda: sum(arena.ledger.refused.values()) > 3 or arena.redis.child.poll() is not None, 30,
                             "refusals, or a Redis that gave up")
            pause(1.5)
            accepted_when_full = arena.ledger.count() - before
            fill.unlink()
            if arena.redis.child.poll() is not None:
                arena.redis.log.close()
                arena.redis.start()
            heave.wait_until(gateway.is_ready, 60, "the gateway to be ready again")
            arena.note_started()
            return f"{accepted_when_full} accepted while full; " + arena.finish(loads).text
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def clock_step(folder, dice, hours):
    """The wall clock of one of two gateways steps while it works. Leases, due times and expiries are Redis' clock: nothing
    expires early, nothing is delayed, and nothing is sent twice."""
    import struct
    clock = folder / "clock"
    clock.write_bytes(struct.pack("=q", 0))
    lanes = {name: {"share": share, "retry": "500ms, 1s*", "expires": "30m", "on_unknown": "retry"}
             for name, share in (("alert", "50%"), ("normal", "35%"), ("bulk", "15%"))}
    # Not through ACS: it refuses requests whose date is wrong, and rightly so.
    with Arena(folder, f"clock{hours}", dice, roles=(BOTH, BOTH), changes={"lanes": lanes}, inside=True,
               env={1: {"HEAVE_CLOCK_OFFSET_FILE": str(clock)}}) as arena:
        # Some batches wait for a retry across the step.
        arena.sim.fault(service="hve", kind="reply", phase="mail", text="451 4.3.0 not now", count=30)
        loads = arena.loads(pause=0.01)
        books.run_loads(loads, until=lambda: arena.ledger.count() >= 30 + dice.randint(0, 10))
        with open(clock, "r+b") as file:
            file.write(struct.pack("=q", hours * 3600 * 1000))
        # A clock that steps back again, too.
        books.run_loads(loads, until=lambda: arena.ledger.count() >= 60 + dice.randint(0, 10))
        with open(clock, "r+b") as file:
            file.write(struct.pack("=q", 0))
        return arena.finish(loads, seconds=45).text


def bad_services(folder, dice):
    """Lost answers, hangs and resets of the services, and a kill among them."""
    with Arena(folder, "services", dice) as arena:
        lost = 8
        arena.sim.fault(service="hve", kind="lost_answer", count=lost)
        arena.sim.fault(service="acs", kind="lost_answer", count=lost)
        arena.sim.fault(service="hve", kind="reset", probability=0.1, count=10)
        arena.sim.fault(service="acs", kind="reset", probability=0.1, count=10)
        arena.sim.fault(service="hve", kind="slow", delay_ms=300, probability=0.2, count=10)
        # The service took these and the answer was lost: each may come twice, or be unknown where the lane says hold.
        arena.ledger.fault(2 * lost)
        loads = arena.loads(pause=0.01)
        books.run_loads(loads, until=lambda: arena.ledger.count() >= 40 + dice.randint(0, 10))
        arena.kill(arena.gateways[0])
        arena.sim.clear_faults()
        return arena.finish(loads).text


CASES = {f"point-{name}": (lambda folder, dice, name=name, point=point: at_point(folder, dice, name, point))
         for name, point in POINTS.items()}
CASES.update({
    "kill-gateway-external": lambda f, d: gateway_kills(f, d),
    "kill-gateway-embedded": lambda f, d: gateway_kills(f, d, redis="embedded"),
    "kill-one-of-two": lambda f, d: gateway_kills(f, d, roles=(BOTH, BOTH), victims=(0, 1)),
    "kill-ingest-of-split": lambda f, d: gateway_kills(f, d, roles=(("ingest",), ("dispatch",)), victims=(0,)),
    "kill-dispatch-of-split": lambda f, d: gateway_kills(f, d, roles=(("ingest",), ("dispatch",)), victims=(1,)),
    "kill-redis-external": lambda f, d: redis_kills(f, d),
    "kill-redis-embedded": lambda f, d: redis_kills(f, d, redis="embedded"),
    "stop-one-of-two": stopped_gateway,
    "redis-cut": lambda f, d: broken_network(f, d, "redis", "cut"),
    "redis-silent": lambda f, d: broken_network(f, d, "redis", "blackhole"),
    "redis-slow": lambda f, d: broken_network(f, d, "redis", "delay"),
    "redis-half-open": lambda f, d: broken_network(f, d, "redis", "half-open"),
    "service-cut": lambda f, d: broken_network(f, d, "service", "cut"),
    "service-silent": lambda f, d: broken_network(f, d, "service", "blackhole"),
    "service-half-open": lambda f, d: broken_network(f, d, "service", "half-open"),
    "disk-full": disk_full,
    "clock-ahead": lambda f, d: clock_step(f, d, 1),
    "clock-behind": lambda f, d: clock_step(f, d, -1),
    "bad-services": bad_services,
})
