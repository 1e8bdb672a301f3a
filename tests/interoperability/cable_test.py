"""Two ends of an InfiniBand cable in two processes on the software HCA."""

import os
import re
import subprocess
import sys
import threading
import time
import unittest

from softhca_lab import Lab, wait_for

BUILD = os.environ.get("FABRIC_BUILD", "build")


class End:
    """One cable_program; its lines as they come, with the time of each."""

    incarnations = 0

    def __init__(self, lab, host, port, guid, priority=8):
        End.incarnations += 1
        self.lines = []
        self.name = host
        self.process = subprocess.Popen(
            [os.path.join(lab.build, "tests", "cable_program"), "softhca0", str(port), host, str(guid),
             str(End.incarnations), str(priority)],
            env=lab.environment(host), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def say(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def find(self, pattern, since=0):
        for when, line in self.lines[since:]:
            if re.match(pattern, line):
                return when, line
        return None

    def expect(self, pattern, since=0):
        try:
            return wait_for(lambda: self.find(pattern, since), f"{self.name}: {pattern}")
        except AssertionError as error:
            text = "\n".join(line for _, line in self.lines)
            raise AssertionError(f"{error}\n{text}") from None

    def mark(self):
        return len(self.lines)

    def status(self):
        since = self.mark()
        self.say("status")
        line = self.expect("status ", since)[1]
        return dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)

    def end(self, kill=False):
        if self.process.poll() is None:
            if kill:
                self.process.kill()
            else:
                self.say("stop")
            self.process.wait(30)
        self.reader.join(30)
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.returncode


class CableTest(unittest.TestCase):
    def setUp(self):
        self.lab = self.enterContext(Lab(BUILD))
        self.ends = []
        self.addCleanup(lambda: [end.end() for end in self.ends])

    def start(self, host, port, guid, **options):
        end = End(self.lab, host, port, guid, **options)
        self.ends.append(end)
        return end

    def pair(self):
        one, other = self.start("h1", 2, 1), self.start("h2", 1, 2)
        self.connected(one, other)
        return one, other

    def connected(self, one, other, since=(0, 0)):
        """Both are up, and a message has come through each queue pair in each direction."""
        for end, peer, mark in ((one, other, since[0]), (other, one, since[1])):
            end.expect(f"up {peer.name} 100000000000 4096", mark)
            end.expect(f"received data {peer.name}$", mark)
            end.expect(f"received control {peer.name}$", mark)
        return max(end.find("up ", mark)[0] for end, mark in zip((one, other), since))

    def marks(self, *ends):
        return tuple(end.mark() for end in ends)

    def test_comes_up(self):
        one, other = self.pair()
        mine, its = one.status(), other.status()
        self.assertEqual(mine["phase"], "connected")
        self.assertEqual(mine["prefix"], its["prefix"])
        self.assertTrue(mine["prefix"].startswith("0xfd"))
        self.assertEqual((mine["lid"], mine["peer_lid"]), (its["peer_lid"], its["lid"]))
        self.assertNotEqual(mine["lid"], its["lid"])
        wait_for(lambda: {one.status()["sm_state"], other.status()["sm_state"]} == {"master", "standby"},
                 "one master")
        self.assertEqual(self.lab.run("h1", "ibstat", "softhca0", "2").count("Active"), 1)

    def test_bring_up_takes_at_most_twelve_requests(self):
        one = self.start("h1", 2, 1)
        wait_for(lambda: one.status()["state"] == "Active", "Active")
        self.assertEqual(int(one.status()["bring_up_requests"]), 10)
        self.assertEqual(int(one.status()["smp_errors"]), 0)

    def test_cut_and_mend(self):
        one, other = self.pair()
        took = []
        for _ in range(10):
            since = self.marks(one, other)
            begin = time.monotonic()
            self.lab.control("cut", a="h1/2", b="h2/1")
            for end, mark in zip((one, other), since):
                down = end.expect("down event ", mark)
                self.assertLess(down[0] - begin, 5)
            since = self.marks(one, other)
            begin = time.monotonic()
            self.lab.control("mend", a="h1/2", b="h2/1")
            took.append(self.connected(one, other, since) - begin)
        print(f"\nmend to connection: median {sorted(took)[5] * 1000:.1f} ms, worst {max(took) * 1000:.1f} ms")
        self.assertEqual(one.status()["bring_up_requests"], "10", "the own NodeInfo is known")

    def test_silent_cut_is_seen_by_nobody_and_mends(self):
        one, other = self.pair()
        self.lab.control("cut", a="h1/2", b="h2/1", silent=True)
        since = self.marks(one, other)
        one.say("reset")
        one.expect("down heartbeat told to", since[0])
        self.assertIsNone(other.find("down", since[1]))
        self.lab.control("mend", a="h1/2", b="h2/1")
        other.expect("down peer the neighbour began anew", since[1])
        self.connected(one, other, since)

    def test_reset(self):
        one, other = self.pair()
        since = self.marks(one, other)
        one.say("reset")
        one.expect("down heartbeat told to", since[0])
        other.expect("down peer the neighbour began anew", since[1])
        self.connected(one, other, since)

    def test_goodbye(self):
        one, other = self.pair()
        since = other.mark()
        self.assertEqual(one.end(), 0)
        other.expect("down peer the neighbour says: the daemon stops", since)
        self.assertTrue(one.find("down local stopped"))
        other.expect("phase greeting No fabricd answers at the other end", since)
        again = self.start("h1", 2, 1)
        self.connected(again, other, (0, since))

    def test_kill_and_restart(self):
        one, other = self.pair()
        since = other.mark()
        one.end(kill=True)
        wait_for(lambda: other.status()["sm_state"] == "master", "takeover")
        self.assertEqual(self.lab.port("h1/2")["state"], "Active", "the cable does not care")
        self.assertIsNone(other.find("down", since))
        again = self.start("h1", 2, 1)
        other.expect("down peer the neighbour's daemon was restarted", since)
        self.connected(again, other, (0, since))
        wait_for(lambda: again.status()["sm_state"] == "master" and other.status()["sm_state"] == "standby",
                 "handover to the lower GUID")

    def test_agreed_lids(self):
        one, other = self.pair()
        since = self.marks(one, other)
        for end in (one, other):
            end.say("lids 1=2 2=4")
        self.connected(one, other, since)
        wait_for(lambda: (one.status()["lid"], other.status()["lid"]) == ("2", "4"), "LIDs")
        # Both are restarted: the LIDs stay, and nothing is interrupted to get them.
        for end in (one, other):
            end.end(kill=True)
        one, other = self.start("h1", 2, 1), self.start("h2", 1, 2)
        for end in (one, other):
            end.say("lids 1=2 2=4")
        self.connected(one, other)
        self.assertEqual((one.status()["lid"], other.status()["lid"]), ("2", "4"))
        self.assertEqual(one.status()["handshakes"], "1")

    def test_lost_and_corrupted_datagrams(self):
        for end in ("h1/2", "h2/1"):
            self.lab.control("faults", end=end, mad_corrupt_ppm=50000, loss_ppm=0)
        one, other = self.start("h1", 2, 1), self.start("h2", 1, 2)
        for _ in range(5):
            wait_for(lambda: one.status()["phase"] == other.status()["phase"] == "connected", "connected")
            self.lab.control("flap", end="h1/2")

    def test_no_fabricd_at_the_other_end(self):
        one = self.start("h1", 2, 1)
        one.expect(r'phase greeting No fabricd answers at the other end \("h2 softhca0"\)')

    def test_same_host_guid(self):
        one, other = self.start("h1", 2, 7), self.start("h2", 1, 7)
        for end in (one, other):
            end.expect("phase refused The neighbour has this host's GUID 0x0000000000000007")

    def test_nothing_plugged_in(self):
        one = self.start("h1", 1, 1)
        one.expect("phase down ")
        self.assertEqual(one.status()["state"], "Down")


class CableToOneself(unittest.TestCase):
    def test_is_refused(self):
        with Lab(BUILD, hosts=1, cables=[["h1/1", "h1/2"]]) as lab:
            ends = [End(lab, "h1", 1, 1), End(lab, "h1", 2, 1)]
            try:
                for end in ends:
                    end.expect("phase refused ")
                self.assertNotEqual(lab.port("h1/1")["lid"], lab.port("h1/2")["lid"])
            finally:
                for end in ends:
                    end.end()


if __name__ == "__main__":
    if len(sys.argv) > 1 and os.path.isdir(sys.argv[1]):
        BUILD = sys.argv.pop(1)
    unittest.main()
