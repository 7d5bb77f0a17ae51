"""kill -9 under load, then the ledger: everything answered 250 or 202 ends delivered, and every double is explained by a
batch that was STARTED at a kill (product.md promises 1 and 2)."""
import os
import signal
import smtplib
import threading
import time

import pytest

import heave

SENDER = "alerts@contoso.test"
MESSAGES = int(os.environ.get("HEAVE_CHAOS_MESSAGES", "3000"))  # --soak: 20000
GATEWAY_KILLS, REDIS_KILLS = 10, 3
SENDERS = 8


class Load(threading.Thread):
    """Submits messages over SMTP, remembers what was answered 250, and reconnects for as long as it takes."""

    def __init__(self, gateway, numbers, pause):
        super().__init__(daemon=True)
        self.gateway, self.numbers, self.pause = gateway, list(numbers), pause
        self.accepted, self.tries, self.error = set(), 0, None

    def run(self):
        client = None
        try:
            while self.numbers:
                number = self.numbers[-1]
                try:
                    if client is None:
                        client = self.gateway.smtp(20)
                        client.ehlo("load")
                    if self.submit(client, number):
                        self.numbers.pop()
                except (OSError, smtplib.SMTPException):
                    client = None
                    time.sleep(0.05)  # the gateway is being restarted
        except Exception as error:  # noqa: BLE001 - told by the main thread
            self.error = error

    def submit(self, client, number):
        """One try; a try whose answer was lost is repeated under another Message-ID, so it is no double of the gateway."""
        to = f"m{number}@contoso.test"
        if client.mail(SENDER)[0] != 250 or client.rcpt(to)[0] != 250:
            client.rset()
            time.sleep(0.05)
            return False
        self.tries += 1
        code, _ = client.data(heave.mime_message(SENDER, to, f"chaos {number}",
                                                 extra=f"Message-ID: <c{number}.{self.tries}@test>\r\n"))
        if code // 100 == 5:
            raise AssertionError(f"a {code} for trouble of our own")
        if code != 250:
            time.sleep(0.05)
            return False
        self.accepted.add(number)
        time.sleep(self.pause)
        return True


def started_batches(gateway):
    """Batches marked STARTED now, over all lanes and backends."""
    return sum(queue["batches"]["started"] for queue in gateway.queue()["queues"])


def wait_progress(loads, total):
    heave.wait_until(lambda: sum(len(load.accepted) for load in loads) >= total or not any(load.is_alive() for load in loads),
                     300, f"{total} accepted messages")
    for load in loads:
        assert load.error is None, load.error


@pytest.mark.slow
def test_thousands_of_messages_and_thirteen_kills(tmp_path):
    sim = heave.Simulator(tmp_path / "sim", "--acs-quota", "off")
    data = {"redis": "embedded", "data_dir": str(tmp_path / "gw" / "data"), "lease": "3s"}
    gateway = heave.Gateway(tmp_path / "gw", sim, {"queue": data})
    loads = [Load(gateway, range(i, MESSAGES, SENDERS), 0) for i in range(SENDERS)]
    for load in loads:
        load.start()
    started_at_kills, rounds = 0, GATEWAY_KILLS + REDIS_KILLS
    redis_rounds = {3, 7, 11}
    for turn in range(rounds):
        wait_progress(loads, MESSAGES * (turn + 1) // (rounds + 1))
        if turn in redis_rounds:
            os.kill(gateway.redis_pid(), signal.SIGKILL)
            heave.wait_until(gateway.is_ready, 60, "Redis to come back")
        else:
            gateway.kill()
            gateway.start()
        started_at_kills += started_batches(gateway)
    for load in loads:
        load.join(300)
        assert not load.is_alive() and load.error is None, load.error
    accepted = set().union(*(load.accepted for load in loads))
    assert len(accepted) == MESSAGES
    heave.wait_until(lambda: gateway.metric("heave_queue_messages_open") == 0, 120, "the queue to empty")
    delivered = [d["recipient"] for d in sim.deliveries()]
    lost = {f"m{n}@contoso.test" for n in accepted} - set(delivered)
    doubles = sim.summary()["hve"]["duplicates"]
    print(f"accepted {len(accepted)}, lost {len(lost)}, doubles {doubles}, STARTED at kills {started_at_kills}")
    assert not lost
    assert doubles <= started_at_kills
    assert gateway.stop() == 0
    sim.stop()
