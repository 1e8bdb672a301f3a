"""osmtest, OpenSM's own test of an administrator, at the other end of a cable that fabricd manages.

The default is what takes half a minute. FABRIC_OSMTEST=all runs every flow, against OpenSM too, and prints the table
that is in docs/subnet.md.
"""

import os
import subprocess
import sys
import time
import unittest

from managers import manage
from softhca_lab import Lab, port_guid

BUILD = os.environ.get("FABRIC_BUILD", "build")

FLOWS = {
    "c": "inventory", "v": "inventory is valid", "a": "all validations", "s": "services and leases",
    "m -M 1": "multicast", "m -M 2": "multicast, others there", "m -M 3": "multicast, long",
    "m -M 4": "multicast, long, others there", "q": "SL2VL and VL arbitration",
    "f -s 1": "100000 tables of one packet", "f -s 2": "4000 tables of several", "f -s 3": "20000 tables of paths",
    "f -s 4": "100000 paths",
}
QUICK = ("c", "v", "s", "m -M 1", "m -M 2", "q", "f -s 2")


def run(lab, flow):
    """Exit status, seconds, and what it printed."""
    inventory = os.path.join(lab.directory.name, "inventory")
    command = ["osmtest", "-g", hex(port_guid(2, 1)), "-i", inventory, "-m", "0xffff", "-f", *flow.split()]
    begin = time.monotonic()
    try:
        status, text = lab.outcome("h2", *command, timeout=300)
    except subprocess.TimeoutExpired:
        status, text = "timeout", ""
    return status, time.monotonic() - begin, text


class Osmtest(unittest.TestCase):
    def test_quick_flows(self):
        with Lab(BUILD) as lab:
            manage(lab, "fabricd")
            for flow in QUICK:
                with self.subTest(flow):
                    status, _, text = run(lab, flow)
                    self.assertEqual(status, 0, "\n".join(text.splitlines()[-20:]))

    @unittest.skipUnless(os.environ.get("FABRIC_OSMTEST") == "all", "FABRIC_OSMTEST=all")
    def test_all_flows_beside_opensm(self):
        outcomes = {}
        for manager in ("opensm", "fabricd"):
            with Lab(BUILD) as lab:
                manage(lab, manager)
                for flow in FLOWS:
                    outcomes[manager, flow] = run(lab, flow)
        print("\n| flow | | OpenSM | fabricd |\n|---|---|---|---|")
        for flow, what in FLOWS.items():
            cells = [f"{'passes' if status == 0 else f'fails ({status})'}, {seconds:.1f} s"
                     for status, seconds, _ in (outcomes[manager, flow] for manager in ("opensm", "fabricd"))]
            print(f"| {flow} | {what} | {cells[0]} | {cells[1]} |", flush=True)
        for flow in FLOWS:
            status, _, text = outcomes["fabricd", flow]
            self.assertEqual(status, 0, f"{flow}\n" + "\n".join(text.splitlines()[-20:]))


if __name__ == "__main__":
    if len(sys.argv) > 1 and os.path.isdir(sys.argv[1]):
        BUILD = sys.argv.pop(1)
    unittest.main()
