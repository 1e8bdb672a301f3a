"""Stock programs of ibverbs-utils and perftest on the software HCA, and the conformance checks."""

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
import unittest

from softhca_lab import Lab, wait_for

BUILD = os.environ.get("FABRIC_BUILD", "build")
DEADLINE = 90

_ports = itertools.count(18000 + os.getpid() % 4000)


def listening(port):
    with open("/proc/net/tcp", encoding="ascii") as v4, open("/proc/net/tcp6", encoding="ascii") as v6:
        return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
                   for table in (v4, v6) for line in table.readlines()[1:])


class TwoHosts(unittest.TestCase):
    """h1 port 2 and h2 port 1 are cabled, and OpenSM has made the cable Active."""

    @classmethod
    def setUpClass(cls):
        cls.lab = cls.enterClassContext(Lab(BUILD))
        cls.manager = cls.lab.opensm(1, 2)

    def pair(self, program, *options, client=(), peer="localhost"):
        """Runs a program as server on h1 and as client on h2; what both printed."""
        port = next(p for p in _ports if not listening(p))
        common = [program, "-d", "softhca0", "-p", str(port), *options]
        server = subprocess.Popen([*common, "-i", "2"], env=self.lab.environment("h1"), text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: server.poll() is not None or listening(port), f"{program} listens")
            result = subprocess.run([*common, "-i", "1", *client, peer], env=self.lab.environment("h2"),
                                    capture_output=True, text=True, timeout=DEADLINE, check=False)
            printed, _ = server.communicate(timeout=DEADLINE)
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
        said = f"{common}\n--- client: {result.returncode}\n{result.stdout}{result.stderr}\n--- server: " \
               f"{server.returncode}\n{printed}"
        self.assertEqual((result.returncode, server.returncode), (0, 0), said)
        return result.stdout, printed


class Devices(TwoHosts):
    def test_ibv_devices(self):
        self.assertRegex(self.lab.run("h2", "ibv_devices"), r"softhca0\s+0014050000020000\n")

    def test_ibv_devinfo(self):
        text = self.lab.run("h1", "ibv_devinfo", "-v")
        active = text.split("port:\t2")[1]
        for line in ("state:\t\t\tPORT_ACTIVE (4)", "active_mtu:\t\t4096 (5)", "link_layer:\t\tInfiniBand",
                     "phys_state:\t\tLINK_UP (5)", "active_width:\t\t4X (2)"):
            self.assertIn(line, active)
        self.assertRegex(active, r"GID\[  0\]:\t\tfe80:0000:0000:0000:0014:0500:0001:0002")
        self.assertIn("PORT_DOWN (1)", text.split("port:\t2")[0])
        self.assertIn("transport:\t\t\tInfiniBand (0)", text)

    def test_nothing_without_a_lab(self):
        environment = self.lab.environment("h1")
        del environment["SOFTHCA_SOCKET"]
        result = subprocess.run(["ibv_devices"], env=environment, capture_output=True, text=True, timeout=DEADLINE,
                                check=False)
        self.assertNotIn("softhca0", result.stdout)

    def test_asyncwatch(self):
        watch = subprocess.Popen(["ibv_asyncwatch", "-d", "softhca0"], env=self.lab.environment("h2"), text=True,
                                 stdout=subprocess.PIPE, bufsize=1)
        try:
            self.assertRegex(watch.stdout.readline(), r"softhca0: async event FD")
            self.lab.control("cut", a="h1", b="h2")
            self.assertRegex(watch.stdout.readline(), r"event_type IBV_EVENT_PORT_ERR \(10\), port 1")
            self.lab.control("mend", a="h1", b="h2")
            self.manager.send_signal(signal.SIGHUP)
            for line in watch.stdout:
                if re.search(r"event_type IBV_EVENT_PORT_ACTIVE \(9\), port 1", line):
                    break
            wait_for(lambda: self.lab.port("h1/2")["state"] == "Active", "OpenSM configures the cable again")
        finally:
            watch.kill()
            watch.wait()
            watch.stdout.close()


class Pingpong(TwoHosts):
    def check(self, program, *options, size=4096, count=1000):
        for text in self.pair(program, "-n", str(count), "-s", str(size), *options):
            self.assertRegex(text, rf"{size * count * 2} bytes in ")
            self.assertRegex(text, rf"{count} iters in ")

    def test_rc(self):
        self.check("ibv_rc_pingpong", "-c")

    def test_rc_events(self):
        self.check("ibv_rc_pingpong", "-c", "-e")

    def test_rc_timestamps(self):
        self.check("ibv_rc_pingpong", "-t")

    def test_rc_global(self):
        self.check("ibv_rc_pingpong", "-g", "0", size=65536)

    def test_uc(self):
        self.check("ibv_uc_pingpong")

    def test_uc_events(self):
        self.check("ibv_uc_pingpong", "-e")

    def test_ud(self):
        self.check("ibv_ud_pingpong", size=2048)

    def test_ud_events(self):
        self.check("ibv_ud_pingpong", "-e", size=2048)

    def test_srq(self):
        for options in ((), ("-e",)):
            for text in self.pair("ibv_srq_pingpong", *options):
                self.assertRegex(text, r"8192000 bytes in ")


BW_LINE = r"^ (\d+) +(\d+) +(\d+\.\d+) +(\d+\.\d+)\s+(\d+\.\d+)\s*$"
LAT_LINE = r"^ (\d+) +(\d+) +(\d+\.\d+) +(\d+\.\d+) +(\d+\.\d+)"
ALL_SIZES = [2 ** n for n in range(1, 24)]


class Perftest(TwoHosts):
    def bandwidth(self, program, *options, sizes=(65536,)):
        text, _ = self.pair(program, "-F", *options)
        rows = re.findall(BW_LINE, text, re.MULTILINE)
        self.assertEqual([int(row[0]) for row in rows], list(sizes), text)
        for row in rows:
            self.assertGreater(float(row[4]), 0, text)

    def latency(self, program, *options, sizes=(2,)):
        text, _ = self.pair(program, "-F", *options)
        rows = re.findall(LAT_LINE, text, re.MULTILINE)
        self.assertEqual([int(row[0]) for row in rows], list(sizes), text)
        for row in rows:
            self.assertGreater(float(row[2]), 0, text)

    def duration(self, program, *options):
        text, _ = self.pair(program, "-F", "-D", "2", *options)
        rows = re.findall(r"^ (\d+) +(\d+) +", text, re.MULTILINE)
        self.assertEqual(len(rows), 1, text)
        self.assertGreater(int(rows[0][1]), 0, text)


def add(program, name, *options, **expected):
    """A test of one program with one set of options."""
    kind = "duration" if "-D" in options else "bandwidth" if program.endswith("_bw") else "latency"
    if kind == "duration":
        options = tuple(o for o in options if o != "-D")

    def test(self):
        getattr(self, kind)(program, *options, **expected)
    setattr(Perftest, f"test_{program}_{name}", test)


for _program in ("ib_send_bw", "ib_write_bw", "ib_read_bw"):
    add(_program, "plain", "-n", "500")
    add(_program, "bidirectional", "-n", "500", "-b")
    add(_program, "8_queue_pairs", "-n", "100", "-q", "8")
    if _program != "ib_write_bw":  # nothing completes at its server
        add(_program, "events", "-n", "500", "-e")
    add(_program, "all_sizes", "-n", "20", "-a", sizes=ALL_SIZES)
    add(_program, "duration", "-D")
    add(_program, "post_lists", "-n", "512", "-l", "16", "-s", "64", sizes=(64,))
for _program in ("ib_send_lat", "ib_write_lat", "ib_read_lat"):
    add(_program, "plain", "-n", "200")
    add(_program, "all_sizes", "-n", "20", "-a", sizes=ALL_SIZES)
    add(_program, "duration", "-D")
for _program in ("ib_send_lat", "ib_read_lat"):
    add(_program, "events", "-n", "200", "-e")
for _program in ("ib_send_bw", "ib_send_lat"):
    _small = (2048,)
    add(_program, "uc", "-n", "500", "-c", "UC", "-s", "2048", sizes=_small)
    add(_program, "ud", "-n", "500", "-c", "UD", "-s", "2048", sizes=_small)
    add(_program, "shared_receive_queue", "-n", "500", "--use-srq", "-s", "2048", sizes=_small)
    add(_program, "multicast", "-n", "500", "-c", "UD", "-g", "-s", "1024", sizes=(1024,))
    add(_program, "inline", "-n", "500", "-I", "64", "-s", "32", sizes=(32,))
for _program in ("ib_write_bw", "ib_write_lat"):
    add(_program, "uc", "-n", "500", "-c", "UC", "-s", "2048", sizes=(2048,))
    add(_program, "inline", "-n", "500", "-I", "64", "-s", "32", sizes=(32,))
for _kind in ("FETCH_AND_ADD", "CMP_AND_SWAP"):
    add("ib_atomic_bw", _kind.lower(), "-n", "500", "-A", _kind, sizes=(8,))
    add("ib_atomic_lat", _kind.lower(), "-n", "500", "-A", _kind, sizes=(8,))


class Conformance(TwoHosts):
    def conformance(self, *options):
        command = [os.path.join(BUILD, "tests", "verbs_conformance"), "--host-b", "h2", *options, "softhca0/2",
                   "softhca0/1"]
        result = subprocess.run(command, env=self.lab.environment("h1"), capture_output=True, text=True,
                                timeout=DEADLINE, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout

    def test_checks(self):
        text = self.conformance()
        self.assertGreaterEqual(len(re.findall(r"^ok ", text, re.MULTILINE)), 27, text)

    def test_cut_cables(self):
        """Ten seeds: messages are lost, or delivered and not acknowledged; mended in time, nothing is lost."""
        control = os.path.join(os.path.dirname(os.path.abspath(__file__)), "softhca_control.py")
        command = f"LD_PRELOAD= {sys.executable} {control} {self.lab.socket}"
        unacknowledged = 0
        for seed in range(10):
            text = self.conformance("--only", "cable", "--seed", str(seed), "--cut", f"{command} cut h1/2 h2/1",
                                    "--mend", f"{command} mend h1/2 h2/1 {self.manager.pid}")
            posted, delivered, acknowledged = map(int, re.search(
                r"(\d+) posted, (\d+) delivered, (\d+) acknowledged", text).groups())
            self.assertLess(delivered, posted)
            unacknowledged += delivered - acknowledged
        self.assertGreater(unacknowledged, 0)


class Killed(TwoHosts):
    """Processes die at random moments of their traffic; everybody else goes on."""

    ROUNDS = int(os.environ.get("SOFTHCA_KILL_ROUNDS", "200"))
    SEED = int(os.environ.get("SOFTHCA_SEED", "1"))

    def clients(self):
        return sum(len(host["clients"]) for host in self.lab.control("status")["hosts"])

    def test_random_kills(self):
        chance = random.Random(self.SEED)
        print(f"seed {self.SEED}", flush=True)
        others = self.clients()
        for turn in range(self.ROUNDS):
            port = next(p for p in _ports if not listening(p))
            program = chance.choice((["ibv_rc_pingpong", "-n", "100000000"], ["ibv_srq_pingpong", "-n", "100000000"],
                                     ["ibv_rc_pingpong", "-e", "-n", "100000000"],
                                     ["ib_write_bw", "-F", "-D", "60"], ["ib_send_bw", "-F", "-D", "60"]))
            command = [program[0], "-d", "softhca0", "-p", str(port), *program[1:]]
            server = self.lab.start("h1", *command, "-i", "2")
            wait_for(lambda: listening(port), "the server listens")
            client = self.lab.start("h2", *command, "-i", "1", "localhost")
            wait_for(lambda: self.clients() == others + 2, "both have opened the adapter")
            time.sleep(chance.uniform(0, 0.03))  # the moment of death, not a wait for something
            for process in chance.sample((server, client), 2):
                process.kill()
                time.sleep(chance.uniform(0, 0.002))
            server.wait()
            client.wait()
            self.lab.processes.remove(server)
            self.lab.processes.remove(client)
            wait_for(lambda: self.clients() == others, "the hardware notices")
            if turn % 20 == 19:
                self.assertRegex(self.pair("ibv_rc_pingpong", "-c", "-n", "200")[0], "200 iters in")
        # What the dead had is given back: the memory of the lab is what few processes need.
        blocks = sum(os.stat(f"/proc/{self.lab.hardware.pid}/fd/{name}").st_blocks
                     for name in os.listdir(f"/proc/{self.lab.hardware.pid}/fd")
                     if "memfd" in os.readlink(f"/proc/{self.lab.hardware.pid}/fd/{name}"))
        self.assertLess(blocks * 512, 16 << 20)


if __name__ == "__main__":
    if len(sys.argv) > 1 and os.path.isdir(sys.argv[1]):
        BUILD = sys.argv.pop(1)
    unittest.main(verbosity=2)
