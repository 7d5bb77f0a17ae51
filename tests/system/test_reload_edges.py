"""Reloads at the wrong moment, or of what cannot be reloaded."""
import signal
import time

import heave


def test_reload_while_draining(tmp_path, sim):
    """SIGHUPs all through a drain change nothing and break nothing."""
    gateway = heave.Gateway(tmp_path, sim, changes={"threads": {"ingress": 2, "delivery": 2}})
    child = gateway.process.child
    child.send_signal(signal.SIGTERM)
    heave.wait_until(lambda: "stop how=draining" in gateway.process.tail(), 10, "the drain")
    end = time.monotonic() + 60 * heave.PATIENCE
    while child.poll() is None:
        assert time.monotonic() < end, gateway.process.tail()
        child.send_signal(signal.SIGHUP)
        time.sleep(0.001)
    assert child.returncode == 0, gateway.process.tail()
    assert " reload result" not in gateway.process.tail()


def test_new_lane_needs_a_restart(tmp_path, sim):
    """No message is accepted into a lane that nobody would claim until a restart."""
    gateway = heave.Gateway(tmp_path, sim)
    try:
        gateway.conf["lanes"]["night"] = {"share": "5%", "retry": "1m*", "expires": "24h", "on_unknown": "hold"}
        gateway.write_conf()
        gateway.process.child.send_signal(signal.SIGHUP)
        heave.wait_until(lambda: gateway.metric("heave_config_reloads_total", result="failed") == 1, 10, "the reload")
        assert "a lane was added, which needs a restart" in gateway.process.tail()
    finally:
        assert gateway.stop() == 0
