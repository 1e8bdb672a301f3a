"""Two subnet managers on one cable: fabricd's at one end, the stock OpenSM at the other.

Who is master is decided by priority, then by the lower port GUID, whoever came first; the other one waits, and takes
over when the master dies. All the while the ports stay Active.
"""

import concurrent.futures
import os
import re
import sys
import threading
import time
import unittest

from cable_test import End
from softhca_lab import Lab, port_guid, wait_for

BUILD = os.environ.get("FABRIC_BUILD", "build")

# A standby looks after its master every 200 ms and gives up after three polls; by default after 50 s.
OPENSM_OPTIONS = """
sweep_interval 1
sminfo_polling_timeout 200
polling_retry_number 3
"""


class Fabricd:
    name = "fabricd"

    def __init__(self, lab, host, port, priority):
        self.lab, self.host, self.port, self.priority = lab, host, port, priority
        self.end = None

    def start(self):
        self.end = End(self.lab, self.host, self.port, int(self.host[1:]), priority=self.priority)

    def state(self):
        return self.end.status().get("sm_state")

    def kill(self):
        self.end.end(kill=True)

    def stop(self):
        if self.end is not None:
            self.end.end()


class OpenSm:
    name = "opensm"

    def __init__(self, lab, host, port, priority):
        self.lab, self.host, self.port, self.priority = lab, host, port, priority
        self.process = None

    def start(self):
        options = os.path.join(self.lab.directory.name, f"opensm-{self.host}.conf")
        with open(options, "w", encoding="utf-8") as file:
            file.write(OPENSM_OPTIONS)
        self.process = self.lab.start(
            self.host, "opensm", "-F", options, "-g", hex(port_guid(int(self.host[1:]), self.port)), "-p",
            str(self.priority), "-f", os.path.join(self.lab.directory.name, f"opensm-{self.host}.log"))

    def state(self):
        """As it says itself."""
        said = self.lab.attempt(self.host, "sminfo", "-C", "softhca0", "-P", str(self.port), "-D", "0")
        found = re.search(r"state \d SMINFO_(\w+)", said)
        return {"MASTER": "master", "STANDBY": "standby"}.get(found[1] if found else None)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process is not None:
            self.lab.stop(self.process)


class Watch:
    """Whether a cable, once Active, ever stops to be."""

    def __init__(self, lab):
        self.lab, self.left, self.ended = lab, [], threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        active = False
        while not self.ended.wait(0.005):
            states = [self.lab.port(end)["state"] for end in ("h1/2", "h2/1")]
            if states == ["Active"] * 2:
                active = True
            elif active:
                self.left.append(states)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def settled(lab, master, standby=None):
    """`master` is the cable's master, says itself, says the other one, and say both ports."""
    ports = {host: lab.port(f"{host}/{port}") for host, port in (("h1", 2), ("h2", 1))}
    lid = ports[master.host]["lid"]
    return (all(port["state"] == "Active" and port["sm_lid"] == lid for port in ports.values())
            and ports["h1"]["lid"] != ports["h2"]["lid"] and master.state() == "master"
            and (standby is None or standby.state() == "standby"))


def life_of_a_pair(fabricd_on, priorities, winner, first):
    """Everything that two managers can go through; what they took for it, for people."""
    took = {}
    with Lab(BUILD) as lab:
        ends = {"h1": 2, "h2": 1}
        opensm_on = "h2" if fabricd_on == "h1" else "h1"
        managers = {"fabricd": Fabricd(lab, fabricd_on, ends[fabricd_on], priorities[0]),
                    "opensm": OpenSm(lab, opensm_on, ends[opensm_on], priorities[1])}
        one, other = managers[first], managers["opensm" if first == "fabricd" else "fabricd"]
        winner = managers[winner]
        loser = managers["opensm" if winner.name == "fabricd" else "fabricd"]

        def reach(what, master, standby=None):
            begin = time.monotonic()
            wait_for(lambda: settled(lab, master, standby), f"{what}: master {master.name}")
            took[what] = time.monotonic() - begin

        try:
            with Watch(lab) as watch:
                one.start()
                reach("bring-up", one)
                other.start()
                reach("second manager", winner, loser)
                winner.kill()
                reach("takeover", loser)
                winner.start()
                reach("return", winner, loser)
                loser.kill()
                reach("standby's death", winner)
                loser.start()
                reach("standby's return", winner, loser)
            assert watch.left == [], f"the cable was not Active: {watch.left}"
        finally:
            for manager in managers.values():
                manager.stop()
    return took


class TwoManagers(unittest.TestCase):
    CASES = [  # fabricd is on, priorities of fabricd and OpenSM, who is to win
        ("h1", (9, 8), "fabricd"),
        ("h1", (8, 9), "opensm"),
        ("h1", (8, 8), "fabricd"),  # h1 has the lower GUID
        ("h2", (8, 8), "opensm"),
        ("h2", (15, 0), "fabricd"),
        ("h2", (0, 15), "opensm"),
    ]

    def test_election_handover_death_and_return(self):
        cases = [(*case, first) for case in self.CASES for first in ("fabricd", "opensm")]
        # They mostly wait for OpenSM's timers.
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            lives = {pool.submit(life_of_a_pair, *case): case for case in cases}
            for life in concurrent.futures.as_completed(lives):
                case = lives[life]
                with self.subTest(case):
                    took = life.result()
                    print(case, " ".join(f"{what} {seconds:.2f} s," for what, seconds in took.items()), flush=True)


class Neighbours(unittest.TestCase):
    """fabricd at both ends, and OpenSM, which somebody has started on one of the hosts."""

    def test_connection_over_a_cable_of_other_managers(self):
        with Lab(BUILD) as lab:
            opensm = OpenSm(lab, "h2", 1, 15)
            opensm.start()
            wait_for(lambda: lab.port("h2/1")["state"] == "Active", "OpenSM brings the cable up")
            one = End(lab, "h1", 2, 1)
            other = End(lab, "h2", 1, 2)  # finds the port taken: does not manage it, but is a neighbour
            try:
                one.expect("up h2 ")
                other.expect("up h1 ")
                wait_for(lambda: one.status()["sm_state"] == "standby", "standby")
                # OpenSM's LIDs are no blocks of two, so the connection is given up for others, once.
                marks = one.mark(), other.mark()
                opensm.kill()
                one.expect("up h2 ", marks[0])
                other.expect("up h1 ", marks[1])
                self.assertEqual(one.status()["sm_state"], "master")
                # Those are good for OpenSM too.
                marks = one.mark(), other.mark()
                opensm.start()
                wait_for(lambda: settled(lab, opensm) and one.status()["sm_state"] == "standby", "return")
                for end, mark in zip((one, other), marks):
                    self.assertIsNone(end.find("down ", mark), end.lines)
            finally:
                one.end()
                other.end()


if __name__ == "__main__":
    if len(sys.argv) > 1 and os.path.isdir(sys.argv[1]):
        BUILD = sys.argv.pop(1)
    unittest.main()
