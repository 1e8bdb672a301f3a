"""Stock programs of infiniband-diags, OpenSM and libibumad's users on the software HCA."""

import os
import re
import sys
import unittest

import softhca_lab
from softhca_lab import Lab, fields, node_guid, port_guid, wait_for

HERE = os.path.dirname(os.path.abspath(__file__))


def colons(text):
    """ibstat's lines: State: Active"""
    return dict(re.findall(r"^\s*([A-Za-z ]+): (.*)$", text, re.MULTILINE))


class WithoutManager(unittest.TestCase):
    """A cabled port that nobody has configured: Initialize, and SMPs pass."""

    @classmethod
    def setUpClass(cls):
        cls.lab = cls.enterClassContext(Lab())

    def test_ibstat(self):
        text = self.lab.run("h1", "ibstat")
        ca, first, second = re.split(r"^\s*Port [12]:$", text, flags=re.MULTILINE)
        self.assertTrue(ca.startswith("CA 'softhca0'\n"))
        self.assertEqual(colons(ca)["Number of ports"], "2")
        self.assertEqual(colons(ca)["Node GUID"], "0x0014050000010000")
        self.assertEqual((colons(first)["State"], colons(first)["Physical state"]), ("Down", "Polling"))
        self.assertEqual((colons(second)["State"], colons(second)["Physical state"]), ("Initializing", "LinkUp"))
        self.assertEqual(colons(second)["Rate"], "100")
        self.assertEqual(colons(second)["Base lid"], "0")
        self.assertEqual(colons(second)["Port GUID"], "0x0014050000010002")
        self.assertEqual(colons(second)["Link layer"], "InfiniBand")
        self.assertEqual(self.lab.run("h2", "ibstat", "-l"), "softhca0\n")
        self.assertEqual(self.lab.run("h2", "ibstat", "-p"), "0x0014050000020001\n0x0014050000020002\n")

    def test_ibstatus_and_sysfs(self):
        text = self.lab.run("h1", "ibstatus", "softhca0:2")
        for line in ("\tdefault gid:\t fe80:0000:0000:0000:0014:0500:0001:0002\n", "\tbase lid:\t 0x0\n",
                     "\tstate:\t\t 2: INIT\n", "\tphys state:\t 5: LinkUp\n", "\trate:\t\t 100 Gb/sec (4X EDR)\n",
                     "\tlink_layer:\t InfiniBand\n"):
            self.assertIn(line, text)
        self.assertEqual(self.lab.run("h1", "ibstatus").count("Infiniband device 'softhca0' port"), 2)
        self.assertEqual(self.lab.run("h2", "ls", "/sys/class/infiniband"), "softhca0\n")
        script = "cd /sys/class/infiniband/softhca0/ports && cat 1/state 2/state && cd 1 && cat phys_state"
        self.assertEqual(self.lab.run("h2", "sh", "-c", script), "2: INIT\n1: DOWN\n5: LinkUp\n")

    def test_node_info_by_directed_route(self):
        own = fields(self.lab.run("h1", "smpquery", "-P", "2", "-D", "nodeinfo", "0"))
        self.assertEqual((own["NodeType"], own["NumPorts"], own["LocalPort"]), ("Channel Adapter", "2", "2"))
        self.assertEqual(int(own["Guid"], 16), node_guid(1))
        peer = fields(self.lab.run("h1", "smpquery", "-P", "2", "-D", "nodeinfo", "0,2"))
        self.assertEqual(int(peer["Guid"], 16), node_guid(2))
        self.assertEqual(int(peer["PortGuid"], 16), port_guid(2, 1))
        self.assertEqual(peer["LocalPort"], "1")
        description = self.lab.run("h1", "smpquery", "-P", "2", "-D", "nodedesc", "0,2")
        self.assertRegex(description, r"^Node Description:\.+h2 softhca0\n$")

    def test_port_info(self):
        info = fields(self.lab.run("h2", "smpquery", "-P", "1", "-D", "portinfo", "0,1"))
        self.assertEqual(info["LinkState"], "Initialize")
        self.assertEqual(info["PhysLinkState"], "LinkUp")
        self.assertEqual(info["LinkWidthActive"], "4X")
        self.assertEqual(info["LinkSpeedExtActive"], "25.78125 Gbps")
        self.assertEqual(info["MtuCap"], "4096")
        down = fields(self.lab.run("h2", "smpquery", "-P", "1", "-D", "portinfo", "0", "2"))
        self.assertEqual((down["LinkState"], down["PhysLinkState"]), ("Down", "Polling"))

    def test_routes_that_lead_nowhere(self):
        # A route through the other port, one hop too many (a HCA does not forward), and a port without cable.
        for port, route in ("2", "0,1"), ("2", "0,2,1"), ("1", "0,1"):
            text = self.lab.run("h1", "smpquery", "-t", "50", "-P", port, "-D", "nodeinfo", route, status=1)
            self.assertIn("failed", text)

    def test_nobody_answers_for_a_subnet_manager(self):
        text = self.lab.run("h1", "sminfo", "-t", "50", "-P", "2", "-D", "0,2", status=1)
        self.assertIn("query", text)

    def test_discovery(self):
        text = self.lab.run("h1", "ibnetdiscover", "-P", "2")
        self.assertIn('Ca\t2 "H-0014050000020000"\t\t# "h2 softhca0"\n'
                      '[1](14050000020001) \t"H-0014050000010000"[2] (14050000010002) \t\t'
                      '# lid 0 lmc 0 "h1 softhca0" lid 0 4xEDR\n', text)

    def test_gmps_need_an_active_port(self):
        self.assertIn("failed", self.lab.run("h1", "perfquery", "-t", "50", "-P", "2", status=1))

    def test_the_kernel_side_of_umad(self):
        self.lab.run("h1", sys.executable, os.path.join(HERE, "umad_client.py"))


class WithOpenSM(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = cls.enterClassContext(Lab())
        cls.lab.opensm(1, 2)

    def test_the_cable_is_active(self):
        for host, port, lid in ("h1", 2, 1), ("h2", 1, 2):
            state = colons(self.lab.run(host, "ibstat", "softhca0", str(port)))
            self.assertEqual((state["State"], state["Base lid"], state["SM lid"]), ("Active", str(lid), "1"))
        # IsSM shows where the issm file is held, and nowhere else.
        self.assertTrue(self.lab.port("h1/2")["issm"])
        self.assertFalse(self.lab.port("h2/1")["issm"])

    def test_queries_by_lid(self):
        for host, port in ("h1", "2"), ("h2", "1"):
            for lid, owner in (1, 1), (2, 2):
                node = fields(self.lab.run(host, "smpquery", "-P", port, "nodeinfo", str(lid)))
                self.assertEqual(int(node["Guid"], 16), node_guid(owner))
        info = fields(self.lab.run("h2", "smpquery", "-P", "1", "portinfo", "1"))
        self.assertEqual((info["LinkState"], info["Lid"], info["SMLid"]), ("Active", "1", "1"))
        self.assertEqual(info["NeighborMTU"], "4096")
        pkeys = self.lab.run("h2", "smpquery", "-P", "1", "pkeys", "1")
        self.assertTrue(pkeys.startswith("   0: 0xffff 0x0000 "), pkeys)
        self.assertTrue(pkeys.endswith("32 pkeys capacity for this port\n"))
        guids = self.lab.run("h1", "smpquery", "-P", "2", "guidinfo", "2")
        self.assertTrue(guids.startswith("   0: 0x0014050000020001 0x0000000000000000\n"), guids)


class SeveralManagers(unittest.TestCase):
    """One OpenSM per cable, as a ring without a switch would need: three hosts, two subnets."""

    def test_one_per_port(self):
        with Lab(hosts=3) as lab:
            lab.opensm(1, 2)
            lab.opensm(2, 2)
            self.assertIn("sm guid 0x14050000010002", lab.run("h2", "sminfo", "-P", "1"))
            self.assertIn("sm guid 0x14050000020002", lab.run("h3", "sminfo", "-P", "1"))
            # The two are subnets apart, with the same LIDs.
            self.assertEqual([lab.port(end)["lid"] for end in ("h1/2", "h2/1", "h2/2", "h3/1")], [1, 2, 1, 2])
            self.assertEqual(lab.run("h2", "ibhosts", "-P", "1").count("Ca\t: "), 2)

    def test_two_on_one_cable(self):
        """The lower GUID becomes master, the other one standby, and takes over when the master is gone."""
        with Lab() as lab:
            config = os.path.join(lab.directory.name, "opensm.conf")
            with open(config, "w", encoding="utf-8") as file:
                file.write("sminfo_polling_timeout 200\npolling_retry_number 2\n")
            first = lab.opensm(1, 2)
            lab.opensm(2, 1, "-F", config)

            def state(host, port, route):
                return lab.attempt(host, "sminfo", "-P", port, "-D", route)

            wait_for(lambda: "SMINFO_STANDBY" in state("h1", "2", "0,2"), "h2 stands by")
            self.assertIn("SMINFO_MASTER", state("h2", "1", "0,1"))
            lab.stop(first)
            wait_for(lambda: "SMINFO_MASTER" in state("h1", "2", "0,2"), "h2 takes over")


if __name__ == "__main__":
    softhca_lab.main()
