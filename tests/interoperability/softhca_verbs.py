"""Stock programs of ibverbs-utils on the software HCA, the conformance checks, and sudden deaths."""

import os
import random
import re
import signal
import subprocess
import sys
import time
import unittest

import softhca_lab
from softhca_lab import PAIR_DEADLINE, TwoHosts, free_port, listening, wait_for


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
        result = subprocess.run(["ibv_devices"], env=environment, capture_output=True, text=True, timeout=PAIR_DEADLINE,
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


class Conformance(TwoHosts):
    def conformance(self, *options):
        command = [os.path.join(softhca_lab.BUILD, "tests", "verbs_conformance"), "--host-b", "h2", *options, "softhca0/2",
                   "softhca0/1"]
        result = subprocess.run(command, env=self.lab.environment("h1"), capture_output=True, text=True,
                                timeout=PAIR_DEADLINE, check=False)
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

    def test_stress(self):
        """Many threads of one process; under a sanitizer, what it finds ends the program with an error."""
        text = self.lab.run("h2", os.path.join(softhca_lab.BUILD, "tests", "verbs_stress"), "softhca0/1")
        self.assertIn("20000 messages each way", text)

    def test_failures(self):
        """Every failure case, over a cable from one port of the adapter to the other, and within one port."""
        with softhca_lab.Lab(hosts=1, cables=[["h1/1", "h1/2"]]) as lab:
            lab.opensm(1, 2)
            for ports in ("softhca0/1", "softhca0/2"), ("softhca0/2", "softhca0/2"):
                text = lab.run("h1", os.path.join(softhca_lab.BUILD, "tests", "verbs_failures"), *ports)
                self.assertGreaterEqual(len(re.findall(r"^ok ", text, re.MULTILINE)), 49, text)


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
            port = free_port()
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
    softhca_lab.main()
