"""Nothing is given up because the machine is busy: no cable, no gateway. FABRIC_SOAK_SECONDS=600 is the real one."""

import os
import subprocess
import sys
import time
import unittest

from lab import Lab, wait_until
from test_faults import Ping

SECONDS = float(os.environ.get("FABRIC_SOAK_SECONDS", "5"))
GATEWAYS = ("h1", "h2")


class BusyMachine(unittest.TestCase):
    def test_no_false_failover(self):
        with Lab(hosts=5, lan=True) as lab:
            lab.wait_for_path("h1", "h2", "h3")
            wait_until(lambda: self.masters(lab) == [["master", "master"], ["backup", "backup"]],
                       what="h1 serves the gateway, h2 is its backup")
            ping = Ping(lab, "h1", "h3")
            self.addCleanup(ping.process.kill)
            ping.wait_for_more()
            before = self.failovers(lab)
            load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
            try:
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:  # the length is the point, nothing is waited for
                    ping.wait_for_more(1)
            finally:
                for process in load:
                    process.kill()
                    process.wait()
            self.assertEqual(self.failovers(lab), before)
            sent, lost = ping.stop()
            self.assertEqual(lost, 0, f"of {sent}")

    def routers(self, lab, host):
        return lab.fabricctl(host, "gateway")["gateway"]["vrrp-instance"]

    def masters(self, lab):
        return [[router["state"] for router in self.routers(lab, host)] for host in GATEWAYS]

    def failovers(self, lab):
        """How often each cable has come up, and each gateway become master."""
        cables = {host: [cable["times_up"] for cable in lab.fabricctl(host, "cable")["cables"]] for host in lab.hosts}
        gateways = {host: [router["statistics"]["master-transitions"] for router in self.routers(lab, host)]
                    for host in GATEWAYS}
        return cables, gateways


if __name__ == "__main__":
    unittest.main(verbosity=2)
