"""A neighbour that sends nonsense costs at most its own cable: h1 - h2 - h3, where h3's daemon is replaced by a program
that sends what no honest neighbour does, as fast as it can, while h1 and h2 go on with each other."""

import os
import signal
import unittest
from pathlib import Path

from lab import BUILD, Lab, wait_until

SECONDS = float(os.environ.get("FABRIC_SOAK_SECONDS", 1.5))  # of each kind
KINDS = ["malformed", "wrong-class", "oversized", "replayed", "impostor", "joins", "flood"]
GROWTH = 64 << 20  # of the attacked daemon's memory, bytes


def resident(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"process {pid} is gone")


class HostileNeighbour(unittest.TestCase):
    def setUp(self):
        self.lab = self.enterContext(Lab(hosts=3, shape="chain"))

    def cable(self, host, neighbour):
        for cable in self.lab.fabricctl(host, "cable")["cables"]:
            if cable["neighbour"] and cable["neighbour"]["name"] == neighbour:
                return cable
        raise AssertionError(f"{host} has no cable to {neighbour}")

    def test_costs_its_own_cable_only(self):
        attacked = self.lab.fabricd_pid("h2")
        # Whichever end was first is the subnet manager, until the one with the lower GUID is up.
        wait_until(lambda: self.cable("h2", "h1")["facts"]["sm"] == "other end", what="h1 manages its cable to h2")
        before = self.cable("h2", "h1")["counters"]
        os.kill(self.lab.fabricd_pid("h3"), signal.SIGKILL)
        wait_until(lambda: self.lab.path("h1", "h3") == [], what="h3 is missed")
        memory = resident(attacked)
        for kind in KINDS:
            with self.subTest(kind):
                self.go_on_beside(kind)
                self.assertEqual(self.lab.fabricd_pid("h2"), attacked, "the same daemon")
                self.assertLess(resident(attacked) - memory, GROWTH)
        after = self.cable("h2", "h1")["counters"]
        for counter in ("connections_lost", "smp_errors", "elections", "handovers", "resets"):
            self.assertEqual(after[counter], before[counter], counter)
        # With an honest daemon at its end that cable is as good as before.
        self.lab.kill("h3")
        self.lab.start("h3")
        self.lab.wait_for_path("h1", "h2", "h3")
        self.lab.run("h1", "ping", "-c", "1", "-W", "10", "h3")

    def go_on_beside(self, kind):
        echoes = max(1, int(SECONDS / 0.002))
        with self.lab.program("h3", BUILD / "tests" / "hostile_neighbour", "softhca0", "1", kind, SECONDS) as hostile:
            pings = self.lab.fabricctl("h1", "ping", "h2", "-i", "0.002", "-c", str(echoes))
            self.assertEqual(self.lab.path("h1", "h2"), ["h1", "h2"])
            self.assertGreater(len(self.lab.fabricctl("h2", "cable")["cables"]), 1, "h2 answers")
            sent = int(hostile.communicate(timeout=SECONDS + 60)[0])
        print(f"{kind}: {sent / SECONDS:.0f} datagrams a second; h1 to h2 {pings['latency']}", flush=True)
        self.assertEqual(hostile.returncode, 0)
        self.assertGreater(sent, 100)
        self.assertEqual(pings["lost"], 0)


if __name__ == "__main__":
    unittest.main()
