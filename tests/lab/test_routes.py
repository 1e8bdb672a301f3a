"""Which way traffic goes: both at once, round a drained host, round two faults at a time, past a daemon that hangs."""

import itertools
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import unittest
from pathlib import Path

from lab import HERE, Lab, wait_until
from test_bring_up import ping_every_pair
from test_cabling import hosts
from test_faults import SEED, Ping

FLOWS = HERE / "flows.py"
ROUNDS = int(os.environ.get("FABRIC_ROUNDS", "12"))
RING = [(f"h{k}", f"h{k % 5 + 1}") for k in range(1, 6)]


def hardware(lab, **request):
    """The hardware's own control socket: what fabric-lab has no command for."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(lab.directory / "softhca.sock.ctl"))
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(connection.makefile().readline())
    assert answer["ok"], answer
    return answer


def events(lab, host, kind):
    return [event for event in lab.fabricctl(host, "log", "-n", "1000")["events"] if event["kind"] == kind]


def figure(lab, host, name):
    return lab.fabricctl(host, "counters")["host"][name]


class BothWays(unittest.TestCase):
    def flows(self, lab):
        """Sixteen flows of numbered datagrams from h1 to h3; frames that h1 has sent by each port meanwhile."""
        def sent():
            return [port["data"]["sent_frames"] for port in lab.fabricctl("h1", "counters")["ports"]]

        with lab.program("h3", "python3", FLOWS, "receive", "7400") as receiver:
            self.assertIn("listening", receiver.stdout.readline())
            before = sent()
            lab.run("h1", "python3", FLOWS, "send", "h3", "7400", "16", "500")
            result = json.loads(receiver.stdout.readline())
        self.assertEqual(result, {"flows": 16, "received": 16 * 500, "out_of_order": 0})
        return [now - then for now, then in zip(sent(), before)]

    def test_flows_between_opposite_hosts_take_both_ways(self):
        with Lab(hosts=4) as lab:
            # Reachable is sooner: a host that has just started is gone round.
            wait_until(lambda: [way["chosen"] for way in lab.fabricctl("h1", "path", "h3")["ways"]] == [True, True],
                       what="h1 sends to h3 both ways")
            self.assertIn("spread", lab.fabricctl("h1", "path", "h3")["why"])
            by_port = self.flows(lab)
            print(f"by port {by_port}", file=sys.stderr)
            # 14 lanes, 16 flows: a port without a quarter of the flows is chance of less than one in a hundred;
            # without any, of one in thirty thousand.
            self.assertGreater(min(by_port), 500)

    def test_without_multipath_they_take_one(self):
        with tempfile.TemporaryDirectory() as config:
            Path(config, "fabricd.toml").write_text("[routing]\nmultipath = false\n")
            with Lab(hosts=4, config=config) as lab:
                wait_until(lambda: "multipath is off" in lab.fabricctl("h1", "path", "h3")["why"],
                           what="h1 has both ways to h3")
                self.assertLess(min(self.flows(lab)), 100)


class GrowAndShrink(unittest.TestCase):
    def test_drained_host_leaves_and_nothing_is_lost(self):
        with Lab(hosts=5) as lab:
            lab.wait_for_path("h1", "h2", "h3")
            ping = Ping(lab, "h1", "h3")
            self.addCleanup(ping.process.kill)
            ping.wait_for_more()
            self.assertEqual(lab.fabricctl("h2", "drain")["idle"], True)
            lab.wait_for_path("h1", "h5", "h4", "h3")
            self.assertIn("h2, which is drained", lab.fabricctl("h1", "path", "h3")["why"])
            lab.run("h1", "ping", "-c", "1", "-W", "5", "h2")  # it can be reached itself
            lab.kill("h2")
            ping.wait_for_more()
            lab.start("h2")
            wait_until(lambda: lab.run("h2", "fabricctl", "-j", "status", check=False).returncode == 0,
                       what="fabricd on h2")
            wait_until(lambda: any(host["name"] == "h2" and host["reachable"] and host["drained"]
                                   for host in lab.fabricctl("h1", "host")["hosts"]), what="h2, drained as before")
            lab.fabricctl("h2", "undrain")
            lab.wait_for_path("h1", "h2", "h3")
            ping.wait_for_more()
            sent, lost = ping.stop()
            self.assertEqual(lost, 0, f"of {sent}")

    def test_host_joins_between_two_others_and_leaves(self):
        """h6 is put between h5 and h1: their cable is pulled out, and two cables come. Then all is put back."""
        chain = {"hosts": hosts(2, 2, 2, 2, 2, 2), "cables": [[f"h{k}/2", f"h{k + 1}/1"] for k in range(1, 6)]}
        with Lab(shape=chain) as lab:
            hardware(lab, op="plug", a="h5/2", b="h1/1")
            lab.wait_for_path("h1", "h5")
            pings = [Ping(lab, *pair) for pair in (("h1", "h3"), ("h4", "h2"))]
            for ping in pings:
                self.addCleanup(ping.process.kill)
                ping.wait_for_more()
            for _ in range(3):
                hardware(lab, op="plug", a="h5/2", b="h6/1")
                hardware(lab, op="plug", a="h6/2", b="h1/1")
                lab.wait_for_path("h1", "h6", "h5")
                lab.run("h6", "ping", "-c", "1", "-W", "5", "h3")
                hardware(lab, op="plug", a="h5/2", b="h1/1")
                lab.wait_for_path("h1", "h5")
                for ping in pings:
                    ping.wait_for_more()
            for ping in pings:
                sent, lost = ping.stop()
                self.assertEqual(lost, 0, f"of {sent}")


class Cablings(unittest.TestCase):
    def survives(self, description, cuts):
        """Every pair reaches each other, also without each of these cables; nobody else is cut off."""
        with Lab(shape=description) as lab:
            ping_every_pair(self, lab)
            self.assertEqual(lab.fabricctl("h1", "status")["single_points_of_failure"], [])
            for a, b in cuts:
                with self.subTest(cut=(a, b)):
                    def ways(ends=(a, b)):
                        return [lab.path(host, end) for host in lab.hosts for end in ends if host != end]
                    before = ways()
                    lab.cut(a, b)
                    ping_every_pair(self, lab)
                    lab.mend(a, b)
                    # Good news is not hurried; a cable cut before it is known everywhere is a second fault.
                    wait_until(lambda before=before, ways=ways: ways() == before, what="all ways are as before the cut")

    def test_ladder(self):
        self.survives({"hosts": hosts(2, 3, 3, 2, 2, 3, 3, 2),
                       "cables": [["h1/1", "h2/1"], ["h2/2", "h3/1"], ["h3/2", "h4/1"],
                                  ["h5/1", "h6/1"], ["h6/2", "h7/1"], ["h7/2", "h8/1"],
                                  ["h1/2", "h5/2"], ["h2/3", "h6/3"], ["h3/3", "h7/3"], ["h4/2", "h8/2"]]},
                      [("h2", "h3"), ("h1", "h5")])

    def test_full_mesh_of_four_ports(self):
        used = dict.fromkeys(range(1, 6), 0)

        def end(host):
            used[host] += 1
            return f"h{host}/{used[host]}"

        cables = [[end(a), end(b)] for a, b in itertools.combinations(range(1, 6), 2)]
        self.survives({"hosts": hosts(4, 4, 4, 4, 4), "cables": cables}, [("h1", "h2"), ("h3", "h5")])

    def test_two_rings_that_share_a_host(self):
        """h3 is in both: whatever else fails, all go on; that h3 is the one they depend on is said."""
        with Lab(shape={"hosts": hosts(2, 2, 4, 2, 2),
                        "cables": [["h1/1", "h2/1"], ["h2/2", "h3/1"], ["h3/2", "h1/2"],
                                   ["h3/3", "h4/1"], ["h4/2", "h5/1"], ["h5/2", "h3/4"]]}) as lab:
            ping_every_pair(self, lab)
            points = lab.fabricctl("h1", "status")["single_points_of_failure"]
            self.assertEqual(points, ["without h3: h1, h2 | h4, h5"])
            critical = [host["name"] for host in lab.fabricctl("h5", "host")["hosts"] if host["critical"]]
            self.assertEqual(critical, ["h3"])
            doctor = lab.fabricctl("h1", "doctor", check=False)
            self.assertFalse(doctor["well"])
            self.assertEqual([finding["check"] for finding in doctor["findings"]], ["single-point-of-failure"])
            for a, b in (("h1", "h3"), ("h4", "h5")):
                lab.cut(a, b)
                ping_every_pair(self, lab)
                lab.mend(a, b)


class Doctor(unittest.TestCase):
    def test_ring_is_well_and_what_is_broken_is_named(self):
        with Lab(hosts=5) as lab:
            wait_until(lambda: lab.run("h1", "fabricctl", "doctor", check=False).returncode == 0,
                       what="nothing wrong")
            lab.cut("h3", "h4")
            wait_until(lambda: any(finding["check"] == "cable-down" and "h3 port 2 - h4 port 1" in finding["text"]
                                   for finding in lab.fabricctl("h1", "doctor", check=False)["findings"]),
                       what="the cut between two others")
            result = lab.run("h3", "fabricctl", "doctor", check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("the cable of port 2", result.stdout)
            self.assertIn("without h4", result.stdout)


class TwoAtATime(unittest.TestCase):
    """Two cuts at once, a cut during a mend, a cut while a host restarts: by seed."""

    def setUp(self):
        self.lab = Lab(hosts=5)
        self.lab.up()
        self.addCleanup(self.lab.down)
        self.cut, self.off = set(), set()

    def connected(self, source):
        found, queue = {source}, [source]
        for host in queue:
            for a, b in RING:
                for near, far in ((a, b), (b, a)):
                    if near == host and far not in found | self.off and (a, b) not in self.cut:
                        found.add(far)
                        queue.append(far)
        return found

    def whole(self, path):
        """Whether this path is there: one that goes over a cable whose silent cut nobody has noticed yet is not."""
        return path != [] and all(far not in self.off and not {(near, far), (far, near)} & self.cut
                                  for near, far in itertools.pairwise(path))

    def check(self):
        """What is connected answers, as soon as the ways avoid what is broken; to what is not, the kernel has its
        "unreachable" at once. Before, there may be an instant without any way: a second cable dies before the
        first is in use again."""
        lab = self.lab
        alive = [host for host in lab.hosts if host not in self.off]
        for source in alive:
            connected = self.connected(source)

            def known(source=source, connected=connected):
                answer = lab.run(source, "fabricctl", "-j", "host", check=False)
                if answer.returncode != 0:
                    return False
                reachable = {host["name"] for host in json.loads(answer.stdout)["hosts"] if host["reachable"]}
                return reachable == connected and all(self.whole(lab.path(source, target))
                                                      for target in connected - {source})

            wait_until(known, what=f"{source} knows its ways to {sorted(connected)}")
        for source, target in itertools.permutations(alive, 2):
            if target in self.connected(source):
                lab.run(source, "ping", "-c", "1", "-W", "10", target)
            else:
                # -W is far beyond what "at once" takes; with an answer ping ends at once.
                result = lab.run(source, "ping", "-n", "-c", "1", "-W", "20", target, check=False)
                self.assertEqual(result.returncode, 1)
                self.assertRegex(result.stdout, "(?i)unreachable", f"{source} to {target}")
                took = re.search(r"time (\d+)ms", result.stdout)
                self.assertEqual(took[1], "0", result.stdout)

    def break_cable(self, cable, chance):
        self.cut.add(cable)
        self.lab.cut(*cable, silent=chance.random() < 0.4)

    def test_by_seed(self):
        print(f"seed {SEED} (FABRIC_SEED repeats it), {ROUNDS} rounds", file=sys.stderr)
        chance, lab = random.Random(SEED), self.lab
        scenarios = ["two cuts at once", "a cut during a mend", "a cut while a host restarts"]
        for number in range(ROUNDS):
            scenario = scenarios[number % 3]
            first, second = chance.sample(RING, 2)
            with self.subTest(number=number, scenario=scenario, first=first, second=second):
                try:
                    self.two_faults(scenario, first, second, chance)
                    self.check()
                finally:  # whole for the next round, also after a failure
                    for cable in list(self.cut):
                        lab.mend(*cable)
                    self.cut.clear()
                self.check()

    def two_faults(self, scenario, first, second, chance):
        lab, threads = self.lab, []
        self.break_cable(first, chance)
        if scenario == "a cut during a mend":
            lab.wait_for_path(first[0], *self.way_round(first))
            threads.append(threading.Thread(target=lab.mend, args=first))
            self.cut.discard(first)
        elif scenario == "a cut while a host restarts":
            host = chance.choice([name for name in lab.hosts if name not in first])
            lab.kill(host, silent=chance.random() < 0.4)
            threads.append(threading.Thread(target=lab.start, args=(host,)))
        threads.append(threading.Thread(target=self.break_cable, args=(second, chance)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def way_round(self, cable):
        a, b = (int(name[1:]) for name in cable)
        hosts_round = []
        while a != b:
            a = (a - 2) % 5 + 1
            hosts_round.append(f"h{a}")
        return hosts_round


class HungDaemon(unittest.TestCase):
    """h2's daemon is stopped: its adapters go on acknowledging, and nothing comes out of it."""

    def stopped(self, lab):
        pid = lab.fabricd_pid("h2")
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(lambda: os.path.exists(f"/proc/{pid}") and os.kill(pid, signal.SIGCONT))
        return pid

    def test_pause_is_not_a_death(self):
        with tempfile.TemporaryDirectory() as config:
            Path(config, "fabricd.toml").write_text('[timers]\ndead = "30s"\n')
            with Lab(hosts=5, config=config) as lab:
                lab.wait_for_path("h1", "h2", "h3")
                before = [len(events(lab, host, "cable-down")) for host in ("h1", "h3")]
                ping = Ping(lab, "h1", "h3")
                self.addCleanup(ping.process.kill)
                ping.wait_for_more()
                heartbeats = self.heartbeats(lab, "h1")
                pid = self.stopped(lab)
                # For as long as h1 takes to have probed the cable some hundred times: about 2 s.
                wait_until(lambda: self.heartbeats(lab, "h1") > heartbeats + 90, what="heartbeats to a stopped daemon")
                os.kill(pid, signal.SIGCONT)
                ping.wait_for_more()
                sent, lost = ping.stop()
                self.assertEqual([len(events(lab, host, "cable-down")) for host in ("h1", "h3")], before)
                self.assertEqual(lost, 0, f"of {sent}: what was on its way has waited")

    def heartbeats(self, lab, host):
        return sum(port["control"]["heartbeats"] for port in lab.fabricctl(host, "counters")["ports"]
                   if port["port"] == 2)

    def test_hung_daemon_is_gone_round_after_the_dead_interval(self):
        with Lab(hosts=5) as lab:
            lab.wait_for_path("h1", "h2", "h3")
            ping = Ping(lab, "h1", "h3")
            self.addCleanup(ping.process.kill)
            ping.wait_for_more()
            pid = self.stopped(lab)
            lab.wait_for_path("h1", "h5", "h4", "h3")
            ping.wait_for_more()
            self.assertIn("was silent for 1000 ms", events(lab, "h1", "cable-down")[-1]["text"])
            os.kill(pid, signal.SIGCONT)
            lab.wait_for_path("h1", "h2", "h3")
            ping.wait_for_more()
            sent, lost = ping.stop()
            print(f"daemon hung: {lost} of {sent} lost", file=sys.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
