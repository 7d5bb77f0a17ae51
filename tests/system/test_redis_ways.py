"""The ways to a Redis server (TLS with a client certificate, ACL user, Unix socket, database number, IPv6), and what
`heave check` says about it."""
import json
import socket
import subprocess

import heave
import pytest
import redis_servers
from sending import send

DONE, REFUSED, UNREACHABLE = 0, 1, 3
# As queue/README.md has it.
ACL = ("resetkeys ~{h* resetchannels &heave:ready -@all +@read +@write +@scripting +@pubsub +@connection -@dangerous "
       "+info +time +multi +exec +config|get +cluster|slots +asking")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, a server's certificate and a client's."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=Test CA")
    for name, use in (("server", "serverAuth"), ("client", "clientAuth")):
        (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={use}\n")
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext")
        (folder / f"{name}.key").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("redis")
    server = redis_servers.Redis(
        folder, f"unixsocket {folder}/redis.sock", "unixsocketperm 700", f"user mail on >secret {ACL}",
        f"user strict on >secret {ACL} -config")
    server.socket_path = folder / "redis.sock"
    yield server
    server.stop()


@pytest.fixture
def tls_redis(tmp_path, certificates):
    port = heave.free_port()
    try:
        server = redis_servers.Redis(
            tmp_path / "redis", f"tls-port {port}", f"tls-cert-file {certificates}/server.pem",
            f"tls-key-file {certificates}/server.key", f"tls-ca-cert-file {certificates}/ca.pem",
            "tls-auth-clients yes")
    except AssertionError as error:
        if "Bad directive" in str(error) or "finding TLS support" in str(error):
            pytest.skip("a server built without TLS")
        raise
    server.tls_port = port
    yield server
    server.stop()


@pytest.fixture
def clean(redis):
    redis("FLUSHALL")
    redis("CONFIG", "SET", "appendfsync", "always")
    yield redis
    redis("CONFIG", "SET", "appendfsync", "always")
    redis("CONFIG", "SET", "maxmemory-policy", "noeviction")


def gateway_on(tmp_path, sim, queue, **more):
    return heave.Gateway(tmp_path, sim, {"queue": queue, "threads": {"ingress": 1, "delivery": 1}}, **more)


def deliver(gateway):
    message = send(gateway, "a@contoso.test")
    gateway.wait_states(message, {"delivered": 1})


def check(gateway, *flags):
    return gateway.run("check", "-c", str(gateway.conf_path), *flags)


def test_tls_with_client_certificate(tmp_path, clean_sim, tls_redis, certificates):
    queue = {"redis": f"rediss://localhost:{tls_redis.tls_port}/3", "ca_file": str(certificates / "ca.pem"),
             "cert_file": str(certificates / "client.pem"), "key_file": str(certificates / "client.key")}
    gateway = gateway_on(tmp_path / "gateway", clean_sim, queue)
    deliver(gateway)
    with redis_servers.Client(tls_redis.port) as client:
        assert client("SELECT", "3") == "OK" and client("DBSIZE") > 0
    assert check(gateway).returncode == DONE
    del gateway.conf["queue"]["cert_file"], gateway.conf["queue"]["key_file"]
    gateway.write_conf()
    # TLS 1.3 tells a client without a certificate after its handshake; no answer ever came.
    assert check(gateway).returncode == UNREACHABLE
    del gateway.conf["queue"]["ca_file"]
    gateway.write_conf()
    distrusting = check(gateway)
    assert distrusting.returncode == UNREACHABLE and "certificate" in distrusting.stderr
    assert gateway.stop() == 0


def test_acl_user_with_a_password_file(tmp_path, clean_sim, clean):
    """The rights in queue/README.md are enough for everything the gateway does."""
    (tmp_path / "redis.pw").write_text("secret\n")
    (tmp_path / "redis.pw").chmod(0o600)
    gateway = gateway_on(tmp_path, clean_sim, {"redis": f"redis://127.0.0.1:{clean.port}", "user": "mail",
                                               "password_file": str(tmp_path / "redis.pw")})
    deliver(gateway)
    large = send(gateway, "large@contoso.test", text="0123456789abcdef\r\n" * 60000)
    gateway.wait_states(large, {"delivered": 1})
    assert gateway.queue()
    assert check(gateway).returncode == DONE
    assert "NOPERM" not in gateway.process.tail(100000)
    (tmp_path / "redis.pw").write_text("wrong\n")
    refused = check(gateway)
    assert refused.returncode == REFUSED and "WRONGPASS" in refused.stderr
    assert gateway.stop() == 0


def test_config_forbidden(tmp_path, clean_sim, clean):
    """As with managed services: what cannot be asked is believed, and said once."""
    gateway = gateway_on(tmp_path, clean_sim, {"redis": f"redis://strict:secret@127.0.0.1:{clean.port}"})
    deliver(gateway)
    said = gateway.process.tail(100000).count("Redis does not let itself be asked for appendfsync")
    report = check(gateway)
    assert report.returncode == DONE, report
    if redis_servers.version() >= (7, 2):
        assert said == 0 and "WAITAOF" in report.stdout
    else:
        assert 1 <= said <= 2 and "redis: warning: Redis does not let itself be asked for appendfsync" in report.stdout
    assert gateway.stop() == 0


def test_unix_socket(tmp_path, clean_sim, clean):
    gateway = gateway_on(tmp_path, clean_sim, {"redis": f"unix://mail:secret@{clean.socket_path}?db=0"})
    deliver(gateway)
    report = check(gateway)
    assert report.returncode == DONE and f"redis: {clean.socket_path}: " in report.stdout
    assert gateway.stop() == 0


def test_late_fsync(tmp_path, clean_sim, clean):
    """appendfsync everysec: WAITAOF keeps the promise where the server has it; otherwise it is a mistake."""
    clean("CONFIG", "SET", "appendfsync", "everysec")
    gateway = gateway_on(tmp_path, clean_sim, {"redis": f"redis://127.0.0.1:{clean.port}"}, start=False)
    report = check(gateway)
    if redis_servers.version() < (7, 2):
        assert report.returncode == REFUSED
        assert "queue.redis: Redis answers before its append-only file is on disk" in report.stderr
        assert "CONFIG SET appendfsync always" in report.stderr
        mistake = json.loads(check(gateway, "--json").stdout)["mistakes"][0]
        assert mistake["path"] == "queue.redis" and mistake["line"] > 1 and mistake["column"] > 1
        return
    assert report.returncode == DONE and "by WAITAOF after each group" in report.stdout
    gateway.start()
    for _ in range(5):
        deliver(gateway)
    calls = clean.info("commandstats")["cmdstat_waitaof"]
    assert int(calls.split("calls=")[1].split(",")[0]) >= 5
    assert gateway.stop() == 0


def test_check_says_what_is_wrong(tmp_path, sim, clean):
    gateway = gateway_on(tmp_path, sim, {"redis": f"redis://127.0.0.1:{clean.port}"}, start=False)
    good = check(gateway)
    assert good.returncode == DONE
    assert f"redis: 127.0.0.1:{clean.port}: " in good.stdout
    assert "standalone, role master with 0 replicas online, appendonly yes, appendfsync always" in good.stdout
    assert "redis: durability fsync: by the server, which fsyncs before it answers" in good.stdout
    told = json.loads(check(gateway, "--json").stdout)
    assert told["ok"] is True and told["redis"]["reached"] is True
    assert (told["redis"]["topology"], told["redis"]["durability"]) == ("standalone", "fsync")
    assert "".join(f"redis: {line}\n" for line in told["redis"]["said"]) in good.stdout
    with redis_servers.Client(clean.port) as known:
        known("CONFIG", "SET", "requirepass", "secret")
        locked = check(gateway)
        known("CONFIG", "SET", "requirepass", "")
    assert locked.returncode == REFUSED and "NOAUTH" in locked.stderr and "queue.password_file" in locked.stderr
    gateway.conf["queue"] = {"redis": f"rediss://127.0.0.1:{clean.port}"}
    gateway.write_conf()
    plain = check(gateway)
    assert plain.returncode == UNREACHABLE and "TLS" in plain.stderr and "good:" not in plain.stdout
    gateway.conf["queue"] = {"redis": f"redis://127.0.0.1:{clean.port}"}
    gateway.write_conf()
    clean("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    evicts = check(gateway)
    assert evicts.returncode == REFUSED and "CONFIG SET maxmemory-policy noeviction" in evicts.stderr
    assert check(gateway, "--offline").returncode == DONE
    clean("CONFIG", "SET", "appendonly", "no")
    clean("CONFIG", "SET", "appendfsync", "everysec")
    all_wrong = check(gateway)
    assert all_wrong.returncode == REFUSED and "CONFIG SET maxmemory-policy noeviction" in all_wrong.stderr
    assert "CONFIG SET appendonly yes" in all_wrong.stderr
    assert ("CONFIG SET appendfsync always" in all_wrong.stderr) == (redis_servers.version() < (7, 2))
    clean("CONFIG", "SET", "appendfsync", "always")
    clean("CONFIG", "SET", "appendonly", "yes")
    clean("CONFIG", "SET", "maxmemory-policy", "noeviction")
    gateway.conf["queue"]["durability"] = "replicated"
    gateway.write_conf()
    alone = check(gateway)
    assert alone.returncode == REFUSED and "Redis has 0 of the 1 replicas" in alone.stderr
    gateway.conf["queue"] = {"redis": f"redis://127.0.0.1:{heave.free_port()}"}
    gateway.write_conf()
    nobody = check(gateway)
    assert nobody.returncode == UNREACHABLE and "Redis could not be reached" in nobody.stderr
    assert "good:" not in nobody.stdout
    assert json.loads(check(gateway, "--json").stdout)["ok"] is False
    gateway.conf["queue"] = {"redis": f"sentinel://127.0.0.1:{clean.port}/mail"}
    gateway.write_conf()
    no_sentinel = check(gateway)
    assert no_sentinel.returncode == REFUSED and "Redis refuses SENTINEL" in no_sentinel.stderr
    gateway.conf["queue"] = {"redis": f"cluster://127.0.0.1:{clean.port}"}
    gateway.write_conf()
    no_cluster = check(gateway)
    assert no_cluster.returncode == REFUSED and "Redis refuses CLUSTER SLOTS" in no_cluster.stderr


def test_readyz_and_metrics_show_the_level(tmp_path, sim, clean):
    gateway = gateway_on(tmp_path, sim, {"redis": f"redis://127.0.0.1:{clean.port}", "durability": "memory"})
    assert heave.http_json("GET", f"{gateway.admin}/readyz")[1]["durability"] == "memory"
    assert gateway.metric("heave_queue_durability", level="memory") == 1
    assert gateway.metric("heave_queue_durability", level="fsync") == 0
    assert gateway.stop() == 0


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6(tmp_path, clean_sim):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 loopback here")
    redis = redis_servers.Redis(tmp_path / "redis", "bind 127.0.0.1 ::1")
    try:
        gateway = gateway_on(tmp_path / "gateway", clean_sim, {"redis": f"redis://[::1]:{redis.port}"})
        deliver(gateway)
        assert gateway.stop() == 0
    finally:
        redis.stop()
