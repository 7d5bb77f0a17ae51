"""Services that throttle or lose answers: all is delivered in the end, nobody is asked inside a Retry-After, states are
right."""
import heave

SENDER = "alerts@contoso.test"


def flood(gateway, count, domain, mark, lane_key=None):
    ids = []
    with gateway.smtp() as client:
        client.ehlo("test")
        for i in range(count):
            to = f"{mark}{i}@{domain}"
            client.mail(SENDER)
            assert client.rcpt(to)[0] == 250
            code, text = client.data(heave.mime_message(SENDER, to, f"{mark} {i}"))
            assert code == 250, (code, text)
            ids.append(text.decode().split()[-1])
    return ids


def all_delivered(gateway, ids, seconds=60):
    for message_id in ids:
        gateway.wait_states(message_id, {"delivered": 1}, seconds)


def check(sim, service, count, throttled_at_least):
    summary = sim.summary()[service]
    assert summary["recipients"] == count, summary
    assert summary["duplicates"] == 0, summary
    assert summary["throttled"] >= throttled_at_least, summary
    assert summary["requests_during_retry_after"] == 0, summary


def test_acs_429(clean_sim, gateway):
    clean_sim.fault(service="acs", kind="throttle", retry_after=5, count=2)
    ids = flood(gateway, 30, "example.net", "acs")
    all_delivered(gateway, ids)
    check(clean_sim, "acs", 30, 1)
    assert gateway.metric("heave_throttled_total", backend="acs") >= 1


def test_hve_432(clean_sim, gateway):
    clean_sim.fault(service="hve", kind="reply", phase="data",
                    text="432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information.",
                    count=3)
    ids = flood(gateway, 30, "contoso.test", "hve")
    all_delivered(gateway, ids)
    summary = clean_sim.summary()["hve"]
    assert summary["recipients"] == 30 and summary["duplicates"] == 0, summary


def graph_only(tmp_path, sim, **changes):
    return heave.Gateway(tmp_path, sim, {"routes": [{"match": {"recipient": "any"}, "via": ["graph"]}], **changes})


def test_graph_429_and_503(tmp_path, clean_sim):
    gateway = graph_only(tmp_path, clean_sim)
    try:
        clean_sim.fault(service="graph", kind="throttle", retry_after=3, count=2)
        ids = flood(gateway, 20, "example.net", "graph429")
        all_delivered(gateway, ids)
        check(clean_sim, "graph", 20, 1)
        clean_sim.fault(service="graph", kind="status", status=503, retry_after=2, count=2)
        more = flood(gateway, 20, "example.net", "graph503")
        all_delivered(gateway, more)
        summary = clean_sim.summary()["graph"]
        assert summary["recipients"] == 40 and summary["duplicates"] == 0, summary
        assert summary["requests_during_retry_after"] == 0, summary
    finally:
        assert gateway.stop() == 0


def test_acs_lost_answers_never_double(clean_sim, gateway):
    """Accepted, then the connection drops: the Operation-Id is asked first, so nothing is sent twice."""
    clean_sim.fault(service="acs", kind="lost_answer", count=5)
    ids = flood(gateway, 30, "example.net", "lost")
    all_delivered(gateway, ids)
    summary = clean_sim.summary()["acs"]
    assert summary["recipients"] == 30 and summary["duplicates"] == 0, summary
    assert summary["lost_answers"] == 5, summary


def test_hve_lost_answers_follow_the_lane(clean_sim, gateway):
    """on_unknown: retry may double, and the count of lost answers explains every double."""
    clean_sim.fault(service="hve", kind="lost_answer", count=3)
    ids = flood(gateway, 20, "contoso.test", "lost")
    all_delivered(gateway, ids)
    summary = clean_sim.summary()["hve"]
    assert summary["lost_answers"] == 3, summary
    assert summary["recipients"] == 20 + summary["duplicates"], summary
    assert summary["duplicates"] <= 3, summary


def test_a_lane_that_holds_does_not_double(clean_sim, gateway):
    clean_sim.fault(service="hve", kind="lost_answer", count=1)
    status, answer = gateway.post({"from": "erp@contoso.test", "to": "held@contoso.test", "subject": "s", "text": "t"})
    assert status == 202, answer
    gateway.wait_states(answer["id"], {"unknown": 1})
    assert clean_sim.summary()["hve"]["duplicates"] == 0


def test_recipient_failures_do_not_stop_the_others(clean_sim, gateway):
    clean_sim.fault(service="hve", kind="reply", phase="rcpt", text="550 5.1.10 RESOLVER.ADR.RecipientNotFound", count=1)
    to = [f"u{i}@contoso.test" for i in range(5)]
    message_id = gateway.send(SENDER, to, heave.mime_message(SENDER, ", ".join(to)))
    gateway.wait_states(message_id, {"delivered": 4, "failed": 1})
    failed = [r for r in gateway.status(message_id)["recipients"] if r["state"] == "failed"]
    assert "5.1.10" in failed[0]["last_reply"]


def test_expiry(tmp_path, clean_sim):
    """A service that is down for longer than `expires` ends the message as expired, with the last words kept."""
    lanes = {"normal": {"share": "100%", "retry": "200ms, 300ms*", "expires": "3s", "on_unknown": "retry"}}
    gateway = heave.Gateway(tmp_path, clean_sim, {"lanes": lanes})
    try:
        clean_sim.fault(service="hve", kind="reply", phase="mail", text="451 4.7.500 Server busy. Please try again later.",
                        count=1000)
        message_id = gateway.send(SENDER, ["late@contoso.test"], heave.mime_message(SENDER, "late@contoso.test"))
        gateway.wait_states(message_id, {"expired": 1}, 30)
        assert "4.7.500" in gateway.status(message_id)["recipients"][0]["last_reply"]
    finally:
        assert gateway.stop() == 0


def test_rates_are_kept(tmp_path, clean_sim):
    """`rates` of a backend: never more than that in any window, and everything leaves."""
    import copy
    gateway = heave.Gateway(tmp_path, clean_sim, start=False)
    backends = copy.deepcopy(gateway.conf["backends"])
    backends["acs"]["rates"] = ["5/2s"]
    gateway.conf["backends"] = backends
    gateway.write_conf()
    gateway.start()
    try:
        ids = flood(gateway, 15, "example.net", "rate")
        all_delivered(gateway, ids, 60)
        times = sorted(d["at"] for d in clean_sim.deliveries() if d["service"] == "acs")
        assert len(times) == 15
        seconds = [heave.seconds_of(t) for t in times]
        for first, sixth in zip(seconds, seconds[5:]):
            assert sixth - first >= 1.95, seconds
    finally:
        assert gateway.stop() == 0
