"""Every cable is a subnet of its own: another prefix for each, one base LID for each host, and both stay. ibv_devinfo
says what they are."""

import re
import unittest

from lab import Lab, wait_until

PROVISIONAL = 0xB000  # LIDs from here on are those of cables whose hosts do not know each other yet


class Subnets(unittest.TestCase):
    def ports(self, host):
        """(LID, LID of the subnet manager, prefix) of each port, in order."""
        text = self.lab.run(host, "ibv_devinfo", "-v").stdout
        return [(int(port["lid"]), int(port["sm"]), port["prefix"]) for port in re.finditer(
            r"sm_lid:\s+(?P<sm>\d+)\s+port_lid:\s+(?P<lid>\d+)(?s:.*?)GID\[\s*0\]:\s+(?P<prefix>(?:\w+:){4})", text)]

    def layout(self):
        """(LID, prefix) of every port, once the hosts agree on LIDs and both ends of a cable on its manager: the host
        with the lower GUID, which may have to take it over."""
        ports = {host: self.ports(host) for host in self.lab.hosts}
        hosts = self.lab.hosts
        for host, after in zip(hosts, hosts[1:] + hosts[:1]):
            manager = ports[min(host, after)][0][0]
            if not manager < PROVISIONAL or (ports[host][1][1], ports[after][0][1]) != (manager, manager):
                return None
        return {host: [(lid, prefix) for lid, _, prefix in of_host] for host, of_host in ports.items()}

    def test_each_cable_and_after_a_restart(self):
        with Lab(hosts=4) as self.lab:
            wait_until(self.layout, what="LIDs and managers that the hosts agree on")
            layout, hosts = self.layout(), self.lab.hosts
            self.assertEqual([len({lid for lid, _ in layout[host]}) for host in hosts], [1] * len(hosts), layout)
            self.assertEqual(len({layout[host][0][0] for host in hosts}), len(hosts), layout)
            prefixes = [layout[host][1][1] for host in hosts]
            self.assertEqual(prefixes, [layout[after][0][1] for after in hosts[1:] + hosts[:1]], layout)
            self.assertEqual(len(set(prefixes)), len(hosts), layout)
            for prefix in prefixes:
                self.assertRegex(prefix, "^fd")

            # The power fails; they come back in another order, one after the other.
            for host in hosts:
                self.lab.kill(host)
            for host in reversed(hosts):
                self.lab.start(host)
            wait_until(lambda: self.layout() == layout, what="the same LIDs and prefixes")


if __name__ == "__main__":
    unittest.main()
