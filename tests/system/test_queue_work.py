"""Operators at work on what waits and what has failed: through the commands and the API, against the real binary."""
import json

import pytest

import heave
from test_cli import DONE, REFUSED, TRY_LATER, USAGE, run

SENDER = "alerts@contoso.test"
LANES = {name: {"share": share, "retry": "1h*", "expires": "6h", "on_unknown": "hold"}
         for name, share in (("alert", "50%"), ("normal", "35%"), ("bulk", "15%"))}
BUSY = {"service": "hve", "kind": "reply", "phase": "mail", "text": "451 4.7.500 Server busy. Please try again later.",
        "count": 1000}


@pytest.fixture
def stuck(tmp_path, clean_sim):
    """A gateway whose service puts everything off for an hour."""
    clean_sim.fault(**BUSY)
    gateway = heave.Gateway(tmp_path, clean_sim, {"lanes": LANES})
    yield gateway
    assert gateway.stop() == 0


def work(gateway, *args):
    """A verb of `heave queue` with --json; returns the exit code and the sums."""
    ended = run("queue", *args, "-c", gateway.conf_path, "--json")
    return ended.returncode, json.loads(ended.stdout) if ended.stdout else ended.stderr


def depths(gateway, backend="hve"):
    sums = {}
    for row in gateway.queue()["queues"]:
        if row["backend"] == backend:
            for state, count in row["batches"].items():
                sums[state] = sums.get(state, 0) + count
    return {state: count for state, count in sums.items() if count}


def wait_depths(gateway, expected, backend="hve"):
    heave.wait_until(lambda: depths(gateway, backend) == expected, 30, f"{backend} to hold {expected}")


def submit(gateway, to, **more):
    status, answer = gateway.post({"from": "erp@contoso.test", "to": to, "subject": "s", "text": "t", **more})
    assert status == 202, answer
    return answer["id"]


def smtp(gateway, to):
    return gateway.send(SENDER, [to], heave.mime_message(SENDER, to))


def delete(gateway, message_id, key=heave.API_KEY):
    return heave.http_json("DELETE", f"{gateway.http}/v1/messages/{message_id}", None,
                           {"Authorization": f"Bearer {key}"})


def test_hold_cancel_release_retry(stuck, clean_sim):
    held = [smtp(stuck, f"held{i}@contoso.test") for i in range(3)]
    tagged = [submit(stuck, f"tagged{i}@contoso.test", tags=["run-7"]) for i in range(2)]
    waiting = submit(stuck, "waiting@contoso.test")
    wait_depths(stuck, {"delayed": 6})

    code, sums = work(stuck, "hold", "--sender", "*@CONTOSO.test", "--client", "local", "--reason", "printer on fire")
    assert (code, sums["changed"], sums["matched"]["messages"]) == (DONE, 3, 3), sums
    wait_depths(stuck, {"delayed": 3, "held": 3})
    recipient = stuck.status(held[0])["recipients"][0]
    assert (recipient["batch_state"], recipient["reason"]) == ("held", "printer on fire"), recipient
    assert "printer on fire" in run("status", held[0], "-c", stuck.conf_path).stdout

    for zero in ("1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z"):
        code, sums = work(stuck, "cancel", "--older-than", zero, "--yes")
        assert (code, sums["changed"], sums["matched"]["messages"]) == (DONE, 0, 0), sums
    ended = run("queue", "cancel", "--tag", "run-7", "-c", stuck.conf_path)
    assert ended.returncode == REFUSED and "say --yes" in ended.stderr, ended
    assert "2 messages, 2 batches, 2 recipients (2 queued)" in ended.stdout, ended
    assert depths(stuck) == {"delayed": 3, "held": 3}
    code, sums = work(stuck, "cancel", "--tag", "run-7", "--dry-run")
    assert (code, sums["changed"], sums["dry_run"]) == (DONE, 0, True), sums
    code, sums = work(stuck, "cancel", "--tag", "run-7", "--yes")
    assert (code, sums["changed"]) == (DONE, 2), sums
    for message_id in tagged:
        assert stuck.states(message_id) == {"cancelled": 1}

    clean_sim.clear_faults()
    assert work(stuck, "release", "--state", "held", "--lane", "normal")[1]["changed"] == 3
    assert depths(stuck) == {"delayed": 4}  # their next try is an hour ahead
    assert work(stuck, "retry", waiting, "--reset")[1]["changed"] == 1
    assert work(stuck, "retry", *held)[1]["changed"] == 3
    assert stuck.metric("heave_work_total", verb="release") == 3
    lines = [line for line in stuck.process.log_path.read_text().splitlines() if " work verb=" in line]
    assert lines and all("by=loopback" in line for line in lines), lines
    for message_id in [*held, waiting]:
        stuck.wait_states(message_id, {"delivered": 1})
    summary = clean_sim.summary()["hve"]
    assert (summary["recipients"], summary["duplicates"]) == (4, 0), summary
    code, sums = work(stuck, "release", held[0])
    assert code == REFUSED and sums["skipped"][0]["reason"] == "It is finished: there is nothing to release.", sums
    ended = run("queue", "replay", held[0], "-c", stuck.conf_path)
    assert f"skipped {held[0]}: It is finished: there is nothing to replay." in ended.stdout, ended
    code, sums = work(stuck, "hold", held[0] + "/7")
    assert code == REFUSED and sums["skipped"][0]["reason"] == "It has no such batch.", sums
    for args, code in ((["hold"], DONE), (["cancel"], REFUSED), (["cancel", "--dry-run"], DONE)):
        ended = run("queue", *args, "--tag", "nobody-has-it", "-c", stuck.conf_path)
        assert ended.returncode == code and f"{args[0]}: nothing matches" in ended.stdout, ended
    ended = run("queue", "purge", held[0], "--yes", "-c", stuck.conf_path)
    assert "purge: 1 message, 1 batch, 1 recipient (1 delivered)\n1 batch done\n" in ended.stdout, ended


def test_move(stuck, clean_sim):
    ids = [smtp(stuck, f"moved{i}@contoso.test") for i in range(3)]
    wait_depths(stuck, {"delayed": 3})
    code, words = work(stuck, "move", "--backend", "hve", "--to", "nowhere", "--yes")
    assert code == REFUSED and "must name a backend" in words, words
    code, sums = work(stuck, "move", "--backend", "hve", "--to", "graph", "--yes")
    assert (code, sums["changed"]) == (DONE, 3), sums
    wait_depths(stuck, {"delayed": 3}, "graph")
    assert depths(stuck) == {}
    assert work(stuck, "retry", "--backend", "graph")[1]["changed"] == 3
    for message_id in ids:
        stuck.wait_states(message_id, {"delivered": 1})
    assert clean_sim.summary()["graph"]["recipients"] == 3


def test_dead_letters(tmp_path, clean_sim):
    gateway = heave.Gateway(tmp_path, clean_sim, {"lanes": LANES})
    try:
        clean_sim.fault(service="hve", kind="reply", phase="rcpt", text="550 5.1.10 RESOLVER.ADR.RecipientNotFound", count=3)
        to = [f"dead{i}@contoso.test" for i in range(4)]
        message_id = gateway.send(SENDER, to, heave.mime_message(SENDER, ", ".join(to)))
        gateway.wait_states(message_id, {"delivered": 1, "failed": 3})
        other = smtp(gateway, "fine@contoso.test")
        gateway.wait_states(other, {"delivered": 1})
        status, page = heave.http_json("GET", f"{gateway.admin}/v1/admin/dead-letters")
        assert status == 200 and [m["id"] for m in page["messages"]] == [message_id], page
        assert message_id in run("queue", "show", "--dead", "-c", gateway.conf_path).stdout
        assert gateway.queue()["dead_letters"] == 1
        assert gateway.metric("heave_queue_dead_letters") == 1
        assert gateway.metric("heave_queue_dead_letter_bytes") > 0

        code, sums = work(gateway, "replay", "--state", "failed")
        assert (code, sums["changed"], sums["matched"]["recipients"]) == (DONE, 1, {"failed": 3}), sums
        gateway.wait_states(message_id, {"delivered": 4})
        summary = clean_sim.summary()["hve"]
        assert (summary["recipients"], summary["duplicates"]) == (5, 0), summary
        assert gateway.queue()["dead_letters"] == 0
        code, sums = work(gateway, "purge", message_id, "--yes")
        assert (code, sums["changed"]) == (DONE, 1), sums
        assert heave.http_json("GET", f"{gateway.admin}/v1/messages/{message_id}")[0] == 404
        code, sums = work(gateway, "replay", message_id)
        assert code == REFUSED and sums["skipped"][0]["reason"] == "There is no such message.", sums
    finally:
        assert gateway.stop() == 0


def test_delete_ones_own_message(stuck, clean_sim):
    message_id = submit(stuck, ["a@contoso.test", "b@contoso.test"])
    wait_depths(stuck, {"delayed": 1})
    foreign = smtp(stuck, "c@contoso.test")
    status, answer = delete(stuck, message_id)
    assert status == 200 and answer["matched"]["recipients"] == {"queued": 2}, answer
    assert stuck.states(message_id) == {"cancelled": 2}
    assert stuck.status(message_id)["recipients"][0]["reason"] == "cancelled by its client"
    assert delete(stuck, message_id)[0] == 409
    assert delete(stuck, foreign)[0] == 404
    assert delete(stuck, "01ARZ3NDEKTSV4RRFFQ69G5FAV-0")[0] == 404
    assert delete(stuck, message_id, "wrong")[0] == 401


def test_what_is_being_sent_is_left_alone(tmp_path, clean_sim):
    gateway = heave.Gateway(tmp_path, clean_sim, {"lanes": LANES})
    try:
        clean_sim.fault(service="hve", kind="slow", delay_ms=4000, count=1)
        message_id = submit(gateway, "now@contoso.test")
        heave.wait_until(lambda: depths(gateway).keys() & {"claimed", "started"}, 30, "a claimed batch")
        code, sums = work(gateway, "hold", message_id)
        assert (code, sums["busy"], sums["changed"]) == (TRY_LATER, 1, 0), sums
        assert delete(gateway, message_id)[0] == 409
        gateway.wait_states(message_id, {"delivered": 1})
    finally:
        assert gateway.stop() == 0


@pytest.mark.parametrize("args, words", [
    (["hold"], "say which"),
    (["cancel", "--yes"], "say which"),
    (["move", "--all"], "say where to"),
    (["hold", "--all", "--to", "x"], "--to is only for move"),
    (["hold", "--all", "--reset"], "--reset is only for retry"),
    (["hold", "--all"], "Give -c FILE or --url URL"),
])
def test_wrong_usage(args, words):
    ended = run("queue", *args)
    assert ended.returncode == USAGE and words in ended.stderr, ended
