"""The ledger of the chaos suite: what was submitted and how it was answered, what the services got, what the queue says,
and a full recount of Redis; and the sentence that has to be true of all four.

    every accepted recipient is in exactly one terminal state; none is lost; a recipient that a service got twice belongs
    to a batch that was STARTED at a fault; every batch has an owner; every counter is what a recount gives.
"""
import collections
import http.client
import itertools
import json
import random
import re
import smtplib
import threading
import time
import urllib.parse

import heave

SENDER = "alerts@contoso.test"
TERMINAL = {"delivered", "failed", "expired", "suppressed", "cancelled", "unknown"}
SHARDS_MAX = 32


class Submission:
    def __init__(self, message_id, recipients, keyed):
        self.message_id, self.recipients, self.keyed = message_id, recipients, keyed


class Ledger:
    """One campaign's promises. Threads add to it; the checks run when they have ended."""

    def __init__(self, name):
        self.name = name
        self.lock = threading.Lock()
        self.accepted = {}  # id of the queue -> Submission
        self.doubtful = []  # answer never heard; perhaps accepted
        self.refused = collections.Counter()
        self.started = 0  # batches STARTED at the faults so far: the most doubles there may be
        self.gone = set()  # ids whose history has been looked at and may go

    def accept(self, queue_id, submission):
        with self.lock:
            assert queue_id not in self.accepted, f"{queue_id} was given to two submissions"
            self.accepted[queue_id] = submission

    def doubt(self, submission):
        with self.lock:
            self.doubtful.append(submission)

    def count(self):
        with self.lock:
            return len(self.accepted)

    def fault(self, started):
        self.started += started


class Load(threading.Thread):
    """Submits its share of numbered messages to the gateways in turn, for as long as it takes, and enters each in the ledger.

    `recipients(number)` names the unique recipients of a message; `body(number)` its text.
    """

    def __init__(self, ledger, gateways, numbers, recipients, body, pause=0.0):
        super().__init__(daemon=True)
        self.ledger, self.gateways, self.numbers = ledger, gateways, collections.deque(numbers)
        self.recipients, self.body, self.pause = recipients, body, pause
        self.turn = itertools.count()
        self.error, self.tries, self.stopped = None, 0, False

    def run(self):
        try:
            while self.numbers and not self.stopped:
                if self.submit(self.numbers[0], self.recipients(self.numbers[0])):
                    self.numbers.popleft()
                    time.sleep(self.pause)
                else:
                    time.sleep(0.05)
        except Exception as error:  # noqa: BLE001 - raised by the main thread
            self.error = error

    def gateway(self):
        return self.gateways[next(self.turn) % len(self.gateways)]

    def message(self, number, recipients, message_id):
        return heave.mime_message(SENDER, recipients[0], f"chaos {number}", self.body(number),
                                  extra=f"Message-ID: <{message_id}>\r\n")


class SmtpLoad(Load):
    """A try whose answer was lost is repeated under another Message-ID: the first is in doubt for good."""

    client = None

    def submit(self, number, recipients):
        sent = None
        try:
            if self.client is None:
                self.client = smtplib.SMTP("127.0.0.1", self.gateway().smtp_port, timeout=15 * heave.PATIENCE)
                self.client.ehlo("load")
            if self.client.mail(SENDER)[0] != 250 or any(self.client.rcpt(r)[0] != 250 for r in recipients):
                self.client.rset()
                return False
            self.tries += 1
            message_id = f"{self.ledger.name}.s{number}.{self.tries}@test"
            sent = Submission(message_id, recipients, False)
            code, text = self.client.data(self.message(number, recipients, message_id))
        except (OSError, smtplib.SMTPException):
            self.client = None
            if sent is not None:
                self.ledger.doubt(sent)
            return False
        if code == 250:
            self.ledger.accept(text.decode().split()[-1], sent)
            return True
        assert code // 100 == 4, f"a {code} for trouble of our own: {text}"
        # A 4xx is "not accepted" unless Redis' answer was lost, which the client cannot know.
        self.ledger.doubt(sent)
        self.ledger.refused[code] += 1
        return False


class HttpLoad(Load):
    """With an idempotency key: a try whose answer was lost is repeated as it is until there is one."""

    client = None

    def submit(self, number, recipients):
        message_id = f"{self.ledger.name}.h{number}@test"
        query = urllib.parse.urlencode([("from", SENDER), *(("to", r) for r in recipients)])
        headers = {"Content-Type": "message/rfc822", "Authorization": f"Bearer {heave.API_KEY}",
                   "Idempotency-Key": f"{self.ledger.name}-{number}"}
        try:
            if self.client is None:
                self.client = http.client.HTTPConnection("127.0.0.1", self.gateway().http_port, timeout=15 * heave.PATIENCE)
            self.client.request("POST", f"/v1/messages?{query}", self.message(number, recipients, message_id), headers)
            answer = self.client.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self.client = None
            return False
        if answer.status == 202:
            self.ledger.accept(json.loads(text)["id"], Submission(message_id, recipients, True))
            return True
        assert answer.status in (409, 429, 503), f"a {answer.status} for trouble of our own: {text}"
        self.ledger.refused[answer.status] += 1
        return False


def run_loads(loads, until=None, seconds=120):
    """Waits for the loads to end, or for `until()` before that."""
    def over():
        for load in loads:
            if load.error is not None:
                raise load.error
        return (until is not None and until()) or not any(load.is_alive() for load in loads)
    try:
        heave.wait_until(over, seconds, "the load to get through")
    except AssertionError as error:
        gateways = {id(g): g for load in loads for g in load.gateways}.values()
        raise AssertionError("\n".join([str(error), f"refused {loads[0].ledger.refused}", *map(happenings, gateways)])) from None


# ---- What Redis holds ----

def tags(client):
    found = {key.split("}")[0] + "}" for key in client.keys("{h*}:*")}
    return sorted(found)


def started_batches(client):
    """Batches marked STARTED now."""
    return sum(lease.startswith(b"s") for tag in tags(client) for lease in client.call("HVALS", f"{tag}:t"))


HEAD = re.compile(rb"(\w)(\d)(\d{6})(\d{14}) ([^|\n]*\|[^|\n]*)\|([^\n]*)\n")


class Shard:
    """Everything one shard holds, read as it is, without any of the queue's counters."""

    def __init__(self, client, tag, keys):
        self.tag = tag
        self.batches = {}  # entry -> (state, pair, client)
        self.places = collections.defaultdict(list)  # entry -> where it stands
        self.lists = {}  # key -> entries
        self.bodies, self.messages, self.counts_left = set(), {}, {}
        for key in keys:
            self._take(client, key, key[len(tag) + 1:])
        self.leases = {k.decode(): v for k, v in _pairs(client.call("HGETALL", f"{tag}:t"))}
        self.lease_ends = {k.decode() for k, _ in _pairs(client.call("ZRANGE", f"{tag}:l", 0, -1, "WITHSCORES"))}
        self.open = {k.decode() for k in client.call("ZRANGE", f"{tag}:x", 0, -1)}
        self.counters = {k.decode(): int(v) for k, v in _pairs(client.call("HGETALL", f"{tag}:k"))}
        self.gates = {k.decode(): v for k, v in _pairs(client.call("HGETALL", f"{tag}:g"))}

    def _take(self, client, key, name):
        kind, _, rest = name.partition(":")
        if kind == "q":
            match = HEAD.match(client.call("GETRANGE", key, 0, 500))
            assert match, f"{key} has no head"
            self.batches[rest] = (match[1].decode(), match[5].decode(), match[6].decode())
        elif kind in ("r", "y"):
            self.lists[name] = [e.decode() for e in client.call("LRANGE", key, 0, -1)]
            for entry in self.lists[name]:
                self.places[entry].append(name)
        elif kind in ("d", "h"):
            self.lists[name] = [e.decode() for e in client.call("ZRANGE", key, 0, -1)]
            for entry in self.lists[name]:
                self.places[entry].append(name)
        elif kind == "c":
            self.lists[name] = [e.decode() for e in client.call("LRANGE", key, 0, -1)]
        elif kind == "b":
            self.bodies.add(rest)
        elif kind == "m":
            self.messages[rest] = int(re.match(rb"\d+", client.call("GETRANGE", key, 0, 20))[0])
        elif kind == "o":
            self.counts_left[rest] = int(client.call("GET", key))

    def mistakes(self):
        """Sentences about what cannot be."""
        return [f"{self.tag}: {m}" for m in itertools.chain(self._owners(), self._leases(), self._rotations(), self._messages())]

    def _wanted(self, entry):
        state, pair, client = self.batches[entry]
        return {"R": f"r:{pair}|{client}", "E": f"y:{pair}", "W": f"d:{pair}", "H": f"h:{pair}"}.get(state)

    def _owners(self):
        for entry, (state, _, _) in self.batches.items():
            places, leased = self.places.get(entry, []), entry in self.leases
            wanted = self._wanted(entry)
            if leased and state not in "RE":
                yield f"{entry} is leased and {state}"
            if wanted is None or leased:
                continue
            if places.count(wanted) != 1:
                yield f"{entry} is {state} and stands in {places or 'no list: nobody owns it'}, not once in {wanted}"
        for entry, places in self.places.items():
            if entry not in self.batches:
                yield f"{entry} stands in {places} and has no record"
        yield from self._stale()

    def _stale(self):
        """Entries of lists whose batch is elsewhere by now are counted, pair by pair."""
        found = collections.Counter()
        for name, entries in self.lists.items():
            if name[0] not in "rdh":
                continue
            for entry in entries:
                if entry not in self.batches:
                    continue
                state = self.batches[entry][0]
                if self._wanted(entry) != name or entry in self.leases:
                    if name[0] == "r":
                        found[name[2:].rsplit("|", 1)[0]] += 1
                    else:
                        yield f"{entry} is {state} and stands in {name}"
        told = {k[len("stale|"):]: v for k, v in self.counters.items() if k.startswith("stale|") and v}
        if told != {k: v for k, v in found.items() if v}:
            yield f"stale entries are {dict(found)}, the counter says {told}"

    def _leases(self):
        if set(self.leases) != self.lease_ends:
            yield f"leases without an end, or ends without a lease: {sorted(set(self.leases) ^ self.lease_ends)}"
        for entry in self.leases:
            if entry not in self.batches:
                yield f"{entry} is leased and has no record"

    def _rotations(self):
        for name, entries in self.lists.items():
            if name[0] == "r" and entries:
                pair, client = name[2:].rsplit("|", 1)
                if self.lists.get(f"c:{pair}", []).count(client) != 1:
                    yield f"{name} has work and {client} is not once in the rotation {self.lists.get('c:' + pair)}"
        for name, clients in self.lists.items():
            if name[0] == "c":
                for client in clients:
                    if not self.lists.get(f"r:{name[2:]}|{client}"):
                        yield f"{client} is in the rotation {name} and has no work"

    def _messages(self):
        left = collections.Counter()
        for entry, (state, _, _) in self.batches.items():
            left[entry.split("/")[0]] += state != "D"
        for queue_id, count in self.messages.items():
            if (left[queue_id] > 0) != (queue_id in self.open):
                yield f"{queue_id} has {left[queue_id]} open batches and is {'open' if queue_id in self.open else 'finished'}"
            if count > 1 and self.counts_left.get(queue_id, 0) != left[queue_id]:
                yield f"{queue_id} has {left[queue_id]} open batches, its counter says {self.counts_left.get(queue_id, 0)}"
            if left[queue_id] > 0 and queue_id not in self.bodies:
                yield f"{queue_id} has open batches and no body"
        for queue_id in set(self.open) - set(self.messages):
            yield f"{queue_id} is open and has no record"

    def depths(self):
        """(pair, state name) -> batches"""
        names = {"R": "ready", "E": "ready", "W": "delayed", "H": "held"}
        found = collections.Counter()
        for entry, (state, pair, _) in self.batches.items():
            lease = self.leases.get(entry)
            if lease is not None:
                found[pair, "started" if lease.startswith(b"s") else "claimed"] += 1
            elif state in names:
                found[pair, names[state]] += 1
        return found


def _pairs(flat):
    return list(zip(flat[::2], flat[1::2]))


def recount(client):
    """All shards, read while nothing moves."""
    keys = collections.defaultdict(list)
    for key in client.keys("{h*}:*"):
        keys[key[:key.index("}") + 1]].append(key)
    return [Shard(client, tag, keys[tag]) for tag in sorted(keys)]


# ---- The sentence ----

def all_messages(gateway):
    """Every message the gateway knows, with its recipients."""
    cursor, found = "", []
    while True:
        query = f"limit=200&cursor={urllib.parse.quote(cursor)}" if cursor else "limit=200"
        status, answer = heave.http_json("GET", f"{gateway.admin}/v1/admin/messages?{query}")
        assert status == 200, (status, answer)
        for message in answer["messages"]:
            found.append(gateway.status(message["id"]) if message.get("recipients_omitted") else message)
        cursor = answer["next_cursor"]
        if not cursor:
            return {message["id"]: message for message in found}


def moving(gateway):
    """Batches that are not at rest."""
    return sum(queue["batches"][state] for queue in gateway.queue()["queues"]
               for state in ("ready", "claimed", "started", "delayed"))


def wait_settled(gateway, seconds=60):
    end = time.monotonic() + seconds * heave.PATIENCE
    while moving(gateway) > 0:
        if time.monotonic() > end:
            busy = [q for q in gateway.queue()["queues"] if any(q["batches"].values())]
            raise AssertionError(f"the queue does not empty: {json.dumps(busy)}\n{happenings(gateway)}")
        time.sleep(0.2)


def happenings(gateway, lines=40):
    """The end of a gateway's log without the sessions of those who ask how it is."""
    text = gateway.process.log_path.read_text(errors="replace").splitlines()
    return "\n".join([line for line in text if " session " not in line][-lines:])


class Verdict:
    """What the check found; `text` is the line for the report."""

    def __init__(self, ledger, lost, doubles, unknown, mistakes):
        self.lost, self.doubles, self.unknown, self.mistakes = lost, doubles, unknown, mistakes
        self.text = (f"{ledger.name}: accepted {len(ledger.accepted)}, in doubt {len(ledger.doubtful)}, lost {len(lost)}, "
                     f"doubles {doubles}, unknown {unknown}, STARTED at faults {ledger.started}")


def check(ledger, gateway, sim, client, allowed=("delivered",)):
    """Everything at once, when nothing moves any more. `allowed`: terminal states besides `unknown`, which counts against
    the batches that were STARTED."""
    messages = all_messages(gateway)
    got = collections.Counter((d["message_id"].strip("<>"), d["recipient"].lower()) for d in sim.deliveries())
    mistakes, lost = [], []
    unknown_batches = set()
    for queue_id, submission in ledger.accepted.items():
        message = messages.get(queue_id)
        if message is None:
            lost.append(f"{queue_id}: the gateway does not know it")
            continue
        states = {}
        for recipient in message["recipients"]:
            address = recipient["address"].lower()
            if address in states:
                mistakes.append(f"{queue_id}: {address} is in two batches")
            states[address] = recipient["state"]
            if recipient["state"] == "unknown":
                unknown_batches.add((queue_id, recipient["batch"]))
        if set(states) != {r.lower() for r in submission.recipients}:
            mistakes.append(f"{queue_id}: recipients {sorted(states)}, accepted were {sorted(submission.recipients)}")
        for address, state in states.items():
            times = got[submission.message_id, address]
            if state not in TERMINAL:
                lost.append(f"{queue_id}: {address} is {state} for good: {stored(client, queue_id)}")
            elif state != "unknown" and state not in allowed:
                lost.append(f"{queue_id}: {address} is {state}")
            elif state == "delivered" and times == 0:
                lost.append(f"{queue_id}: {address} is delivered, and no service got it")
            elif state in ("failed", "expired", "cancelled", "suppressed") and times > 0:
                mistakes.append(f"{queue_id}: {address} is {state}, and a service got it")
    doubles = count_doubles(messages, got)
    if doubles + len(unknown_batches) > ledger.started:
        mistakes.append(f"{doubles} doubles and {len(unknown_batches)} unknown batches, {ledger.started} were STARTED at faults")
    known = {m["message_id"].strip("<>") for m in messages.values()}
    strangers = {message_id for message_id, _ in got if message_id.startswith(ledger.name + ".")} - known
    if strangers:
        mistakes.append(f"delivered, and the gateway does not know them: {sorted(strangers)[:5]}")
    mistakes += compare(gateway, client, messages)
    return Verdict(ledger, lost, doubles, len(unknown_batches), mistakes)


def stored(client, queue_id):
    """The heads of a message's batches, for the report."""
    return [client.call("GETRANGE", key, 0, 160).decode(errors="replace") for key in client.keys(f"*:q:{queue_id}/*")]


def count_doubles(messages, got):
    """Batches a service got again: the same recipient of the same message, more than once."""
    again = collections.Counter()
    for queue_id, message in messages.items():
        message_id = message["message_id"].strip("<>")
        for recipient in message["recipients"]:
            times = got[message_id, recipient["address"].lower()]
            batch = queue_id, recipient["batch"]
            again[batch] = max(again[batch], times - 1)
    return sum(again.values())


def compare(gateway, client, messages):
    """The queue's counters against a recount of Redis and of all records."""
    shards = recount(client)
    totals = gateway.queue()
    mistakes = [m for shard in shards for m in shard.mistakes()]
    depths = collections.Counter()
    for shard in shards:
        depths.update(shard.depths())
    told = collections.Counter()
    for queue in totals["queues"]:
        for state, count in queue["batches"].items():
            told[f"{queue['lane']}|{queue['backend']}", state] += count
    for key in set(depths) | {k for k, v in told.items() if v}:
        if depths[key] != told[key]:
            mistakes.append(f"{key}: a recount gives {depths[key]}, the queue says {told[key]}")
    states = collections.Counter()
    for message in messages.values():
        states.update(message["counts"])
    for state, count in totals["recipients"].items():
        if states[state] != count:
            mistakes.append(f"recipients {state}: a recount gives {states[state]}, the queue says {count}")
    still_open = sum(len(shard.open) for shard in shards)
    if still_open != totals["messages_open"]:
        mistakes.append(f"open messages: a recount gives {still_open}, the queue says {totals['messages_open']}")
    heave.wait_until(lambda: gateway.metric("heave_queue_messages_open") == still_open, 15,
                     f"the metric of open messages to be {still_open}")
    if still_open == 0 and totals["bytes"] != 0:
        mistakes.append(f"nothing is open and {totals['bytes']} bytes are counted")
    return mistakes


def demand(verdict):
    print(verdict.text)
    wrong = verdict.lost[:20] + verdict.mistakes[:20]
    assert not wrong, f"{verdict.text}\n" + "\n".join(wrong)


def dice(seed, *names):
    """A random.Random of its own for each purpose, so that one more draw here does not change everything there."""
    return random.Random(":".join(map(str, (seed, *names))))
