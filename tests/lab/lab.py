"""Labs for tests: bring one up, run programs on its hosts, break things, and take it down.

    with Lab(hosts=5) as lab:
        lab.run("h1", "ping", "-c", "1", "h3")

Every Lab has a name of its own, so tests never meet a lab of somebody else. Programs come from $FABRIC_BUILD
(ctest sets it), the build/ of this checkout otherwise. Nothing here sleeps for a fixed time: wait_until()
polls a condition up to a deadline that only a failure meets.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FABRIC_BUILD", ROOT / "build"))
HERE = Path(__file__).resolve().parent


def wait_until(condition, timeout=20.0, what="the condition", interval=0.01):
    """Calls condition() until it is true; returns what it returned. AssertionError at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(interval)


class Lab:
    number = 0

    def __init__(self, hosts=5, shape="ring", fabricd=True, config=None, name=None, timeout=60, lan=False):
        Lab.number += 1
        self.name = name or f"t{os.getpid()}_{Lab.number}"
        self.env = dict(os.environ, FABRIC_LAB=self.name)
        self.directory = Path("/run/fabric-lab") / self.name
        self.arguments = ["--hosts", str(hosts), "--timeout", str(timeout)]
        self.shape_file = None
        if isinstance(shape, dict):
            self.shape_file = tempfile.NamedTemporaryFile("w", suffix=".json")
            json.dump(shape, self.shape_file)
            self.shape_file.flush()
            shape = self.shape_file.name
        self.arguments += ["--shape", shape]
        if config:
            self.arguments += ["--config", str(config)]
        if lan:
            self.arguments += ["--lan"]
        if not fabricd:
            self.arguments += ["--no-fabricd"]
        self.ready_ms = None
        self.hosts = []

    # --- up and down

    def up(self):
        result = json.loads(self.lab("up", "-j", *self.arguments, timeout=180).stdout)
        self.ready_ms = result["ready_ms"]
        self.hosts = result["hosts"]
        return self

    def down(self):
        self.lab("down", timeout=120)

    def __enter__(self):
        try:
            return self.up()
        except BaseException:
            self.show_logs()
            self.down()
            raise

    def __exit__(self, kind, value, traceback):
        if kind is not None:
            self.show_logs()
        self.down()

    def show_logs(self, lines=25):
        for log in sorted(self.directory.glob("**/*.log")):
            text = log.read_text(errors="replace").splitlines()
            print(f"--- {log}, last lines:", *text[-lines:], sep="\n", file=sys.stderr)

    # --- programs

    def lab(self, *arguments, check=True, timeout=60):
        """fabric-lab itself."""
        return self._finish([str(BUILD / "fabric-lab"), *map(str, arguments)], check, timeout)

    def run(self, host, *command, check=True, timeout=60, stdin=None):
        """A program on a host, to its end."""
        return self._finish(self._on(host, command), check, timeout, stdin)

    @contextlib.contextmanager
    def program(self, host, *command, **options):
        """A program on a host while the block runs; killed at its end if it still runs."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("text", True)
        process = subprocess.Popen(self._on(host, command), env=self.env, **options)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def fabricctl(self, host, *arguments, check=True):
        """What fabricctl -j prints on that host, parsed."""
        return json.loads(self.run(host, BUILD / "fabricctl", "-j", *arguments, check=check).stdout)

    def path(self, source, target):
        """The hosts on the way that traffic takes now, both ends included; [] where there is none."""
        answer = self.fabricctl(source, "path", source, target)
        for way in answer["ways"]:
            if way["chosen"] and way["whole"]:
                return [source] + [hop["to"] for hop in way["hops"]]
        return []

    def wait_for_path(self, source, *others):
        """Waits until traffic from `source` goes over exactly these hosts."""
        wanted = [source, *others]
        wait_until(lambda: self.path(source, others[-1]) == wanted, what=f"path {' '.join(wanted)}")

    def status(self):
        return json.loads(self.lab("status", "-j").stdout)

    def fabricd_pid(self, host):
        return next(entry["fabricd"] for entry in self.status()["hosts"] if entry["name"] == host)

    def address(self, host, family=4):
        number = self.hosts.index(host) + 1
        return f"10.88.0.{number}" if family == 4 else f"fd88:fab::{number:x}"

    # --- faults

    def cut(self, a, b, silent=False, one_way=False):
        self.lab("cut", a, b, *(["--silent"] if silent else []), *(["--one-way"] if one_way else []))

    def mend(self, a, b):
        self.lab("mend", a, b)

    def kill(self, host, silent=False):
        self.lab("kill", host, *(["--silent"] if silent else []))

    def start(self, host):
        self.lab("start", host)

    # --- inside

    def _on(self, host, command):
        return [str(BUILD / "fabric-lab"), "exec", host, "--", *map(str, command)]

    def _finish(self, command, check, timeout, stdin=None):
        result = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout, input=stdin)
        if check and result.returncode != 0:
            raise AssertionError(
                f"{' '.join(command)}: exit status {result.returncode}\n{result.stdout}{result.stderr}")
        return result


def leftovers(name):
    """Everything that still exists of a lab of that name: a list of sentences, empty when it is gone."""
    found = []
    if Path("/run/fabric-lab", name).exists():
        found.append(f"/run/fabric-lab/{name} is there")
    if Path("/run/netns").exists():
        found += [f"network namespace {entry.name}" for entry in Path("/run/netns").glob(f"{name}-*")]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            if any(entry.startswith(f"FABRIC_LAB_MEMBER={name}/".encode()) for entry in environment):
                found.append(f"process {process.name}: {(process / 'cmdline').read_bytes()}")
    found += [f"socket {line.split()[-1]}" for line in Path("/proc/net/unix").read_text().splitlines()
              if f"/run/fabric-lab/{name}/" in line]
    return found
