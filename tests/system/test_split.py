"""The acceptance message of the split: 120 internal, 80 external, 3 repeated in other case."""
import heave

INTERNAL = [f"user{i}@contoso.test" for i in range(120)]
EXTERNAL = [f"guest{i}@example.net" for i in range(80)]
REPEATED = ["USER7@CONTOSO.TEST", "Guest9@Example.Net", "User119@contoso.test"]
ALL = INTERNAL + EXTERNAL + REPEATED


def check_ledger(sim, services):
    summary = sim.summary()
    for service, (transactions, recipients) in services.items():
        assert summary[service]["transactions"] == transactions, summary
        assert summary[service]["recipients"] == recipients, summary
        assert summary[service]["max_recipients"] <= 50, summary
        assert summary[service]["duplicates"] == 0, summary
    distinct = {d["recipient"].lower() for d in sim.deliveries()}
    assert distinct == {r.lower() for r in ALL}


def test_by_smtp(clean_sim, gateway):
    to = ",\r\n ".join(ALL)
    message = heave.mime_message("alerts@contoso.test", to, "Split by SMTP")
    message_id = gateway.send("alerts@contoso.test", ALL, message)
    gateway.wait_states(message_id, {"delivered": 200})
    check_ledger(clean_sim, {"hve": (3, 120), "acs": (2, 80)})


def test_by_http(clean_sim, gateway):
    status, answer = gateway.post({"from": "erp@contoso.test", "to": ALL, "subject": "Split by HTTP",
                                   "text": "Hello"})
    assert status == 202, answer
    assert answer["accepted"] == 200 and answer["batches"] == 5 and answer["rejected"] == []
    gateway.wait_states(answer["id"], {"delivered": 200})
    check_ledger(clean_sim, {"hve": (3, 120), "acs": (2, 80)})


def test_hidden_recipients_stay_hidden(clean_sim, gateway):
    hidden = [f"hidden{i}@example.net" for i in range(100)]
    message = heave.mime_message("alerts@contoso.test", "team@contoso.test", "Hidden")
    message_id = gateway.send("alerts@contoso.test", hidden, message)
    gateway.wait_states(message_id, {"delivered": 100})
    summary = clean_sim.summary()
    assert summary["acs"]["max_recipients"] <= 50
    assert summary["acs"]["transactions"] <= 4
    delivered = {d["recipient"].lower() for d in clean_sim.deliveries()}
    assert set(hidden) <= delivered
    assert "team@contoso.test" not in delivered


def test_graph_alone(tmp_path, clean_sim):
    changes = {"routes": [{"match": {"recipient": "any"}, "via": ["graph"]}]}
    gateway = heave.Gateway(tmp_path, clean_sim, changes)
    try:
        message = heave.mime_message("notify1@contoso.test", ", ".join(ALL), "Split to Graph")
        message_id = gateway.send("notify1@contoso.test", ALL, message)
        gateway.wait_states(message_id, {"delivered": 200})
        check_ledger(clean_sim, {"graph": (4, 200)})
        status, answer = gateway.post({"from": "notify1@contoso.test", "to": ALL, "subject": "Graph by HTTP",
                                       "text": "Hello"})
        assert status == 202, answer
        gateway.wait_states(answer["id"], {"delivered": 200})
    finally:
        assert gateway.stop() == 0


def test_status_command(clean_sim, gateway):
    message_id = gateway.send("alerts@contoso.test", ["a@contoso.test", "b@example.net"],
                              heave.mime_message("alerts@contoso.test", "a@contoso.test, b@example.net"))
    gateway.wait_states(message_id, {"delivered": 2})
    shown = gateway.run("status", message_id, "-c", str(gateway.conf_path), "--json")
    assert shown.returncode == 0, shown.stderr
    assert '"delivered"' in shown.stdout
    human = gateway.run("status", message_id, "-c", str(gateway.conf_path))
    assert human.returncode == 0 and "a@contoso.test" in human.stdout, human
    missing = gateway.run("status", "01AAAAAAAAAAAAAAAAAAAAAAAA-0", "-c", str(gateway.conf_path))
    assert missing.returncode == 1, missing
