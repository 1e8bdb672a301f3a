"""Guests under QEMU, cabled port to port in a ring: h1 .. hN, nic1 of hK to nic0 of hK+1.

    with Ring(hosts=3) as ring:
        ring["h1"].run("ping -c 1 10.88.0.3")
        ring.cut("h1", "h2")

Everything is emulated (no KVM is needed), so times mean little: about 20 MB/s over a cable, half a
millisecond of latency on an idle machine. Nothing here sleeps for a fixed time: wait_until() polls a
condition up to a deadline that only a failure meets. The processes of a ring end with it.

    guests.py [HOSTS]       boots a ring with fabricd on every host, and takes commands:
                            "h1 COMMAND", "cut h1 h2", "silence h1 h2", "mend h1 h2", "kill h2", "boot h2"
"""

import base64
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import image

MEMORY = 1024  # MiB, of which most is never touched
MTU = 4500    # of the interfaces; the path MTU of RoCE is then 4096
BOOT_TIMEOUT = 180


def wait_until(condition, timeout=60.0, what="the condition", interval=0.1):
    """Calls condition() until it is true; returns what it returned. AssertionError at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(interval)


def run_first():
    """Before others on a busy machine, whichever scheduling group they are in (sched(7), autogroup): a guest that
    is not run for a second is a dead one to its neighbours."""
    try:
        os.nice(-10)
        Path("/proc/self/autogroup").write_text("-10")
    except OSError:  # not root, or a kernel without groups
        pass


class CommandFailed(AssertionError):
    def __init__(self, guest, command, status, output):
        super().__init__(f"{guest}: {command!r} ended with {status}:\n{output}")
        self.status = status
        self.output = output


class GuestGone(AssertionError):
    pass


class Job:
    def __init__(self, guest, command):
        self.guest, self.command = guest, command
        self.future = Future()

    def result(self, timeout=60):
        """(status, output)"""
        try:
            return self.future.result(timeout)
        except TimeoutError:
            raise AssertionError(f"{self.guest.name}: {self.command!r} takes longer than {timeout} s") from None

    def wait(self, timeout=60):
        """Output; CommandFailed where the status is not 0."""
        status, output = self.result(timeout)
        if status != 0:
            raise CommandFailed(self.guest.name, self.command, status, output)
        return output


class Guest:
    """One host. `cables` are the ends of its network interfaces: (own socket, socket of the other end)."""

    def __init__(self, name, number, cables, boot_files, sockets, logs):
        self.name, self.number, self.cables = name, number, cables
        self.kernel, self.initrd = boot_files
        self.sockets, self.logs = sockets, logs
        self.process = None
        self.lock = threading.Lock()

    def boot(self):
        """Switches it on; ready() waits for it."""
        name = self.name
        self.jobs, self.last_job, self.is_ready = {}, 0, threading.Event()
        agent, monitor = self.sockets / f"{name}.agent", self.sockets / f"{name}.qmp"
        for path in [agent, monitor]:
            path.unlink(missing_ok=True)
        command = [
            # A guest does not outlive the test that started it, however that ends.
            "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-name", f"fabric-{name}", "-machine", "pc,usb=off,vmport=off",
            "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-smp", "1", "-m", str(MEMORY),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", self.kernel, "-initrd", self.initrd, "-append",
            f"console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable fabric.name={name} fabric.mtu={MTU}",
            "-chardev", f"file,id=console,path={self.logs / name}.console,append=on", "-serial", "chardev:console",
            "-qmp", f"unix:{monitor},server=on,wait=off", "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,path={agent},server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=agent",
            "-chardev", f"file,id=log,path={self.logs / name}.fabricd,append=on",
            "-device", "virtserialport,chardev=log,name=log"]
        for n, (own, other) in enumerate(self.cables):
            own.unlink(missing_ok=True)
            command += [
                "-netdev", f"dgram,id=nic{n},local.type=unix,local.path={own},"
                           f"remote.type=unix,remote.path={other}",
                "-device", f"virtio-net-pci,id=nic{n},netdev=nic{n},host_mtu=9000,romfile=,"
                           f"mac=52:54:00:fa:{self.number:02x}:{n:02x}"]
        with open(self.logs / f"{name}.qemu", "a") as log:
            self.process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, start_new_session=True,
                                            preexec_fn=run_first)
        self.agent = self.connect(agent)
        self.control = self.connect(monitor)
        self.monitor = self.control.makefile("rw", encoding="utf-8")
        self.monitor.readline()  # greeting
        self.execute("qmp_capabilities")
        threading.Thread(target=self.listen, args=(self.agent, self.jobs, self.is_ready), daemon=True).start()

    def connect(self, path):
        def attempt():
            if self.process.poll() is not None:
                raise GuestGone(f"QEMU of {self.name} does not start: see {self.logs / self.name}.qemu")
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except OSError:
                connection.close()
                return None
        return wait_until(attempt, what=f"socket of {self.name}", interval=0.02)

    def listen(self, agent, jobs, is_ready):
        """In a thread: what the agent says, until its guest is gone."""
        for line in agent.makefile("rb"):
            word, *rest = line.split()
            if word == b"ready":
                is_ready.set()
            elif word == b"done":
                output = base64.b64decode(rest[2]).decode(errors="replace") if len(rest) > 2 else ""
                jobs.pop(rest[0].decode()).future.set_result((int(rest[1]), output))
        for job in list(jobs.values()):
            job.future.set_exception(GuestGone(f"{self.name} went away during {job.command!r}"))

    def ready(self):
        def attempt():
            if not self.alive():
                raise GuestGone(f"{self.name} ended while it started: see {self.logs / self.name}.console")
            return self.is_ready.wait(0.2)
        wait_until(attempt, BOOT_TIMEOUT, f"start of {self.name}", 0)

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """Power off without a word."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.agent.close()
            self.monitor.close()
            self.control.close()

    def execute(self, command, **arguments):
        """A command of QEMU's monitor protocol."""
        with self.lock:
            self.monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self.monitor.flush()
            while True:
                answer = json.loads(self.monitor.readline())
                if "error" in answer:
                    raise AssertionError(f"{self.name}: {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]

    def set_link(self, nic, up):
        self.execute("set_link", name=f"nic{nic}", up=up)

    def start(self, command):
        """Runs a shell command in the background."""
        if not self.alive():
            raise GuestGone(f"{self.name} is off")
        job = Job(self, command)
        with self.lock:
            self.last_job += 1
            number = str(self.last_job)
            self.jobs[number] = job
            text = base64.b64encode(command.encode()).decode()
            self.agent.sendall(f"run {number} {text}\n".encode())
        return job

    def run(self, command, timeout=60):
        """Runs a shell command; its output. CommandFailed where its status is not 0."""
        return self.start(command).wait(timeout)

    def status(self, command, timeout=60):
        """(status, output) of a shell command."""
        return self.start(command).result(timeout)

    def json(self, *arguments, timeout=60):
        """What fabricctl says."""
        return json.loads(self.run("fabricctl -j " + " ".join(arguments), timeout))

    # --- the daemon

    def start_fabricd(self, configuration="", environment=""):
        """`configuration`: the text of its file; none: it has no file. `environment`: NAME=VALUE..."""
        self.run(f"cat >/run/fabricd.toml <<'END'\n{configuration}\nEND")
        option = "--config /run/fabricd.toml" if configuration else ""
        # Nice as in its systemd unit.
        self.run(f"{environment} nice -n -10 fabricd {option} >&4 2>&4 & echo $! >/run/fabricd.pid")
        wait_until(self.answers, what=f"fabricd on {self.name} answers: see {self.logs / self.name}.fabricd")

    def stop_fabricd(self, signal="TERM"):
        self.run(f"""kill -{signal} $(cat /run/fabricd.pid)
                     while {self.RUNS}; do usleep 20000; done""")

    def forget(self):
        """A daemon that starts now is new to the fabric."""
        if self.fabricd_runs():
            self.stop_fabricd()
        self.run("rm -rf /var/lib/fabricd /run/fabricd")

    # Nobody collects it, so a dead one is a zombie.
    RUNS = "grep -qs '^State:.[^Z]' /proc/$(cat /run/fabricd.pid 2>/dev/null)/status"

    def fabricd_runs(self):
        return self.status(self.RUNS)[0] == 0

    def answers(self):
        return self.status("fabricctl status")[0] == 0


class Inner(Guest):
    """Another host in the kernel of a guest: namespaces and files of its own. Its daemon's log is the guest's."""

    def __init__(self, name, guest):
        self.name, self.guest, self.logs = name, guest, guest.logs
        guest.run(f"""unshare -m -n -u sh -c 'for folder in /run /tmp /var/lib; do mount -t tmpfs own $folder; done
                                              mount -t sysfs sys /sys; hostname {name}; ip link set lo up
                                              echo $$ >/{name}.pid; exec tail -f /dev/null' >/dev/null 2>&1 &
                      while ! [ -s /{name}.pid ]; do usleep 20000; done""")

    def alive(self):
        return self.guest.alive()

    def start(self, command):
        return self.guest.start(f"nsenter -t $(cat /{self.name}.pid) -m -n -u sh -c {shlex.quote(command)}")

    def end(self):
        """Its network interfaces go back to the guest."""
        self.guest.run(f"kill $(cat /{self.name}.pid); rm /{self.name}.pid")


class Ring:
    def __init__(self, hosts=3, logs=None):
        self.count = hosts
        self.logs = Path(logs or image.CACHE / "logs")
        self.guests = {}

    def __getitem__(self, name):
        return self.guests[name]

    @property
    def names(self):
        return list(self.guests)

    def __enter__(self):
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)
        # Paths of sockets must be short.
        self.directory = Path(tempfile.mkdtemp(prefix="fabric-guests-"))
        try:
            boot_files = image.build()
            for k in range(1, self.count + 1):
                before = (k - 2) % self.count + 1
                cables = [(self.end(before, "b"), self.end(before, "a")), (self.end(k, "a"), self.end(k, "b"))]
                self.guests[f"h{k}"] = Guest(f"h{k}", k, cables, boot_files, self.directory, self.logs)
            for guest in self.guests.values():
                guest.boot()
            for guest in self.guests.values():
                guest.ready()
            return self
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_):
        self.close()

    def close(self):
        for guest in self.guests.values():
            guest.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- cables. Number k joins hk's nic1 ("a") and the next host's nic0 ("b").

    def end(self, cable, side):
        return self.directory / f"cable{cable}{side}"

    def cable(self, a, b):
        """(number, host of its a end, host of its b end)"""
        first, second = int(a[1:]), int(b[1:])
        for one, other in [(first, second), (second, first)]:
            if one % self.count + 1 == other:
                return one, self[f"h{one}"], self[f"h{other}"]
        raise ValueError(f"{a} and {b} are not neighbours")

    def cut(self, a, b):
        """Both ends see their link go down."""
        _, one, other = self.cable(a, b)
        one.set_link(1, False)
        other.set_link(0, False)

    def silence(self, a, b):
        """Nothing gets through any more; both links stay up."""
        number, _, _ = self.cable(a, b)
        for side in "ab":
            path = self.end(number, side)
            if path.exists():
                path.rename(f"{path}.silent")

    def mend(self, a, b):
        number, one, other = self.cable(a, b)
        for side in "ab":
            path = Path(f"{self.end(number, side)}.silent")
            if path.exists():
                path.rename(self.end(number, side))
        for guest, nic in [(one, 1), (other, 0)]:
            if guest.alive():
                guest.set_link(nic, True)

    def neighbours(self):
        return [(f"h{k}", f"h{k % self.count + 1}") for k in range(1, self.count + 1)]

    # --- the fabric

    def address(self, name, family=4):
        number = int(name[1:])
        return f"10.88.0.{number}" if family == 4 else f"fd88:fab::{number:x}"

    def link_local(self, name, nic):
        """IPv6 link-local address of a network interface: from its MAC address (RFC 4291, appendix A)."""
        return f"fe80::5054:ff:fefa:{int(name[1:]):x}{nic:02x}"

    def unreachable(self, names=None):
        """Ordered pairs (from, address) among `names` that do not answer, in IPv4 and IPv6."""
        names = names or self.names
        jobs = {}
        for name in names:
            addresses = [self.address(other, family) for family in [4, 6] for other in names if other != name]
            jobs[name] = self[name].start(f"""for a in {' '.join(addresses)}; do
                                                ping -n -q -c 1 -W 2 $a >/dev/null 2>&1 || echo $a &
                                              done; wait""")
        return [(name, address) for name, job in jobs.items() for address in job.wait().split()]

    def wait_for_all(self, timeout=60, names=None):
        """Until every pair reaches each other in IPv4 and IPv6; the seconds it took."""
        began = time.monotonic()
        missing = [None]

        def attempt():
            missing[0] = self.unreachable(names)
            return not missing[0]

        try:
            wait_until(attempt, timeout, "all pairs reachable")
        except AssertionError as error:
            raise AssertionError(f"{error}; unreachable: {missing[0]}") from None
        return time.monotonic() - began

    def keep_state(self, what="state"):
        """What every guest says about itself, and its logs so far, in a folder beside them; returns it."""
        folder = self.logs / what
        folder.mkdir(exist_ok=True)
        commands = ["fabricctl -j port", "fabricctl -j cable", "fabricctl status", "fabricctl port",
                    "fabricctl cable", "fabricctl log", "fabricctl counters", "ip -d -s address",
                    "ip route show table all", "rdma link show", "rdma resource show qp", "rdma resource show cm_id", "ps",
                    "sh -c 'dmesg | tail -100'"]
        script = "\n".join(f"echo '== {c}'; timeout 10 {c} 2>&1" for c in commands)
        for guest in self.guests.values():
            for log in self.logs.glob(f"{guest.name}.*"):
                shutil.copy(log, folder)
            try:
                state = guest.status(script, timeout=90)[1]
            except Exception as error:  # a guest that hangs or is off has its logs
                state = f"no state: {error}\n"
            (folder / f"{guest.name}.state").write_text(state)
        return folder


def main():
    hosts = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    began = time.monotonic()
    with Ring(hosts) as ring:
        print(f"{hosts} guests ready after {time.monotonic() - began:.1f} s; logs in {ring.logs}", flush=True)
        for guest in ring.guests.values():
            guest.start_fabricd()
        for line in sys.stdin:
            word, _, rest = line.strip().partition(" ")
            try:
                if word in ring.guests:
                    status, output = ring[word].status(rest, timeout=300)
                    print(output, end="")
                    if status:
                        print(f"[status {status}]")
                elif word in ["cut", "silence", "mend"]:
                    getattr(ring, word)(*rest.split())
                elif word == "kill":
                    ring[rest].kill()
                elif word == "boot":
                    ring[rest].boot()
                    ring[rest].ready()
                elif word == "wait":
                    print(f"all pairs reachable after {ring.wait_for_all():.1f} s")
                elif word == "state":
                    print(ring.keep_state())
                elif word:
                    print("h1 COMMAND, cut, silence, mend H H, kill H, boot H, wait, state")
            except (AssertionError, ValueError, KeyError) as error:
                print(error)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
