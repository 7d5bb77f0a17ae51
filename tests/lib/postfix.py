"""A private Postfix instance: own folders, own port, everything relayed to one host. Needs root and Debian's postfix."""
import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
import time

SERVICES = """\
127.0.0.1:{port} inet n - n - {processes} smtpd
pickup    unix  n  -  n  60   1 pickup
cleanup   unix  n  -  n  -    0 cleanup
qmgr      unix  n  -  n  300  1 qmgr
tlsmgr    unix  -  -  n  1000? 1 tlsmgr
tlsproxy  unix  -  -  n  -    0 tlsproxy
rewrite   unix  -  -  n  -    - trivial-rewrite
bounce    unix  -  -  n  -    0 bounce
defer     unix  -  -  n  -    0 bounce
trace     unix  -  -  n  -    0 bounce
verify    unix  -  -  n  -    1 verify
flush     unix  n  -  n  1000? 0 flush
proxymap  unix  -  -  n  -    - proxymap
smtp      unix  -  -  n  -    {processes} smtp
relay     unix  -  -  n  -    {processes} smtp
showq     unix  n  -  n  -    - showq
error     unix  -  -  n  -    - error
retry     unix  -  -  n  -    - error
discard   unix  -  -  n  -    - discard
anvil     unix  -  -  n  -    1 anvil
scache    unix  -  -  n  -    1 scache
postlog   unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """Listens on 127.0.0.1:`port` and relays to `relayhost` ("[127.0.0.1]:2525")."""

    def __init__(self, port, relayhost, processes=100, settings=None):
        # Postfix's unprivileged daemons must be able to reach the folder, which pytest's own do not allow.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="heave-postfix."))
        self.folder.chmod(0o755)
        self.port = port
        self.queue = self.folder / "spool"
        data = self.folder / "data"
        for folder in (self.queue, data):
            folder.mkdir()
        owner = pwd.getpwnam("postfix")
        os.chown(data, owner.pw_uid, owner.pw_gid)
        values = {
            "compatibility_level": "3.6", "queue_directory": self.queue, "data_directory": data,
            "mail_owner": "postfix", "setgid_group": "postdrop", "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4", "myhostname": "postfix.contoso.test", "mydestination": "",
            "mynetworks": "127.0.0.0/8", "relayhost": relayhost, "smtpd_relay_restrictions": "permit_mynetworks,reject",
            "maillog_file": self.folder / "mail.log", "maillog_file_prefixes": "/tmp",
            "default_process_limit": processes, "message_size_limit": 60_000_000,
            "smtp_tls_security_level": "none", "alias_maps": "", "local_recipient_maps": "",
            "multi_instance_name": "", "smtp_host_lookup": "native", "disable_dns_lookups": "yes",
            "shlib_directory": "/usr/lib/postfix", "daemon_directory": "/usr/lib/postfix/sbin",
            "command_directory": "/usr/sbin", "meta_directory": "/etc/postfix", **(settings or {}),
        }
        (self.folder / "main.cf").write_text("".join(f"{k} = {v}\n" for k, v in values.items()))
        (self.folder / "master.cf").write_text(SERVICES.format(port=port, processes=processes))
        self.run("start")
        self.master = self._master_pid()

    def _master_pid(self):
        pid_file = self.queue / "pid" / "master.pid"
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError, ValueError):
                return int(pid_file.read_text())
            time.sleep(0.05)
        raise AssertionError("Postfix did not start: " + self.log())

    def run(self, verb):
        done = subprocess.run(["postfix", "-c", self.folder, verb], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise AssertionError(f"postfix {verb}: {done.stdout}{done.stderr}{self.log()}")

    def log(self):
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "mail.log").read_text(errors="replace")[-4000:]
        return ""

    def sendmail(self, sender, recipients, message):
        """Local submission, as a program on the same host does it."""
        subprocess.run(["sendmail", "-C", self.folder, "-f", sender, "-i", *recipients], input=message, check=True,
                       timeout=60)

    def pids(self):
        """The master and all its daemons now."""
        out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.master)], capture_output=True, text=True).stdout
        return [self.master] + [int(p) for p in out.split()]

    def stop(self):
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.run("stop")
        end = time.monotonic() + 10
        while time.monotonic() < end and pathlib.Path(f"/proc/{self.master}").exists():
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.master, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
