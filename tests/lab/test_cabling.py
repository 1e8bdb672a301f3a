"""Odd cabling: whatever people plug in, what can work does, and the rest is said."""

import unittest

from lab import Lab
from test_bring_up import ping_every_pair


def hosts(*ports):
    """One adapter a host."""
    return [{"name": f"h{k}", "hcas": [{"ports": count}]} for k, count in enumerate(ports, 1)]


class Cabling(unittest.TestCase):
    def check(self, description):
        with Lab(shape=description) as lab:
            ping_every_pair(self, lab)
            yield lab

    def run_check(self, description):
        for _ in self.check(description):
            pass

    def test_any_port_order(self):
        self.run_check({"hosts": hosts(2, 2, 2, 2),
                        "cables": [["h1/1", "h2/1"], ["h2/2", "h3/2"], ["h3/1", "h4/1"], ["h4/2", "h1/2"]]})

    def test_two_cables_between_one_pair(self):
        self.run_check({"hosts": hosts(2, 2), "cables": [["h1/1", "h2/1"], ["h1/2", "h2/2"]]})

    def test_second_pair_of_cables_inside_a_chain(self):
        self.run_check({"hosts": hosts(2, 3, 2),
                        "cables": [["h1/1", "h2/1"], ["h1/2", "h2/2"], ["h2/3", "h3/1"]]})

    def test_cable_to_oneself(self):
        # h3's loose end goes back into h3: the other two cables make a chain, and fabricctl names the culprit.
        description = {"hosts": hosts(2, 2, 3),
                       "cables": [["h1/2", "h2/1"], ["h2/2", "h3/1"], ["h3/2", "h3/3"]]}
        for lab in self.check(description):
            cables = lab.fabricctl("h3", "cable")["cables"]
            self.assertEqual([cable["phase"] for cable in cables], ["connected", "refused", "refused"])
            self.assertIn("this host", cables[1]["reason"])

    def test_chord(self):
        self.run_check({"hosts": hosts(3, 2, 3, 2),
                        "cables": [["h1/2", "h2/1"], ["h2/2", "h3/1"], ["h3/2", "h4/1"], ["h4/2", "h1/1"],
                                   ["h1/3", "h3/3"]]})

    def test_two_adapters(self):
        two = [{"name": f"h{k}", "hcas": [{"ports": 1}, {"ports": 1}]} for k in (1, 2, 3)]
        self.run_check({"hosts": two, "cables": [["h1/1/1", "h2/0/1"], ["h2/1/1", "h3/0/1"], ["h3/1/1", "h1/0/1"]]})


class BadFiles(unittest.TestCase):
    def refused(self, description):
        lab = Lab(shape=description)
        result = lab.lab("up", *lab.arguments, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertFalse(lab.directory.exists())
        return result.stderr

    def test_port_that_is_not_there(self):
        self.assertIn("h2/3", self.refused({"hosts": hosts(2, 2), "cables": [["h1/2", "h2/3"]]}))

    def test_port_used_twice(self):
        self.assertIn("h1/1", self.refused({"hosts": hosts(2, 2), "cables": [["h1/1", "h2/1"], ["h1/1", "h2/2"]]}))

    def test_name_that_is_a_path(self):
        self.refused({"hosts": [{"name": "..", "hcas": [{"ports": 2}]}], "cables": []})


if __name__ == "__main__":
    unittest.main(verbosity=2)
