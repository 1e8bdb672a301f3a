"""What goes in at one host comes out at the other, over a relay."""

import json
import os
import unittest

from lab import HERE, Lab

TRANSFER = HERE / "transfer.py"
SOAK_SECONDS = int(os.environ.get("FABRIC_SOAK_SECONDS", "30"))


class Traffic(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab(hosts=5)
        cls.lab.up()

    @classmethod
    def tearDownClass(cls):
        cls.lab.down()

    def transfer(self, receive, send, timeout=300):
        """Runs a receiver on h3 and a sender on h1; returns what both say at the end."""
        with self.lab.program("h3", "python3", TRANSFER, *receive) as receiver:
            self.assertIn("listening", receiver.stdout.readline())
            sent = json.loads(self.lab.run("h1", "python3", TRANSFER, *send, timeout=timeout).stdout)
            received = json.loads(receiver.stdout.readline())
        return sent, received

    def test_one_gibibyte_by_tcp(self):
        size = 1 << 30
        sent, received = self.transfer(["receive-files", "7000"], ["send-file", "h3", "7000", size, "11"])
        self.assertEqual(received["bytes"], size)
        self.assertEqual(received["sha256"], sent["sha256"])

    def test_datagrams_as_large_as_the_mtu(self):
        mtu = int(self.lab.run("h1", "cat", "/sys/class/net/fab0/mtu").stdout)
        self.assertEqual(mtu, 65520)
        for host, header in (("h3", 48), (self.lab.address("h3"), 28)):  # the name gives IPv6 first
            with self.subTest(host=host):
                size = mtu - header
                if host == "h3":
                    host = self.lab.address("h3", 6)
                sent, received = self.transfer(["receive-datagrams", "7001"],
                                               ["send-datagrams", host, "7001", size, "8192", "12"])
                self.assertEqual(received["datagrams"], 8192)
                self.assertEqual(received, sent)

    def test_datagrams_of_one_byte(self):
        for host in (self.lab.address("h3"), self.lab.address("h3", 6)):
            with self.subTest(host=host):
                sent, received = self.transfer(["receive-datagrams", "7002"],
                                               ["send-datagrams", host, "7002", "1", "50000", "13"])
                self.assertEqual(received["datagrams"], 50000)
                self.assertEqual(received, sent)

    def iperf3(self, *options):
        with self.lab.program("h3", "iperf3", "-s", "-1", "--forceflush") as server:
            for line in server.stdout:
                if "listening" in line:
                    break
            result = self.lab.run("h1", "iperf3", "-J", "-c", "h3", "-t", SOAK_SECONDS, *options,
                                  timeout=SOAK_SECONDS + 60, check=False)
            report = json.loads(result.stdout)
            self.assertNotIn("error", report)
            self.assertEqual(result.returncode, 0)
            server.communicate(timeout=30)
            self.assertEqual(server.returncode, 0)
        intervals = [interval["sum"]["bytes"] for interval in report["intervals"]]
        self.assertGreaterEqual(len(intervals), SOAK_SECONDS - 1)
        self.assertNotIn(0, intervals, "a second without a byte")
        return report["end"]

    def test_iperf3_tcp(self):
        end = self.iperf3()
        self.assertGreater(end["sum_received"]["bytes"], 0)

    def test_iperf3_udp(self):
        end = self.iperf3("-u", "-b", "300M")
        self.assertGreater(end["sum"]["packets"], 0)

    def test_iperf3_bidirectional(self):
        end = self.iperf3("--bidir")
        self.assertGreater(end["sum_received_bidir_reverse"]["bytes"], 0)

    def test_iperf3_eight_streams(self):
        end = self.iperf3("-P", "8")
        self.assertEqual(len(end["streams"]), 8)
        self.assertTrue(all(stream["receiver"]["bytes"] > 0 for stream in end["streams"]))


if __name__ == "__main__":
    unittest.main(verbosity=2)
