"""Senders that go on while something breaks, and the account of what became of their messages."""
import collections
import smtplib
import threading
import time

import heave

SENDER = "alerts@contoso.test"


def send(gateway, recipient, seconds=30, **parts):
    """Submits one message, again as long as it is put off; returns its id."""
    def sent():
        try:
            return gateway.send(SENDER, [recipient], heave.mime_message(SENDER, recipient, **parts))
        except AssertionError as error:
            if "(4" in str(error):
                return None
            raise
    return heave.wait_until(sent, seconds, f"a message to be taken\n{gateway.process.tail()}")


class Senders:
    """`count` SMTP sessions that send one small message after the other, each to a recipient of its own.

    `accepted`: recipients that heard 250; `refused`: how often each reply was heard instead; `slowest`: the longest
    wait for a reply. A session that breaks is made again.
    """

    def __init__(self, gateway, count=4, pause=0.005, size=200):
        self.gateway, self.pause, self.size = gateway, pause, size
        self.accepted, self.refused, self.slowest = [], collections.Counter(), 0.0
        self.last_accepted = 0.0
        self._stop, self._lock, self._next = threading.Event(), threading.Lock(), 0
        self.threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _recipient(self):
        with self._lock:
            self._next += 1
            return f"r{self._next}@contoso.test"

    def _send(self, client):
        recipient = self._recipient()
        message = heave.mime_message(SENDER, recipient, text="x" * self.size)
        began = time.monotonic()
        code, text = client.mail(SENDER)
        if code == 250:
            code, text = client.rcpt(recipient)
        if code == 250:
            code, text = client.data(message)
        else:
            client.rset()
        with self._lock:
            self.slowest = max(self.slowest, time.monotonic() - began)
            if code == 250:
                self.accepted.append(recipient)
                self.last_accepted = time.monotonic()
            else:
                self.refused[f"{code} {text.decode()[:60]}"] += 1
        if code != 250:
            time.sleep(0.05)

    def _run(self):
        while not self._stop.is_set():
            try:
                with self.gateway.smtp() as client:
                    client.ehlo("test.contoso.test")
                    while not self._stop.is_set():
                        self._send(client)
                        time.sleep(self.pause)
            except smtplib.SMTPResponseException as error:  # DATA that was refused before its dot
                self.refused[f"{error.smtp_code} {error.smtp_error.decode()[:60]}"] += 1
            except (smtplib.SMTPException, OSError) as error:
                self.refused[type(error).__name__] += 1
                time.sleep(0.05)

    def wait_accepted(self, more, seconds=30):
        """Until `more` messages were accepted from now on."""
        wanted = len(self.accepted) + more
        heave.wait_until(lambda: len(self.accepted) >= wanted, seconds,
                         f"{more} more accepted messages; refused: {dict(self.refused)}\n"
                         f"{self.gateway.process.tail()}")

    def stop(self):
        self._stop.set()
        for thread in self.threads:
            thread.join()
        return self


def account(sim, senders, seconds=60):
    """Waits until all that was accepted has arrived; returns (lost, how many arrived more than once)."""
    accepted = set(senders.accepted)

    def missing():
        return accepted - {d["recipient"] for d in sim.deliveries()}
    try:
        heave.wait_until(lambda: not missing(), seconds, "the accepted messages")
    except AssertionError:
        pass
    seen = collections.Counter(d["recipient"] for d in sim.deliveries())
    return missing(), sum(1 for r in accepted if seen[r] > 1)
