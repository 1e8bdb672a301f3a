"""Our gateway on one LAN with keepalived and with FRR's vrrpd: each side as master and as backup, preemption,
priority 0 at the end, different intervals; versions 2 and 3, IPv4 and IPv6; what tcpdump says of the packets."""
import unittest

from gateway_lan import *


def other(lan, kind, host, *arguments, **options):
    if kind == "vrrpd" and "interval" in options:
        options["interval"] = int(options["interval"] * 1000)
    return getattr(lan, kind)(host, *arguments, **options)


def owns(lan, host, family):
    """The client reaches the virtual address, and the LAN has learnt its MAC address from this host."""
    return lan.port_of(MAC4 if family == 4 else MAC6) == host and lan.pings(VIP4 if family == 4 else VIP6)


class Together:
    """What must hold with either program, version and family."""
    kind, version, families = "", 3, (4,)

    def setUp(self):
        self.lan = Lan().__enter__()
        self.addCleanup(self.lan.__exit__)
        self.capture = self.lan.capture()

    def seconds(self):
        return 1 if self.version == 2 else 0.5

    def ours(self, priority, **options):
        return self.lan.gateway("a", priority, version=self.version, interval="1s" if self.version == 2 else "500ms",
                                families=self.families, **options)

    def theirs(self, priority, **options):
        options.setdefault("interval", self.seconds())
        return other(self.lan, self.kind, "b", priority, version=self.version, families=self.families, **options)

    def their_reign(self, priority, **options):
        """They have become master; FRR's interface has the addresses before."""
        program = self.theirs(priority, **options)
        self.capture.lines.wait(lambda line: "prio %d," % priority in line)
        self.all_own("b")
        return program

    def all_own(self, host):
        wait(lambda: all(owns(self.lan, host, family) for family in self.families), host + " serves")

    def states(self, gateway, state):
        wait(lambda: all(gateway.state(family) == state for family in self.families), "it is " + state)

    def stay(self, gateway, state, seconds=1):
        """They are of one mind for a while."""
        before = [gateway.instance(family)["statistics"]["master-transitions"] for family in self.families]
        time.sleep(seconds)
        self.assertEqual([gateway.state(family) for family in self.families], [state] * len(self.families))
        self.assertEqual([gateway.instance(f)["statistics"]["master-transitions"] for f in self.families], before)

    def correct(self):
        """tcpdump finds nothing wrong, and both have spoken."""
        text = self.capture.text()
        self.assertNotRegex(text, "bad vrrp cksum|wrong|bad cksum|incorrect|invalid")
        word = "VRRPv%d" % self.version
        for host in ("a", "b"):
            self.assertIn(ADDRESS[host] + " > 224.0.0.18: " + word if 4 in self.families else "> ff02::12:", text)
        return text

    def test_master_then_backup_with_preemption(self):
        ours = self.ours(200)
        self.states(ours, "master")
        self.all_own("a")
        theirs = self.theirs(100)
        self.stay(ours, "master", 3 * self.seconds() + 1)  # they are backup
        ours.stop()                                        # with priority 0: they need the skew only
        begin = time.monotonic()
        self.all_own("b")
        self.assertRegex(self.capture.text(), "prio 0")
        self.assertLess(time.monotonic() - begin, 3 * self.seconds() + 2)
        ours = self.ours(200)                              # we preempt
        self.states(ours, "master")
        self.all_own("a")
        self.assertGreater(ours.instance(self.families[0])["statistics"]["advertisement-rcvd"], 0)
        self.assertEqual(sum(ours.view()["discards"].values()), 0)
        theirs.stop()
        self.stay(ours, "master")
        self.correct()

    def test_backup_then_master(self):
        theirs = self.their_reign(200)
        ours = self.ours(100)
        self.states(ours, "backup")
        self.stay(ours, "backup", 3 * self.seconds() + 1)
        theirs.stop()  # with priority 0
        self.all_own("a")
        wait(lambda: ours.instance(self.families[0])["statistics"]["priority-zero-pkts-rcvd"] > 0, "priority 0")
        self.correct()

    def test_killed_master(self):
        self.their_reign(200)
        ours = self.ours(100)
        self.stay(ours, "backup", 3 * self.seconds() + 0.5)
        self.lan.exec("lan", "ip", "link", "set", "to-b", "down")  # nothing is said any more
        self.all_own("a")
        self.lan.exec("lan", "ip", "link", "set", "to-b", "up")
        self.states(ours, "backup")
        self.all_own("b")


class Keepalived3(Together, unittest.TestCase):
    kind = "keepalived"

    def test_learns_their_interval(self):
        self.their_reign(200, interval=0.8)
        ours = self.ours(100)
        wait(lambda: ours.instance(4)["master-interval-centi-sec"] == 80, "the interval is learnt")
        self.stay(ours, "backup", 3)

    def test_their_backup_learns_ours(self):
        self.theirs(100, interval=1)
        ours = self.lan.gateway("a", 200, interval="50ms", families=(4,))
        self.states(ours, "master")
        self.stay(ours, "master", 2)

    def test_without_preemption(self):
        self.their_reign(100)
        ours = self.ours(200, preempt=False)
        self.stay(ours, "backup", 1)

    def test_message_checksum_is_rejected_and_auto_follows(self):
        # keepalived takes the pseudo-header only; with "message" both would serve, so "auto" matters.
        self.their_reign(100)
        ours = self.ours(200, checksum="auto")
        self.states(ours, "master")
        self.assertEqual(ours.view()["checksum"], "pseudo")
        self.all_own("a")


class Keepalived2(Together, unittest.TestCase):
    kind, version = "keepalived", 2


class Keepalived6(Together, unittest.TestCase):
    kind, families = "keepalived", (6,)


class Vrrpd3(Together, unittest.TestCase):
    kind = "vrrpd"


class Vrrpd2(Together, unittest.TestCase):
    kind, version = "vrrpd", 2


class Vrrpd6(Together, unittest.TestCase):
    kind, families = "vrrpd", (6,)


if __name__ == "__main__":
    unittest.main()
