"""A lab of the software HCA without daemons, for tests of other people's programs on it.

    with Lab(build, hosts=2) as lab:
        lab.run("h1", "ibstat")

Hosts are h1..hN with one HCA of two ports, cabled in a chain: hK port 2 to hK+1 port 1. No namespaces: the programs
differ in their environment only.
"""

import glob
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

BUILD = os.environ.get("FABRIC_BUILD", "build")
DEADLINE = 30.0
PAIR_DEADLINE = 90  # of two programs that measure, on a busy machine

_ports = itertools.count(18000 + os.getpid() % 4000)


def main():
    """PROGRAM [BUILD] [TEST...]"""
    global BUILD
    if len(sys.argv) > 1 and os.path.isdir(sys.argv[1]):
        BUILD = sys.argv.pop(1)
    unittest.main(verbosity=2)


def listening(port):
    with open("/proc/net/tcp", encoding="ascii") as v4, open("/proc/net/tcp6", encoding="ascii") as v6:
        return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
                   for table in (v4, v6) for line in table.readlines()[1:])


def fields(text):
    """smpquery's and perfquery's lines: NodeType:.....Channel Adapter"""
    return dict(re.findall(r"^\s*([A-Za-z0-9 ]+):\.*(.*)$", text, re.MULTILINE))


def free_port():
    return next(port for port in _ports if not listening(port))


def node_guid(host):
    return 0x0014050000000000 | host << 16


def port_guid(host, port):
    return node_guid(host) + port


def wait_for(condition, what):
    """Waits until condition() is true, and returns what it returned."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.01)
    raise AssertionError(f"not within {DEADLINE} s: {what}")


class Lab:
    def __init__(self, build=None, hosts=2, cables=None):
        self.build = os.path.abspath(build or BUILD)
        self.library = os.path.join(self.build, "libsofthca.so")
        names = [f"h{i + 1}" for i in range(hosts)]
        if cables is None:
            cables = [[f"{a}/2", f"{b}/1"] for a, b in zip(names, names[1:])]
        self.description = {
            "hosts": [{"name": name, "hcas": [{"ports": 2}]} for name in names],
            "cables": cables,
        }
        self.processes = []
        # A sanitized library wants its runtime to come first in whatever program it is loaded into.
        linked = subprocess.run(["ldd", self.library], capture_output=True, text=True, check=True).stdout
        runtime = re.findall(r"=> (\S*lib[at]san\S*)", linked)
        self.preload = " ".join(runtime + [self.library])

    def __enter__(self):
        # A test that was killed has left its own.
        for left in glob.glob(os.path.join(tempfile.gettempdir(), "softhca-*-*")):
            if not os.path.exists(f"/proc/{left.rsplit('-', 2)[1]}"):
                shutil.rmtree(left, ignore_errors=True)
        self.directory = tempfile.TemporaryDirectory(prefix=f"softhca-{os.getpid()}-")
        self.socket = os.path.join(self.directory.name, "hca")
        lab_file = os.path.join(self.directory.name, "lab.json")
        with open(lab_file, "w", encoding="utf-8") as file:
            json.dump(self.description, file)
        self.hardware = subprocess.Popen(
            [os.path.join(self.build, "softhca"), "--lab", lab_file, "--socket", self.socket],
            stdout=subprocess.PIPE, text=True)
        assert self.hardware.stdout.readline() == "softhca: ready\n"
        return self

    def __exit__(self, *_):
        for process in self.processes:
            self.stop(process)
        self.hardware.send_signal(signal.SIGTERM)
        status = self.hardware.wait(DEADLINE)
        self.hardware.stdout.close()
        left = [name for name in os.listdir(self.directory.name) if name.startswith("hca")]
        self.directory.cleanup()
        assert status == 0, f"softhca ended with {status}"
        assert left == [], f"softhca left {left}"

    def environment(self, host):
        # What a program keeps on the disk of its host, OpenSM's tables for one.
        disk = os.path.join(self.directory.name, host, "")
        os.makedirs(disk, exist_ok=True)
        # The sanitizer looks at what was sent after it is sent; OpenSM frees a MAD as soon as it is answered.
        return dict(os.environ, SOFTHCA_SOCKET=self.socket, SOFTHCA_HOST=host, LD_PRELOAD=self.preload,
                    ASAN_OPTIONS="detect_leaks=0:intercept_send=0", OSM_TMP_DIR=disk, OSM_CACHE_DIR=disk)

    def status(self, host, *command):
        """Runs a program on a host to its end; its exit status."""
        return subprocess.run(command, env=self.environment(host), stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, timeout=DEADLINE, check=False).returncode

    def attempt(self, host, *command):
        """Runs a program on a host to its end, however it ends; its standard output."""
        return subprocess.run(command, env=self.environment(host), stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, timeout=DEADLINE, check=False).stdout

    def outcome(self, host, *command, timeout=DEADLINE):
        """Runs a program on a host to its end, however it ends; its exit status, and all that it printed."""
        result = subprocess.run(command, env=self.environment(host), cwd=self.directory.name, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False)
        return result.returncode, result.stdout

    def run(self, host, *command, status=0):
        """Runs a program that must succeed, or fail where status is 1; what it printed (where it must fail, on
        standard error too)."""
        result = subprocess.run(command, env=self.environment(host), capture_output=True, text=True,
                                timeout=DEADLINE, check=False)
        text = f"{command} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}"
        assert (result.returncode == 0) == (status == 0), text
        return result.stdout if status == 0 else result.stdout + result.stderr

    def start(self, host, *command, output=subprocess.DEVNULL):
        """Starts a program on a host; it is stopped with the lab."""
        process = subprocess.Popen(command, env=self.environment(host), stdout=output, stderr=output, text=True)
        self.processes.append(process)
        return process

    @staticmethod
    def stop(process):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def control(self, op, **arguments):
        """A request to the hardware process; its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.socket + ".ctl")
            connection.sendall((json.dumps({"op": op, **arguments}) + "\n").encode())
            with connection.makefile() as lines:
                answer = json.loads(lines.readline())
        assert answer.pop("ok"), answer
        return answer

    def port(self, end):
        """What the hardware knows of a port."""
        for host in self.control("status")["hosts"]:
            for hca in host["hcas"]:
                for port in hca["ports"]:
                    if port["end"] == end:
                        return port
        raise AssertionError(f"no port {end}")

    def opensm(self, host, port, *options):
        """Starts OpenSM on a port and waits until the cable is Active at both ends."""
        end = f"h{host}/{port}"
        log = os.path.join(self.directory.name, f"opensm-{host}-{port}.log")
        process = self.start(f"h{host}", "opensm", "-g", hex(port_guid(host, port)), "-f", log, *options)
        peer = self.port(end)["peer"]
        wait_for(lambda: self.port(end)["state"] == "Active" and self.port(peer)["state"] == "Active",
                 f"opensm makes {end} Active")
        return process


class TwoHosts(unittest.TestCase):
    """h1 port 2 and h2 port 1 are cabled, and OpenSM has made the cable Active."""
    MANAGER_OPTIONS = ()

    @classmethod
    def setUpClass(cls):
        cls.lab = cls.enterClassContext(Lab())
        cls.manager = cls.lab.opensm(1, 2, *cls.MANAGER_OPTIONS)

    def pair(self, program, *options, client=(), peer="localhost", **environment):
        """Runs a program as server on h1 and as client on h2; what both printed, the client first."""
        port = free_port()
        common = [program, "-d", "softhca0", "-p", str(port), *options]
        server = subprocess.Popen([*common, "-i", "2"], env=self.lab.environment("h1") | environment,
                                  text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: server.poll() is not None or listening(port), f"{program} listens")
            result = subprocess.run([*common, "-i", "1", *client, peer],
                                    env=self.lab.environment("h2") | environment,
                                    capture_output=True, text=True, timeout=PAIR_DEADLINE, check=False)
            printed, _ = server.communicate(timeout=PAIR_DEADLINE)
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
        said = f"{common}\n--- client: {result.returncode}\n{result.stdout}{result.stderr}\n--- server: " \
               f"{server.returncode}\n{printed}"
        self.assertEqual((result.returncode, server.returncode), (0, 0), said)
        return result.stdout, printed
