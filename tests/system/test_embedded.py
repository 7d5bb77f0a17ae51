"""The embedded Redis on a disk that fills up, and with files that were damaged."""
import contextlib
import os
import pathlib
import subprocess
import time
from datetime import datetime, timedelta, timezone

import pytest

import heave

SENDER = "alerts@contoso.test"
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def disk(tmp_path):
    """A disk of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def gateway_on(folder, data_dir, sim, reserve, **more):
    gateway = heave.Gateway(folder, sim, {"threads": {"ingress": 1, "delivery": 1}, **more}, start=False)
    gateway.conf["queue"].update(data_dir=str(data_dir), disk_reserve=reserve, compression=False, lease="2s")
    gateway.write_conf()
    gateway.start()
    # Its ingress thread connects after it is ready.
    heave.wait_until(lambda: try_to_send(gateway)[0], 20, "a message to be taken")
    return gateway


def free(folder):
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def try_to_send(gateway, text="x"):
    """The queue id, or the reply that refused it."""
    try:
        with gateway.smtp() as client:
            client.ehlo()
            for code, answer in (client.mail(SENDER), client.rcpt("a@contoso.test")):
                if code != 250:
                    return None, code, answer
            code, answer = client.data(heave.mime_message(SENDER, "a@contoso.test", text=text))
            return (answer.decode().split()[-1] if code == 250 else None), code, answer
    except OSError as error:
        return None, 0, str(error).encode()


def test_a_good_start_logs_no_error(tmp_path, sim):
    """The connections are tried before the server has made its socket, which is nobody's trouble."""
    gateway = gateway_on(tmp_path / "gw", tmp_path / "data", sim, "0B")
    log = gateway.process.tail(10 ** 6)
    assert "embedded state=up" in log and "redis state=up" in log
    assert "redis state=down" not in log and " error " not in log
    assert gateway.stop() == 0


def test_low_disk_refuses_and_delivers(tmp_path, disk, sim):
    """With less than the reserve left new mail is put off, what waits is delivered, and space ends it."""
    gateway = gateway_on(tmp_path / "gw", disk / "data", sim, "6MiB")
    ballast = disk / "ballast"
    try:
        later = datetime.now(timezone.utc) + timedelta(seconds=4)
        first = gateway.send(SENDER, ["a@contoso.test"], heave.mime_message(
            SENDER, "a@contoso.test", extra=f"X-Heave-Send-At: {later.strftime('%Y-%m-%dT%H:%M:%SZ')}\r\n"))
        ballast.write_bytes(b"x" * (free(disk) - 5 * MIB))
        heave.wait_until(lambda: "disk full" in gateway.process.tail(), 10, "the log to say so")
        _, code, answer = try_to_send(gateway)
        assert code == 452 and b"disk is full" in answer, answer
        status, problem = gateway.post({"from": SENDER, "to": ["a@contoso.test"], "subject": "s", "text": "t"})
        assert status == 503, problem
        assert gateway.states(first) == {"queued": 1}
        gateway.wait_states(first, {"delivered": 1})
        ballast.unlink()
        heave.wait_until(lambda: "disk has room" in gateway.process.tail(), 10, "the log to say so")
        last = try_to_send(gateway)[0]
        gateway.wait_states(last, {"delivered": 1})
    finally:
        assert gateway.stop() == 0


def test_history_has_memory_of_its_own(tmp_path, sim):
    """A small queue with a full history and all the dead letters it may keep is not short of memory."""
    gateway = heave.Gateway(tmp_path, sim, start=False, changes={
        "queue": {"redis": "embedded", "data_dir": str(tmp_path / "data"), "max_bytes": "1MiB",
                  "history_bytes": "2GiB", "dead_letter_bytes": "3GiB"}})
    gateway.start()
    try:
        lines = dict(line.split(maxsplit=1) for line in (tmp_path / "data" / "redis.conf").read_text().splitlines())
        assert int(lines["maxmemory"]) * 95 // 100 > 5 << 30
    finally:
        assert gateway.stop() == 0


def test_full_disk_loses_nothing(tmp_path, disk, sim):
    """Redis ends when it cannot write its file. The log says why in words, peers are put off, and once there is space
    everything that was accepted goes out."""
    gateway = gateway_on(tmp_path / "gw", disk / "data", sim, "0", roles=["ingest"])
    ballast = disk / "ballast"
    try:
        ballast.write_bytes(b"x" * (free(disk) - 4 * MIB))
        accepted, refused = [], []
        end = time.monotonic() + 60 * heave.PATIENCE
        while len(refused) < 5:
            message_id, code, answer = try_to_send(gateway, "y" * 50 * KIB)
            if message_id:
                accepted.append(message_id)
            else:
                assert code in (0, 421, 451, 452), answer
                refused.append(answer)
            assert time.monotonic() < end, (len(accepted), refused)
        assert len(accepted) > 10
        heave.wait_until(lambda: "The disk is full" in gateway.process.tail(20000), 20, "the log to say so")
        gateway.stop()
        # Delivery comes up on the full disk, and goes on by itself when there is space.
        gateway.conf["roles"] = ["ingest", "dispatch"]
        gateway.write_conf()
        with contextlib.suppress(OSError), open(disk / "rest", "wb", buffering=0) as rest:
            while True:
                rest.write(b"x" * 512)
        before = gateway.process.tail(10 ** 7).count("embedded state=down")
        gateway.start(ready=False)
        heave.wait_until(lambda: gateway.process.tail(10 ** 7).count("embedded state=down") > before, 20,
                         "the server to fail")
        assert "The disk is full" in gateway.process.tail()
        ballast.unlink()
        heave.wait_until(gateway.is_ready, 30, "the gateway to be ready")
        for message_id in accepted:
            gateway.wait_states(message_id, {"delivered": 1}, 60)
        assert try_to_send(gateway)[0]
    finally:
        gateway.stop()


def damaged(gateway, damage):
    """Stops the gateway, changes its append-only file, and starts it again."""
    gateway.stop()
    files = list((gateway.folder / "data").rglob("*.incr.aof")) or list((gateway.folder / "data").glob("*.aof"))
    content = bytearray(files[0].read_bytes())
    damage(content)
    files[0].write_bytes(content)
    gateway.start(ready=False)


def test_cut_and_damaged_file(tmp_path, sim):
    """A cut end is repaired, what stood before it is there. Damage in the middle is named with its remedy, and the
    remedy works."""
    gateway = heave.Gateway(tmp_path, sim, {"roles": ["ingest"]})
    try:
        ids = [heave.wait_until(lambda n=i: try_to_send(gateway, f"number {n}")[0], 20, "a message to be taken")
               for i in range(5)]
        damaged(gateway, lambda content: content.extend(b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$100\r\nhalf of i"))
        heave.wait_until(gateway.is_ready, 30, "the gateway to be ready")
        for message_id in ids:
            assert gateway.states(message_id) == {"queued": 1}

        def spoil(content):
            at = content.index(b"number 4")
            begin = content.index(b"\r\n*", at) + 2
            content[begin:begin + 1] = b"?"
        damaged(gateway, spoil)
        heave.wait_until(lambda: "redis-check-aof --fix" in gateway.process.tail(20000), 20, "the log to name the remedy")
        assert not gateway.is_ready()
        gateway.stop()
        data = gateway.folder / "data"
        name = "appendonlydir/appendonly.aof.manifest"
        name = name if (data / name).exists() else "appendonly.aof"
        assert f"redis-check-aof --fix {name}" in pathlib.Path(gateway.process.log_path).read_text()
        fixed = subprocess.run(["redis-check-aof", "--fix", name], cwd=data, input="y\ny\n", text=True,
                               capture_output=True)
        assert fixed.returncode == 0, fixed.stdout
        gateway.start()
        for message_id in ids[:4]:
            assert gateway.states(message_id) == {"queued": 1}
    finally:
        with contextlib.suppress(AssertionError):
            gateway.stop()
