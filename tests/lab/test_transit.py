"""The original design's scenario where it does not matter who serves the gateway: the ways, the tables, and transit
between the LAN and what is behind the hosts."""

import contextlib
import ipaddress
import json
import shutil
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

from lab import HERE, Lab, wait_until
from lan import COSTS, VIRTUAL4, VIRTUAL6, WORLD4, WORLD6, cheapest, configuration, guest, reach_everything, traffic

TRANSFER = HERE / "transfer.py"


@contextlib.contextmanager
def lab_with_lan(hosts=5, shape="ring", costs=False):
    """A lab where h1 is the gateway whatever happens: it has the virtual addresses and offers a default route by
    its configuration. No election takes part."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, hosts + 1):
            text = configuration(number, default=number == 1)
            if costs:
                name, after, before = f"h{number}", f"h{number % hosts + 1}", f"h{(number - 2) % hosts + 1}"
                text += f'[ports]\ncost = {{ "softhca0/1" = {COSTS[name, before]}, "softhca0/2" = {COSTS[name, after]} }}\n'
            Path(folder, f"h{number}.toml").write_text(text)
        lab = Lab(hosts=hosts, shape=shape, lan=True, config=folder)

        def add_addresses():  # while `up` waits for everybody to be reachable
            add = ["ip", "-n", f"{lab.name}-h1", "address", "add"]
            wait_until(lambda: subprocess.run([*add, f"{VIRTUAL4}/24", "dev", "lan0"], stderr=subprocess.DEVNULL,
                                              check=False).returncode == 0, what="h1 has the virtual address")
            subprocess.run([*add, f"{VIRTUAL6}/64", "dev", "lan0", "nodad"], check=True)

        thread = threading.Thread(target=add_addresses)
        thread.start()
        try:
            with lab:
                yield lab
        finally:
            thread.join()


class Scenario(unittest.TestCase):
    """One lab; every test leaves it as it found it."""

    @classmethod
    def setUpClass(cls):
        cls.stack = contextlib.ExitStack()
        cls.lab = cls.stack.enter_context(lab_with_lan(costs=True))

    @classmethod
    def tearDownClass(cls):
        cls.stack.close()

    def test_1_tables_follow_the_costs(self):
        """Fig. 7, 8, 11."""
        for source in self.lab.hosts:
            for target in self.lab.hosts:
                wanted = cheapest(source, target) if source != target else None
                if wanted:
                    self.assertEqual(self.lab.path(source, target), wanted)
        # Every network of every other host is in the kernel's table, and the default of the master.
        for number, host in enumerate(self.lab.hosts, 1):
            for option, mask in (("-4", 24), ("-6", 64)):
                lines = self.lab.run(host, "ip", option, "route", "show", "proto", "88").stdout.splitlines()
                networks = {line.split()[0] for line in lines}
                self.assertTrue(all("dev fab0" in line and "metric 8800" in line for line in lines), lines)
                wanted = {str(ipaddress.ip_network(f"{guest(k, int(option[1]))}/{mask}", strict=False))
                          for k in range(1, 6) if k != number}
                self.assertEqual(networks, wanted | ({"default"} if host != "h1" else set()), host)
        reach_everything(self.lab, range(1, 6))

    def test_2_icmp(self):
        """Unreachable, time exceeded, packet too big, both families."""
        def expect(text, source, *arguments):
            """Kernels limit the rate of their ICMP errors, so one may be missing."""
            wait_until(lambda: text in self.lab.run(source, "ping", "-n", "-c", "1", "-W", "2", *arguments,
                                                    check=False).stdout, what=f"{text} at {source}")

        expect("From 10.77.4.1 icmp_seq=1 Time to live exceeded", "g4", "-t", "1", WORLD4)
        expect("From 10.88.0.1 icmp_seq=1 Time to live exceeded", "g4", "-t", "2", WORLD4)
        expect("From fd88:77:0:4::1 icmp_seq=1 Time exceeded", "g4", "-t", "1", WORLD6)
        expect("From fd88:fab::1 icmp_seq=1 Time exceeded", "g4", "-t", "2", WORLD6)
        expect("Destination Host Unreachable", "upstream", "10.88.0.77")
        expect("Destination unreachable", "upstream", "fd88:fab::77")
        # The fabric takes 65520 bytes whole, the LAN 1500: the gateway says so.
        large = ("-M", "do", "-s", "9000", "-I")
        expect("From 10.88.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1500)", "h4", *large, "10.88.0.4", WORLD4)
        expect("Packet too big: mtu=1500", "h4", *large, "fd88:fab::4", WORLD6)
        expect("1 received", "h4", "-M", "do", "-s", "60000", "10.88.0.2")

    def test_3_tcp_both_ways(self):
        """Super-packets of 64 KB in the fabric, segments of 1460 bytes on the LAN; MTU 1500 at the guests."""
        for receiver, address, sender in (("upstream", WORLD4, "h4"), ("upstream", WORLD6, "g4"),
                                          ("h4", "10.88.0.4", "upstream"), ("g4", guest(4, 6), "upstream")):
            with self.lab.program(receiver, "python3", TRANSFER, "receive-files", "9000") as listening:
                json.loads(listening.stdout.readline())
                sent = json.loads(self.lab.run(sender, "python3", TRANSFER, "send-file", address, "9000",
                                               str(16 << 20), "7").stdout.splitlines()[-1])
                received = json.loads(listening.stdout.readline())
                self.assertEqual(received["sha256"], sent["sha256"], f"{sender} to {receiver}")

    def test_4_a_host_away_from_the_lan_dies(self):
        """Fig. 13. What it served is unreachable, and does not go round between gateway and upstream."""
        with traffic(self.lab, ("upstream", guest(3)), ("g5", WORLD6)) as pings:
            self.lab.kill("h4")
            wait_until(lambda: "unreachable" in self.lab.run("h1", "ip", "route", "show", "10.77.4.0/24").stdout,
                       what="h4's network is unreachable")
            self.assertIn("Destination Host Unreachable",
                          self.lab.run("upstream", "ping", "-n", "-c", "1", "-W", "5", guest(4), check=False).stdout)
            for ping in pings:
                ping.wait_for_more()
            self.lab.start("h4")
            reach_everything(self.lab, [4])
            for ping in pings:
                ping.wait_for_more()

    def test_5_routing_protocol_upstream(self):
        """BIRD on h1 tells an OSPF neighbour of the ring's routes, which it knows by their protocol number."""
        if not shutil.which("bird"):
            self.skipTest("there is no BIRD (package bird2)")
        gateway_side = """router id 192.168.88.1;
            protocol device {}
            filter of_the_ring {
              if krt_source = 88 && dest != RTD_UNREACHABLE && net != 0.0.0.0/0 then accept;
              reject;
            }
            protocol kernel { learn; ipv4 { import filter of_the_ring; export none; }; }
            protocol ospf v2 { ipv4 { import none; export all; }; area 0 { interface "lan0" { type ptp; hello 1; }; }; }"""
        upstream_side = """router id 192.168.88.254;
            protocol device {}
            protocol ospf v2 { ipv4 { import all; export none; }; area 0 { interface "lan0" { type ptp; hello 1; }; }; }"""
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            for host, text in (("h1", gateway_side), ("upstream", upstream_side)):
                Path(folder, host + ".conf").write_text(text)
                stack.enter_context(self.lab.program(
                    host, "bird", "-f", "-c", f"{folder}/{host}.conf", "-s", f"{folder}/{host}.ctl",
                    "-P", f"{folder}/{host}.pid", stderr=subprocess.DEVNULL))

            def learned():
                text = self.lab.run("upstream", "birdc", "-s", f"{folder}/upstream.ctl", "show", "route", check=False).stdout
                return {line.split()[0] for line in text.splitlines() if line.startswith("10.77.")}

            others = {f"10.77.{k}.0/24" for k in range(2, 6)}
            wait_until(lambda: learned() == others, what=f"upstream has learned {others}", timeout=30)
            self.lab.kill("h4")
            wait_until(lambda: learned() == others - {"10.77.4.0/24"}, what="upstream has forgotten h4's network", timeout=30)
            self.lab.start("h4")
            wait_until(lambda: learned() == others, what="upstream has it again", timeout=30)


class Shapes(unittest.TestCase):
    def test_chain_and_rings(self):
        """Fig. 3: `up` returns when everybody reaches everybody, guests and upstream included."""
        for hosts, shape in ((3, "ring"), (4, "chain"), (2, "chain")):
            with self.subTest(hosts=hosts, shape=shape), lab_with_lan(hosts, shape) as lab:
                critical = {host["name"] for host in lab.fabricctl("h1", "host")["hosts"] if host["critical"]}
                self.assertEqual(critical, set() if shape == "ring" else set(lab.hosts[1:-1]))

    def test_growth_under_traffic(self):
        """Fig. 14: from three hosts to five, one at a time."""
        with lab_with_lan() as lab:
            for host in ("h4", "h5"):
                lab.kill(host)
            with traffic(lab, ("upstream", guest(3)), ("g3", WORLD6), ("g2", guest(3))) as pings:
                before = [ping.lost() for ping in pings]
                for number in (4, 5):
                    lab.start(f"h{number}")
                    reach_everything(lab, [number])
                for ping in pings:
                    ping.wait_for_more()
                self.assertEqual([ping.lost() for ping in pings], before)


if __name__ == "__main__":
    unittest.main()
