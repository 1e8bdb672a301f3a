"""Two of our gateways with a ring between them, on a LAN: takeover, LAN faults, what the kernel has afterwards."""
import unittest

from gateway_lan import *


class Pair(unittest.TestCase):
    def setUp(self):
        self.lan = Lan().__enter__()
        self.addCleanup(self.lan.__exit__)
        options = dict(ring=True, interval="50ms", preempt_delay="500ms")
        self.a = self.lan.gateway("a", 200, **options)
        self.b = self.lan.gateway("b", 100, **options)
        for gateway in (self.a, self.b):
            gateway.say("upstream 1 " + ADDRESS["client"])
        self.serving(self.a, self.b)

    def serving(self, master, backup):
        wait(lambda: all(master.state(f) == "master" and backup.state(f) == "backup" for f in (4, 6)), "they agree")
        host = "a" if master is self.a else "b"
        wait(lambda: self.lan.owner4() == host and self.lan.pings(VIP4) and self.lan.pings(VIP6), "the LAN follows")

    def transitions(self):
        return [g.instance(f)["statistics"]["master-transitions"] for g in (self.a, self.b) for f in (4, 6)]

    def port(self, host, state):
        self.lan.exec("lan", "ip", "link", "set", "to-" + host, state)

    def test_lan_cable_cut_and_mended(self):
        self.port("a", "down")
        wait(lambda: self.b.state(4) == "master", "the other serves")
        self.assertEqual(self.a.state(4), "initialize")
        self.assertFalse(self.lan.holds("a", VIP4))
        # The virtual interface follows its LAN interface.
        self.assertNotIn("UP", self.lan.exec("a", "ip", "-o", "link", "show", "fabgw4-7").stdout.split("<")[1].split(">")[0])
        self.port("a", "up")
        self.serving(self.a, self.b)  # handed back

    def test_lan_port_that_drops_everything(self):
        self.lan.exec("lan", "ip", "link", "set", "to-a", "nomaster")  # carrier up, nothing passes
        wait(lambda: self.b.state(4) == "master" and self.b.state(6) == "master", "the other serves")
        self.assertEqual(self.a.state(4), "backup")
        wait(lambda: self.a.instance(4)["fault"].startswith("LAN fault"), "the fault is told")
        self.assertTrue(self.lan.pings(VIP4))
        self.lan.exec("lan", "ip", "link", "set", "to-a", "master", "switch")
        self.serving(self.a, self.b)

    def test_ring_cut_changes_nothing(self):
        before = self.transitions()
        for gateway in (self.a, self.b):
            gateway.say("reachable 0")
        time.sleep(2)
        self.assertEqual(self.transitions(), before)
        for gateway in (self.a, self.b):
            gateway.say("reachable 1")
        time.sleep(1)
        self.assertEqual(self.transitions(), before)
        self.serving(self.a, self.b)

    def test_both_cut_then_mended(self):
        for gateway in (self.a, self.b):
            gateway.say("reachable 0")
        self.lan.exec("lan", "ip", "link", "set", "to-a", "nomaster")
        wait(lambda: self.b.state(4) == "master", "each serves what it reaches")
        self.assertEqual(self.a.state(4), "master")
        self.lan.exec("lan", "ip", "link", "set", "to-a", "master", "switch")
        wait(lambda: self.b.state(4) == "backup" and self.b.state(6) == "backup", "the worse one stops")
        self.serving(self.a, self.b)

    def test_handover_loses_nothing(self):
        flow = self.lan.start("client", "ping", "-n", "-q", "-i", "0.002", "-c", "1500", "-I", "eth0", ADDRESS["b"], kind=Program)
        self.a.say("handover")
        self.assertEqual(self.a.events.wait(lambda e: "handover" in e)["handover"], "")
        self.serving(self.b, self.a)
        time.sleep(1)
        self.assertEqual(self.b.state(4), "master")  # it is not taken back
        flow.process.wait(30)
        self.assertIn(" 0% packet loss", flow.output())

    def test_killed_and_started_again(self):
        self.a.stop(signal.SIGKILL)
        self.assertTrue(self.lan.holds("a", VIP4))  # nobody could remove it
        self.b.say("reachable 0")                   # which the ring finds in no time
        wait(lambda: self.b.state(4) == "master", "the other serves")
        self.b.say("reachable 1")
        self.a = self.lan.gateway("a", 200, ring=True, interval="50ms", preempt_delay="500ms")
        self.a.say("upstream 1 " + ADDRESS["client"])
        self.serving(self.a, self.b)

    def test_nothing_is_left(self):
        def state():
            sysctl = self.lan.exec("a", "sysctl", "net.ipv4.conf.eth0.arp_ignore", "net.ipv4.conf.eth0.arp_announce").stdout
            return sysctl, self.lan.exec("a", "ip", "-o", "link").stdout.count("fabgw")
        self.assertEqual(state()[1], 2)
        self.a.stop()
        self.assertEqual(state(), ("net.ipv4.conf.eth0.arp_ignore = 0\nnet.ipv4.conf.eth0.arp_announce = 0\n", 0))
        wait(lambda: self.b.state(4) == "master", "the other serves at once")


HOSTILE = """
import socket, struct
def checksum(b):
    s = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    while s >> 16: s = (s & 0xffff) + (s >> 16)
    return ~s & 0xffff
def packet(version=3, kind=1, vrid=7, count=1, interval=10, addresses=socket.inet_aton("192.0.2.1"), good=True, tail=b""):
    p = struct.pack("!BBBBHH", version << 4 | kind, vrid, 254, count, interval, 0) + addresses + tail
    return p[:6] + struct.pack("!H", checksum(p) ^ (0 if good else 1)) + p[8:]
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112)
def send(p, ttl=255, to="224.0.0.18"):
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("192.0.2.100"))
    s.sendto(p, (to, 0))
send(packet(), ttl=64)
send(packet(), to="192.0.2.11")
send(packet(version=4))
send(packet(kind=2))
send(packet(vrid=0))
send(packet(count=0, addresses=b""))
send(packet(count=9))
send(packet(tail=bytes(28)))
send(packet(interval=0))
send(packet(good=False))
send(packet(vrid=8))
send(packet(version=2, interval=0x0101, tail=bytes(8)))
send(packet(version=2, interval=10, tail=bytes(8)))
send(b"1")
"""


class Hostile(unittest.TestCase):
    def test_counted_by_reason_and_nothing_changes(self):
        with Lan() as lan:
            gateway = lan.gateway("a", 200, families=(4,))
            wait(lambda: gateway.state(4) == "master", "it is master")
            lan.exec("client", sys.executable, "-c", HOSTILE)
            wait(lambda: gateway.view()["discards"]["truncated"] == 2, "the last is counted")
            expected = dict.fromkeys(["hop_limit", "destination", "version", "type", "vrid_zero", "no_address", "trailing",
                                      "interval_zero", "checksum", "authentication", "vrid-errors"], 1)
            expected.update(truncated=2, source=0)
            view = gateway.view()
            self.assertEqual(view["discards"], expected)
            self.assertEqual(view["vrrp-instance"][0]["statistics"]["version-errors"], 1)  # one of version 2, in itself correct
            self.assertEqual(view["vrrp-instance"][0]["state"], "master")
            self.assertEqual(view["vrrp-instance"][0]["statistics"]["master-transitions"], 1)


class Accept(unittest.TestCase):
    def test_packets_to_the_address_itself(self):
        with Lan() as lan:
            gateway = lan.gateway("a", 200, accept=False)
            wait(lambda: gateway.state(4) == "master" and gateway.state(6) == "master", "it is master")
            self.assertFalse(lan.pings(VIP4) or lan.pings(VIP6))
            neighbours = lan.exec("client", "ip", "neigh").stdout
            self.assertIn(f"{VIP4} dev eth0 lladdr {MAC4}", neighbours)  # ARP and ND are answered
            self.assertIn(f"{VIP6} dev eth0 lladdr {MAC6}", neighbours)
            # What is sent to others by way of it passes.
            lan.exec("a", "ip", "address", "add", "203.0.113.1/32", "dev", "lo")
            lan.exec("client", "ip", "route", "add", "203.0.113.1/32", "via", VIP4)
            self.assertTrue(lan.pings("203.0.113.1"))


if __name__ == "__main__":
    unittest.main()
