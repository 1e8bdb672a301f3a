"""Adapters are taken out, put in and fail while fabricd runs: traffic goes round, and comes back by itself."""

import os
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

from lab import BUILD, Lab, wait_until
from test_bring_up import ping_every_pair
from test_faults import Ping
from test_routes import events


def two_adapters(*with_two):
    """Five hosts in a ring; those named have an adapter of one port each way instead of one with two."""
    names = [f"h{k}" for k in range(1, 6)]

    def end(host, port):
        return f"{host}/{port - 1}/1" if host in with_two else f"{host}/{port}"

    return {"hosts": [{"name": name, "hcas": [{"ports": 1}, {"ports": 1}] if name in with_two else [{"ports": 2}]}
                      for name in names],
            "cables": [[end(a, 2), end(b, 1)] for a, b in zip(names, names[1:] + names[:1])]}


class HotPlug(unittest.TestCase):
    def up(self, **options):
        lab = Lab(**options)
        lab.up()
        self.addCleanup(lab.down)
        return lab

    def ping(self, lab, source, target):
        ping = Ping(lab, source, target)
        self.addCleanup(ping.process.kill)
        ping.wait_for_more()
        return ping

    def stop(self, ping):
        ping.wait_for_more()
        sent, lost = ping.stop()
        print(f"{self.id()}: {lost} of {sent} lost", file=sys.stderr)
        return lost

    def cable(self, lab, host, number):
        return next(cable for cable in lab.fabricctl(host, "cable")["cables"] if cable["port"] == number)

    def test_one_of_two_adapters_goes_and_comes(self):
        """h2 loses the adapter towards h3: it is reached the other way round, and nothing is lost."""
        lab = self.up(shape=two_adapters("h2"))
        daemon = lab.fabricd_pid("h2")
        for target, straight in (("h3", ["h2", "h3"]), ("h2", ["h2"])):
            with self.subTest(target=target):
                lab.wait_for_path("h1", *straight)
                ping = self.ping(lab, "h1", target)
                lab.lab("remove", "h2", "--adapter", "1")
                wait_until(lambda: lab.path("h2", "h3") == ["h2", "h1", "h5", "h4", "h3"], what="h2 goes round")
                ping.wait_for_more()
                self.assertIn("softhca1", events(lab, "h2", "adapter-gone")[-1]["text"])
                self.assertIn("taken out", self.cable(lab, "h2", 2)["reason"])
                doctor = lab.run("h2", "fabricctl", "doctor", check=False)
                self.assertEqual(doctor.returncode, 1)
                self.assertIn("softhca1/1: The adapter", doctor.stdout)
                lab.lab("insert", "h2", "--adapter", "1")
                wait_until(lambda: lab.path("h2", "h3") == ["h2", "h3"], what="h2 uses its cable to h3 again")
                self.assertEqual(self.stop(ping), 0)
                self.assertEqual(self.cable(lab, "h2", 2)["phase"], "connected", "it has its number again")
        self.assertEqual(lab.fabricd_pid("h2"), daemon)
        self.assertNotIn("The adapter", lab.run("h2", "fabricctl", "doctor", check=False).stdout)

    def test_only_adapter_goes_and_comes(self):
        """The others go round the host; it is back, with its address, as soon as the adapter is."""
        lab = self.up()
        daemon = lab.fabricd_pid("h2")
        lab.wait_for_path("h1", "h2", "h3")
        ping = self.ping(lab, "h1", "h3")
        lab.lab("remove", "h2")
        lab.wait_for_path("h1", "h5", "h4", "h3")
        wait_until(lambda: all("taken out" in cable["reason"] for cable in lab.fabricctl("h2", "cable")["cables"]),
                   what="h2 says that its ports are gone")
        ping.wait_for_more()
        lab.lab("insert", "h2")
        lab.wait_for_path("h1", "h2", "h3")
        ping_every_pair(self, lab)
        # What h2 had acknowledged and not passed on when it went is lost with it.
        self.assertLessEqual(self.stop(ping), 5)
        self.assertEqual(lab.fabricd_pid("h2"), daemon)

    def test_adapter_fails_again_and_again(self):
        lab = self.up(hosts=3)
        for _ in range(5):
            lab.lab("reset", "h2")
            wait_until(lambda: lab.path("h2", "h1") == ["h2", "h1"] and lab.path("h2", "h3") == ["h2", "h3"],
                       what="both cables of h2 are in use")
        ping_every_pair(self, lab)
        self.assertEqual(len(events(lab, "h2", "adapter-gone")), 5)

    def test_adapter_that_comes_after_the_start(self):
        lab = self.up(shape=two_adapters("h2"))
        lab.kill("h2")
        lab.lab("remove", "h2", "--adapter", "1")
        lab.start("h2")
        wait_until(lambda: lab.run("h2", "fabricctl", "path", "h3", check=False).returncode == 0, what="h2's daemon")
        wait_until(lambda: lab.path("h2", "h3") == ["h2", "h1", "h5", "h4", "h3"], what="a chain")
        lab.lab("insert", "h2", "--adapter", "1")
        wait_until(lambda: lab.path("h2", "h3") == ["h2", "h3"], what="the ring is closed")
        ping_every_pair(self, lab)
        self.assertEqual(events(lab, "h2", "adapter-here")[-1]["text"], "adapter softhca1 is there")

    def test_adapter_dies_without_a_word(self):
        """As under a driver that crashes: no event, but every call fails. The daemons answer, and use no processor."""
        lab = self.up(hosts=2)
        daemon = lab.fabricd_pid("h1")
        os.kill(int((lab.directory / "softhca.pid").read_text().split()[0]), signal.SIGKILL)

        def control(command):  # fabric-lab needs the hardware
            return subprocess.run(["ip", "netns", "exec", f"{lab.name}-h1", BUILD / "fabricctl", "-s",
                                   lab.directory / "h1" / "fabricd.sock", command], capture_output=True, text=True)

        wait_until(lambda: "softhca0 has failed" in control("log").stdout, what="the adapter's end is noticed")

        def used():  # in clock ticks, a hundredth of a second each
            return sum(map(int, Path(f"/proc/{daemon}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))

        begin = used()
        time.sleep(1)
        self.assertLess(used() - begin, 30)

    def test_tools_see_what_is_there(self):
        lab = self.up(shape=two_adapters("h2"), fabricd=False)
        lab.lab("remove", "h2", "--adapter", "0")
        for command in ("ibv_devices",), ("ibstat", "-l"), ("ls", "/sys/class/infiniband"):
            output = lab.run("h2", *command).stdout
            self.assertNotIn("softhca0", output)
            self.assertIn("softhca1", output)
        self.assertNotEqual(lab.run("h2", "ibv_devinfo", "-d", "softhca0", check=False).returncode, 0)
        lab.lab("insert", "h2", "--adapter", "0")
        self.assertIn("softhca0", lab.run("h2", "ibv_devices").stdout)
        result = lab.lab("remove", "h2", "--adapter", "7", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("no such HCA", result.stderr)


if __name__ == "__main__":
    unittest.main()
