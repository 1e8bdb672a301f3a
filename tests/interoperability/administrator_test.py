"""Clients of the subnet administrator at the other end of a cable: what Linux's IPoIB and rdma_cm ask, paths between
sets of ports, and events. The same programs run against OpenSM, which shows that they ask for what is usual."""

import os
import subprocess
import sys
import unittest

from managers import MANAGERS, manage
from softhca_lab import DEADLINE, Lab

BUILD = os.environ.get("FABRIC_BUILD", "build")
PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sa_programs.py")


class Administrator(unittest.TestCase):
    def program(self, lab, name, manager):
        """Starts it on h2."""
        process = subprocess.Popen([sys.executable, PROGRAMS, name, manager], env=lab.environment("h2"), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lab.processes.append(process)
        return process

    def finish(self, process):
        """Waits for its end, which must be a good one; the rest of what it printed."""
        text, _ = process.communicate(timeout=DEADLINE)
        self.assertEqual(process.returncode, 0, text)
        return text

    def expect(self, process, start):
        line = process.stdout.readline()
        if not line.startswith(start):
            self.fail(f"expected {start}: {line}{process.communicate(timeout=DEADLINE)[0]}")
        return line

    def with_both(self, check):
        for manager in MANAGERS:
            with self.subTest(manager), Lab(BUILD) as lab:
                manage(lab, manager)
                check(manager, lab)

    def test_ipoib(self):
        def check(manager, lab):
            text = self.finish(self.program(lab, "ipoib", manager))
            # OpenSM: 2048 bytes, 10 Gbit/s. fabricd: what the cable can do.
            self.assertIn("broadcast mtu=4 rate=3" if manager == "opensm" else "broadcast mtu=5 rate=16", text)

        self.with_both(check)

    def test_rdma_cm(self):
        self.with_both(lambda manager, lab: self.finish(self.program(lab, "rdma_cm", manager)))

    def test_multi_path(self):
        self.with_both(lambda manager, lab: self.finish(self.program(lab, "multi_path", manager)))

    def test_events(self):
        def check(manager, lab):
            lid = lab.port("h2/1")["lid"]
            process = self.program(lab, "events", manager)
            self.expect(process, "subscribed")
            lab.control("describe", host="h2", hca=0, text="another name")
            self.assertIn("0014050000020001", self.expect(process, f"144 lid={lid} "))
            if manager == "fabricd":
                lab.control("trap", end="h2/1", number=129)
                self.assertIn("0014050000020001", self.expect(process, f"129 lid={lid} "))
            self.expect(process, "unsubscribed")
            lab.control("describe", host="h2", hca=0, text="a third name")
            process.stdin.write("\n")
            self.finish(process)

        self.with_both(check)

    def test_unconfirmed_reports_come_again(self):
        with Lab(BUILD) as lab:
            manage(lab, "fabricd")
            process = self.program(lab, "unconfirmed", "fabricd")
            self.expect(process, "subscribed")
            lab.control("describe", host="h2", hca=0, text="another name")
            self.expect(process, "four")
            self.finish(process)


if __name__ == "__main__":
    if len(sys.argv) > 1 and os.path.isdir(sys.argv[1]):
        BUILD = sys.argv.pop(1)
    unittest.main()
