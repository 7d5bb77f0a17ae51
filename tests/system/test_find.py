"""heave find, the search of GET /v1/messages, and the filters and cursors of heave queue show, on a running gateway."""
import json

import pytest

import heave

OPS_KEY = "operations-key"
BULK = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A gateway without services: what it takes stays queued, except for one message that is given up."""
    folder = tmp_path_factory.mktemp("find")
    gateway = heave.Gateway(folder / "gw", None, {
        "clients": [
            {"name": "local", "networks": ["127.0.0.0/8"], "from": ["*"]},
            {"name": "erp", "api_key_hash": heave.crypt_hash(heave.API_KEY), "from": ["*@contoso.test"], "lane": "bulk"},
            {"name": "ops", "api_key_hash": heave.crypt_hash(OPS_KEY), "from": ["*@contoso.test"]},
        ],
        "backends": {"hve": {"type": "smtp", "host": "127.0.0.1", "port": heave.free_port(), "tls": "off", "auth": "none"}},
        "routes": [{"match": {}, "via": ["hve"]}],
    }, start=False)
    gateway.start()
    ids = {"bulk": []}
    for number in range(BULK):
        status, answer = gateway.post({"from": "erp@contoso.test", "to": [f"person{number}@contoso.test"],
                                       "subject": f"Invoice {number}", "text": "x", "tags": ["invoices"]})
        assert status == 202, answer
        ids["bulk"].append(answer["id"])
    ids["smtp"] = gateway.send("Scanner@contoso.test", ["Anna@contoso.test", "bob@fabrikam.example"], heave.mime_message(
        "scanner@contoso.test", "anna@contoso.test", extra="Message-ID: <scan-4711@scanner.contoso.test>\r\n"))
    status, answer = gateway.post({"from": "ops@contoso.test", "to": ["person7@contoso.test"], "subject": "Seven",
                                   "text": "x"}, key=OPS_KEY)
    assert status == 202, answer
    ids["ops"] = answer["id"]
    yield gateway, ids
    gateway.stop()


def find(gateway, text, *args, **kwargs):
    ended = gateway.run("find", text, "-c", gateway.conf_path, "--json", *map(str, args), **kwargs)
    assert ended.returncode == 0, ended
    answer = json.loads(ended.stdout)
    return [message["id"] for message in answer["messages"]], answer["next_cursor"]


def search(gateway, query, key=heave.API_KEY):
    status, answer = heave.http_json("GET", f"{gateway.http}/v1/messages?{query}",
                                     headers={"Authorization": f"Bearer {key}"})
    assert status == 200, answer
    return [message["id"] for message in answer["messages"]]


def in_order(found, newest_first):
    """Newest first; ids of the same millisecond (their first ten characters) may change places."""
    return len(set(found)) == len(found) and [i[:10] for i in found] == [i[:10] for i in newest_first]


@pytest.mark.parametrize("text", ["anna@contoso.test", "BOB@Fabrikam.example", "scanner@contoso.test", "@fabrikam.example",
                                  "scan-4711@scanner.contoso.test", "<scan-4711@SCANNER.contoso.test>",
                                  "test.contoso.test"])
def test_each_term_finds_the_mail(world, text):
    gateway, ids = world
    assert find(gateway, text) == ([ids["smtp"]], None)


def test_the_id_itself(world):
    gateway, ids = world
    assert find(gateway, ids["ops"]) == ([ids["ops"]], None)
    assert find(gateway, "01JDF3Q8ZK5W1T7R9N2B4C6D8E-0") == ([], None)


def test_newest_first_and_paging(world):
    gateway, ids = world
    newest = ids["bulk"][::-1]
    assert in_order(find(gateway, "invoices", "--limit", BULK)[0], newest)
    found, cursor = find(gateway, "invoices", "--limit", 25)
    assert in_order(found, newest[:25]) and cursor
    rest, cursor = find(gateway, "invoices", "--cursor", cursor, "--limit", 1000)
    assert in_order(rest, newest[25:]) and cursor is None
    assert sorted(found + rest) == sorted(newest)
    # A cursor of another search is refused, not misread.
    ended = gateway.run("queue", "show", "-c", gateway.conf_path, "--cursor", "s1~2")
    assert ended.returncode == 1 and "cursor" in ended.stderr, ended


def test_filters(world):
    gateway, ids = world
    assert find(gateway, "person7@contoso.test")[0] == [ids["ops"], ids["bulk"][7]]
    assert find(gateway, "person7@contoso.test", "--lane", "bulk")[0] == [ids["bulk"][7]]
    assert find(gateway, "person7@contoso.test", "--client", "ops")[0] == [ids["ops"]]
    assert find(gateway, "person7@contoso.test", "--since", "1h")[0] == [ids["ops"], ids["bulk"][7]]
    assert find(gateway, "person7@contoso.test", "--before", "1h") == ([], None)
    assert find(gateway, "person7@contoso.test", "--since", "2100-01-01T00:00:00Z") == ([], None)
    assert find(gateway, "person7@contoso.test", "--state", "failed") == ([], None)
    assert find(gateway, "person7@contoso.test", "--state", "queued")[0] == [ids["ops"], ids["bulk"][7]]


def test_a_client_sees_its_own(world):
    gateway, ids = world
    assert search(gateway, "address=person7@contoso.test") == [ids["bulk"][7]]
    assert search(gateway, "address=person7@contoso.test", OPS_KEY) == [ids["ops"]]
    assert search(gateway, "q=anna@contoso.test") == []
    assert search(gateway, f"q={ids['smtp']}") == []
    assert in_order(search(gateway, "tag=invoices&limit=3"), ids["bulk"][:-4:-1])
    assert sorted(search(gateway, "tag=invoices&sender=erp@contoso.test&domain=contoso.test&state=unfinished&limit=500"),
                  ) == sorted(ids["bulk"])
    for wrong in ("client=ops", "state=lost", "since=yesterday", "limit=0", "cursor=x", "what=ever"):
        status, answer = heave.http_json("GET", f"{gateway.http}/v1/messages?{wrong}",
                                         headers={"Authorization": f"Bearer {heave.API_KEY}"})
        assert status == 422, (wrong, answer)


def test_tables_and_exit_codes(world):
    gateway, ids = world
    ended = gateway.run("find", "anna@contoso.test", "-c", gateway.conf_path)
    assert ended.returncode == 0 and ids["smtp"] in ended.stdout and "FROM" in ended.stdout, ended
    ended = gateway.run("find", "invoices", "-c", gateway.conf_path, "--limit", "2")
    assert "--cursor" in ended.stdout, ended
    assert gateway.run("find", "-c", gateway.conf_path).returncode == 2
    assert gateway.run("find", "x", "--limit", "0", "-c", gateway.conf_path).returncode == 2
    assert gateway.run("find", "x", "--since", "soon", "-c", gateway.conf_path).returncode == 1
    ended = gateway.run("find", "x", "--url", f"http://127.0.0.1:{heave.free_port()}")
    assert ended.returncode == 3, ended


def test_queue_show_filters(world):
    gateway, ids = world

    def show(*args):
        ended = gateway.run("queue", "show", "-c", gateway.conf_path, "--json", *map(str, args))
        assert ended.returncode == 0, ended
        return sorted(message["id"] for message in json.loads(ended.stdout)["messages"])
    everything = sorted([*ids["bulk"], ids["smtp"], ids["ops"]])
    assert show("--limit", 1000) == everything
    assert show("--client", "ops") == [ids["ops"]]
    assert show("--tag", "invoices", "--limit", 1000) == sorted(ids["bulk"])
    assert show("--domain", "fabrikam.example") == [ids["smtp"]]
    assert show("--sender", "scanner@contoso.test") == [ids["smtp"]]
    assert show("--lane", "bulk", "--limit", 1000) == sorted(ids["bulk"])
    assert show("--older-than", "1h") == []
    assert show("--state", "held") == []
    assert show("--state", "failed", "--all") == []


def test_since_when(world):
    """Nothing can be delivered here: what was tried is delayed, and each state says since when or until when."""
    gateway, _ = world

    def delayed():
        ended = gateway.run("queue", "list", "-c", gateway.conf_path, "--json")
        assert ended.returncode == 0, ended
        rows = json.loads(ended.stdout)["queues"]
        return next((row for row in rows if row["batches"]["delayed"] and not row["batches"]["ready"]), None)
    row = heave.wait_until(delayed, what="batches to be delayed")
    assert row["since"]["delayed"] and row["since"]["ready"] is None and row["since"]["held"] is None, row
    table = gateway.run("queue", "list", "-c", gateway.conf_path).stdout
    assert "NEXT DUE" in table and "HELD SINCE" in table, table
    assert 'state="delayed"' in gateway.metrics()
    series = [line for line in gateway.metrics().splitlines() if line.startswith("heave_queue_oldest_seconds{")]
    assert any('state="held"' in line for line in series), series


def test_explain(world):
    gateway, ids = world
    ended = gateway.run("explain", ids["smtp"], "-c", gateway.conf_path)
    assert ended.returncode == 0, ended
    for words in (f"message {ids['smtp']}: queued", "from client local, host 127.0.0.1 test.contoso.test",
                  "Scanner@contoso.test as reverse-path", "2 recipient(s) through hve", "next: ", "bob@fabrikam.example: queued"):
        assert words in ended.stdout, (words, ended.stdout)
    assert json.loads(gateway.run("explain", ids["smtp"], "-c", gateway.conf_path, "--json").stdout)["id"] == ids["smtp"]
    assert gateway.run("explain", "-c", gateway.conf_path).returncode == 2
    assert gateway.run("explain", "01JDF3Q8ZK5W1T7R9N2B4C6D8E-0", "-c", gateway.conf_path).returncode == 1
