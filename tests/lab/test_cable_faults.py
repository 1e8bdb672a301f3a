"""fabric-lab fault, flap, reset and one-way cuts: what a user asks for is what the cable does, and status says so."""

import json
import unittest

from lab import BUILD, Lab, wait_until


class CableFaults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = cls.enterClassContext(Lab(hosts=2, shape="chain"))

    def faults(self):
        return json.loads(self.lab.lab("status", "-j").stdout)["cables"][0]["faults"]

    def round_trip(self, host="h2"):
        """The shortest of some, in milliseconds."""
        text = self.lab.run("h1", "ping", "-c", "5", "-i", "0.05", host).stdout
        return float(text.rsplit("=", 1)[1].split("/")[0])

    def test_delay(self):
        self.lab.lab("fault", "h1", "h2", "--delay", "5ms")
        self.assertEqual(self.faults(), "from h1/2: delay 5000 us; from h2/1: delay 5000 us")
        self.assertIn("delay 5000 us", self.lab.lab("status").stdout)
        wait_until(lambda: self.round_trip() >= 10, what="5 ms each way")
        self.lab.lab("fault", "h1", "h2")
        self.assertEqual(self.faults(), "")
        wait_until(lambda: self.round_trip() < 10, what="the cable is sound again")

    def test_one_end(self):
        self.lab.lab("fault", "h2/1", "--loss", "0.5%", "--corrupt", "20ppm", "--rate", "10Gb")
        self.assertEqual(self.faults(), "from h2/1: rate 10000 Mb/s, loss 0.5%, corruption 0.002%")
        self.lab.run("h1", "ping", "-c", "1", "h2")
        self.lab.lab("fault", "h2/1")

    def test_one_way(self):
        self.lab.lab("cut", "h2", "h1", "--one-way")
        self.assertEqual(self.faults(), "nothing from h2/1")
        self.lab.lab("mend", "h1", "h2")
        self.assertEqual(self.faults(), "")
        wait_until(lambda: self.lab.run("h1", "ping", "-c", "1", "-W", "1", "h2", check=False).returncode == 0,
                   what="the way back is there again")

    def test_flap_and_reset(self):
        for command in ("flap", "h1", "h2", "--for", "20ms"), ("reset", "h2"):
            self.lab.lab(*command)
            wait_until(lambda: self.lab.run("h1", "ping", "-c", "1", "-W", "1", "h2", check=False).returncode == 0,
                       what=f"{command}: fabricd makes the cable Active again")

    def test_slow_link(self):
        """As a bad plug leaves it: it works, on one lane of four, and fabricctl says so."""
        def retrain(width):
            for command in ("width", width), ("reset",):
                self.lab.run("h1", "ibportstate", "-P", "2", "-D", "0", "2", *command)

        def text(command):
            return self.lab.run("h1", BUILD / "fabricctl", command).stdout

        slow = "port 2: the link runs at 1x 25 Gbit/s, and both ends can 4x 25 Gbit/s"
        retrain("1")
        wait_until(lambda: slow in text("cable"), what="the slow link is named")
        self.assertIn(slow.removeprefix("port 2: "), text("log"))
        doctor = self.lab.fabricctl("h1", "doctor", check=False)
        self.assertIn("cable-slow", [finding["check"] for finding in doctor["findings"]], doctor)
        retrain("3")
        wait_until(lambda: "connected" in (cables := text("cable")) and slow not in cables,
                   what="the link is as fast as it can be")

    def test_what_is_refused(self):
        for arguments in ("h1", "h2", "--delay", "5"), ("h1", "h2", "--loss", "120%"), ("h1/7",), ("h1", "h3"):
            result = self.lab.lab("fault", *arguments, check=False)
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertIn("fabric-lab: ", result.stderr)


if __name__ == "__main__":
    unittest.main()
