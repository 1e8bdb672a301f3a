"""infiniband-diags and OpenSM's clients on the software HCA: each program with each option, and what it must print.

Two hosts, h1 port 2 cabled to h2 port 1, an OpenSM on h1. Everything in TABLE only looks; what changes something is a
test of its own below. Commands run on h2, whose port 1 has LID 2; h1 has LID 1.
"""

import os
import re
import shlex
import unittest

import softhca_lab
from softhca_lab import Lab, TwoHosts, fields, port_guid, wait_for

FULL = os.environ.get("SOFTHCA_FULL", "") not in ("", "0")
H1, H2 = f"0x{port_guid(1, 2):x}", f"0x{port_guid(2, 1):x}"
REFUSED = 1  # ends with an error

# command, what it prints (regular expressions), how it ends
TABLE = (
    ("ibstat -l", [r"^softhca0$"]),
    ("ibstat -s", [r"Number of ports: 2", r"Node GUID: 0x0014050000020000"]),
    ("ibstat -p", [r"^0x0014050000020001\n0x0014050000020002$"]),
    ("ibstat softhca0 1", [r"State: Active", r"Physical state: LinkUp", r"Rate: 100", r"Base lid: 2", r"SM lid: 1"]),
    ("ibstat softhca0 2", [r"State: Down", r"Physical state: Polling"]),
    ("ibstatus softhca0:1", [r"state:\s+4: ACTIVE", r"phys state:\s+5: LinkUp", r"rate:\s+100 Gb/sec \(4X EDR\)",
                             r"base lid:\s+0x2", r"sm lid:\s+0x1"]),
    ("ibaddr -P 1", [r"^GID fe80::14:500:2:1 LID start 0x2 end 0x2$"]),
    ("ibaddr -P 1 -l", [r"^LID start 0x2 end 0x2$"]),
    ("ibaddr -P 1 -g 1", [r"^GID fe80::14:500:1:2 $"]),
    ("ibnetdiscover -P 1", [r'^Ca\t2 "H-0014050000010000"', r'^\[1\]\(14050000020001\) \t"H-0014050000010000"\[2\]']),
    ("ibnetdiscover -P 1 -p", [r"^CA +1 +2 0x0014050000010002 4x EDR - CA +2 +1 0x0014050000020001"]),
    ("ibnetdiscover -P 1 -l", [r'^Ca\t : 0x0014050000010000 ports 2 devid 0x5348 vendid 0x1405 "h1 softhca0"$']),
    ("iblinkinfo -P 1", [r"0x0014050000010002 +1 +2\[ +\] ==\( 4X +25.78125 Gbps Active/ +LinkUp\)==> +2 +1\["]),
    ("iblinkinfo -P 1 -l", [r'25.78125 Gbps Active/  LinkUp\)==>  0x0014050000020001 +2 +1\[  \] "h2 softhca0"']),
    ("ibhosts -P 1", [r'^Ca\t: 0x0014050000010000 ports 2 "h1 softhca0"$', r'^Ca\t: 0x0014050000020000 ports 2 ']),
    ("ibnodes -P 1", [r'^Ca\t: 0x0014050000010000 ports 2 "h1 softhca0"$']),
    ("ibswitches -P 1", [r"\A\Z"]),
    ("ibidsverify -P 1", [r"\A\Z"]),
    ("sminfo -P 1", [r"sm lid 1 sm guid 0x14050000010002, activity count \d+ priority 0 state 3 SMINFO_MASTER"]),
    ("sminfo -P 1 1", [r"SMINFO_MASTER"]),
    ("sminfo -P 1 -D 0,1", [r"sm guid 0x14050000010002.*SMINFO_MASTER"]),
    ("sminfo -P 1 -t 50 2", [r"failed"], REFUSED),
    ("smpquery -P 1 nodeinfo 1", [r"^Guid:\.+0x0014050000010000$", r"^LocalPort:\.+2$", r"^PartCap:\.+32$"]),
    ("smpquery -P 1 -D nodeinfo 0", [r"^Guid:\.+0x0014050000020000$", r"^LocalPort:\.+1$"]),
    (f"smpquery -P 1 -G nodeinfo {H1}", [r"^PortGuid:\.+0x0014050000010002$"]),
    ("smpquery -P 1 nodedesc 1", [r"^Node Description:\.+h1 softhca0$"]),
    ("smpquery -P 1 portinfo 1", [r"^LinkState:\.+Active$", r"^NeighborMTU:\.+4096$", r"^\s+IsSM$", r"^SMLid:\.+1$"]),
    ("smpquery -P 1 -D portinfo 0,1 1", [r"^LinkState:\.+Down$", r"^PhysLinkState:\.+Polling$"]),
    ("smpquery -P 1 -D portinfo 0,1 3", [r"failed"], REFUSED),
    ("smpquery -P 1 pkeys 1", [r"^   0: 0xffff 0x0000 ", r"^32 pkeys capacity for this port$"]),
    ("smpquery -P 1 guidinfo 1", [r"^   0: 0x0014050000010002 0x0000000000000000$"]),
    ("smpquery -P 1 sl2vl 1", [r"^# SL2VL table: Lid 1$", r"^ports: in  0, out  0: (\| 0){16}\|$"]),
    ("smpquery -P 1 vlarb 1", [r"^# VLArbitration tables: Lid 1 port 0 LowCap 8 HighCap 8$"]),
    ("smpquery -P 1 switchinfo 1", [r"failed"], REFUSED),  # it is no switch
    ("smpquery -P 1 mepi 1", [r"failed"], REFUSED),        # nor of that vendor
    ("smpquery -P 1 -t 50 nodeinfo 3", [r"failed"], REFUSED),
    ("smpquery -P 1 -t 50 -D nodeinfo 0,1,1", [r"failed"], REFUSED),  # a HCA forwards nothing
    ("smpdump -P 1 1 0x15 2", [r"^0001 0001 0650 484a "]),
    ("smpdump -P 1 -s 1 0x10", [r"^h1 softhca0"]),
    ("smpdump -P 1 -D 0,1 0x11", [r"^0101 0102 0014 0500 0001 0000 0014 0500$", r"^SMP status: 0x8000$"]),
    ("ibtracert -P 1 2 1", [r'^\[1\] -> ca port \{0x0014050000010002\}\[2\] lid 1-1 "h1 softhca0"$']),
    (f"ibtracert -P 1 -G {H2} {H1}", [r'^To ca \{0x0014050000010000\} portnum 2 lid 1-1 "h1 softhca0"$']),
    ("ibportstate -P 1 1 2 query", [r"^LinkState:\.+Active$", r"^LinkWidthActive:\.+4X$"]),
    ("ibportstate -P 1 -D 0,1 2", [r"^LinkSpeedExtActive:\.+25.78125 Gbps$"]),
    ("perfquery -P 1", [r"^# Port counters: Lid 2 port 1 \(CapMask: 0x1300\)$", r"^PortXmitPkts:\.+[1-9]\d*$"]),
    ("perfquery -P 1 1 2", [r"^PortSelect:\.+2$", r"^SymbolErrorCounter:\.+0$"]),
    ("perfquery -P 1 -x 1 2", [r"^# Port extended counters: Lid 1 port 2", r"^PortUnicastXmitPkts:\.+[1-9]\d*$"]),
    ("perfquery -P 1 -a 1", [r"^PortSelect:\.+255$", r"^PortXmitPkts:\.+[1-9]\d*$"]),
    ("perfquery -P 1 -c 1", [r"^# PortSamplesControl: Lid 1"]),
    ("perfquery -P 1 -D 1", [r"failed"], REFUSED),  # optional attributes that there are not
    ("ibqueryerrors -P 1", [r"2 nodes checked, 0 bad nodes found", r"4 ports checked, 0 ports have errors"]),
    ("saquery -P 1", [r"NodeDescription\.+h1 softhca0", r"NodeDescription\.+h2 softhca0"]),  # 2 records: RMPP
    ("saquery -P 1 PR", [r"(?s)(PathRecord dump:.*){4}"]),
    ("saquery -P 1 -p --src-to-dst 2:1", [r"dlid\.+1", r"slid\.+2", r"mtu\.+0x85"]),
    ("saquery -P 1 PIR", [r"EndPortLid\.+1", r"LinkState:\.+Active"]),
    ("saquery -P 1 SMIR", [r"GUID\.+0x0014050000010002", r"SMState\.+3"]),
    ("saquery -P 1 LR", [r"FromLID\.+1\n\s+FromPort\.+2\n\s+ToPort\.+1\n\s+ToLID\.+2"]),
    ("saquery -P 1 MCMR", [r"MGID\.+ff12:401b:ffff::ffff:ffff"]),
    ("saquery -P 1 GIR", [r"GUID 0\.+0x0014050000020001"]),
    ("saquery -P 1 --smkey 1 PKTR", [r"PKEY_TABLE|P_Key Table|pkey|LID"]),
    ("saquery -P 1 VLAR", [r"(?s)(VLArbTableRecord dump:.*){8}"]),
    ("saquery -P 1 IIR", []),
    ("saquery -P 1 CPI", [r"Class version\.+2", r"Redirect QP\.+0x00000001"]),
)


class Looking(TwoHosts):
    def look(self, command, expected, status=0):
        text = self.lab.run("h2", *shlex.split(command), status=status)
        for pattern in expected:
            self.assertRegex(text, re.compile(pattern, re.MULTILINE))


for _number, _row in enumerate(TABLE):
    _name = f"test_{_number:02}_{re.sub('[^a-z0-9]+', '_', _row[0].lower())}"
    setattr(Looking, _name, lambda self, row=_row: self.look(*row))


class PortState(unittest.TestCase):
    """ibportstate's commands on h1's port, from h2, by directed route; the port's state is the hardware's word."""

    def setUp(self):
        self.lab = self.enterContext(Lab())
        self.manager = self.lab.opensm(1, 2)

    def ibportstate(self, *command):
        return fields(self.lab.run("h2", "ibportstate", "-P", "1", "-D", "0", "1", *command))

    def wait_for_port(self, **expected):
        wait_for(lambda: expected.items() <= self.lab.port("h2/1").items(), f"h2/1 becomes {expected}")

    def test_disable_and_enable(self):
        self.ibportstate("disable")
        self.wait_for_port(state="Down", physical="Disabled")
        self.assertEqual(self.lab.port("h1/2")["physical"], "Polling")
        self.assertEqual(self.ibportstate("query")["PhysLinkState"], "Disabled")
        self.ibportstate("enable")
        self.wait_for_port(state="Init", physical="LinkUp")
        self.assertEqual(self.lab.port("h1/2")["state"], "Init")

    def test_reset(self):
        downs = self.lab.port("h1/2")["counters"]["link_downed"]
        self.ibportstate("reset")
        self.wait_for_port(state="Init", physical="LinkUp")
        self.assertEqual(self.lab.port("h1/2")["counters"]["link_downed"], downs + 1)

    def test_down(self):
        self.ibportstate("down")
        self.wait_for_port(state="Init")  # trained anew

    def test_arm_and_active(self):
        self.ibportstate("down")
        self.wait_for_port(state="Init")
        self.ibportstate("arm")
        self.wait_for_port(state="Armed")
        self.ibportstate("active")
        self.wait_for_port(state="Active")

    def test_width_and_speed(self):
        """They hold when the link is trained again, at both ends. (OpenSM would hear of the change by trap 144, and
        set the speeds to what it wants.)"""
        self.lab.stop(self.manager)
        self.assertEqual(self.ibportstate("width", "1")["LinkWidthEnabled"], "1X")
        self.assertEqual(self.ibportstate("espeed", "1")["LinkSpeedExtEnabled"], "14.0625 Gbps")
        before = self.ibportstate("query")
        self.assertEqual((before["LinkWidthActive"], before["LinkSpeedExtActive"]), ("4X", "25.78125 Gbps"))
        self.ibportstate("reset")
        info = wait_for(lambda: (found := self.ibportstate("query"))["LinkWidthActive"] == "1X" and found, "trained")
        self.assertEqual(info["LinkSpeedExtActive"], "14.0625 Gbps")
        self.assertIn("rate:\t\t 14 Gb/sec (1X FDR)", self.lab.run("h1", "ibstatus", "softhca0:2"))
        # Without extended speeds the others decide.
        self.ibportstate("espeed", "30")
        self.ibportstate("speed", "1")
        self.ibportstate("reset")
        wait_for(lambda: self.ibportstate("query")["LinkSpeedActive"] == "2.5 Gbps", "trained")
        self.assertIn("2.5 Gb/sec", self.lab.run("h1", "ibstatus", "softhca0:2"))


class Counters(TwoHosts):
    def counters(self, *options):
        text = self.lab.run("h2", "perfquery", "-P", "1", *options)
        return {name: int(value, 0) for name, value in fields(text).items() if value[:1].isdigit()}

    def test_what_passes_is_counted(self):
        before = self.counters()
        self.lab.run("h2", "smpquery", "-P", "1", "-D", "nodeinfo", "0,1")
        after = self.counters()
        for name, difference in ("PortXmitPkts", 1), ("PortRcvPkts", 1), ("PortXmitData", 72), ("PortRcvData", 72):
            self.assertEqual(after[name] - before[name], difference, name)

    def test_a_message_is_counted_by_its_packets(self):
        """1000 messages of 10,000 bytes at an MTU of 4096: 3 packets each; both ends say the same."""
        before = self.counters("-x"), self.counters("-x", "1", "2")
        self.pair("ib_write_bw", "-F", "-n", "1000", "-s", "10000")
        after = self.counters("-x"), self.counters("-x", "1", "2")
        sent = after[0]["PortXmitPkts"] - before[0]["PortXmitPkts"]
        received = after[1]["PortRcvPkts"] - before[1]["PortRcvPkts"]
        self.assertGreaterEqual(sent, 3000)
        self.assertLess(sent, 3020)  # and a few MADs
        self.assertLess(abs(sent - received), 10)
        octets = 4 * (after[0]["PortXmitData"] - before[0]["PortXmitData"])
        self.assertGreaterEqual(octets, 1000 * 10000)
        self.assertLess(octets, 1000 * 10000 * 1.02)

    def test_multicast_is_counted_apart(self):
        before = self.counters("-x")
        self.pair("ib_send_bw", "-F", "-c", "UD", "-g", "-n", "100", "-s", "1024")
        after = self.counters("-x")
        self.assertGreaterEqual(after["PortMulticastXmitPkts"] - before["PortMulticastXmitPkts"], 100)

    def test_reset_after_reading(self):
        # perfquery -r shows what was, and clears.
        self.assertGreater(self.counters("-r")["PortXmitPkts"], 1)
        self.assertLessEqual(self.counters()["PortXmitPkts"], 2)
        self.assertGreater(self.counters("-x")["PortXmitPkts"], 2)  # another attribute
        self.counters("-x", "-r")
        self.assertLessEqual(self.counters("-x")["PortXmitPkts"], 2)
        self.assertGreater(self.counters("-a", "-r", "1")["PortXmitPkts"], 0)
        self.assertLessEqual(self.counters("-a", "1")["PortXmitPkts"], 4)

    def test_errors_are_found(self):
        self.lab.control("faults", end="h1/2", corrupt_ppm=1_000_000)
        self.lab.run("h2", "smpquery", "-P", "1", "-t", "20", "-D", "nodeinfo", "0,1", status=1)
        self.lab.control("faults", end="h1/2")
        self.lab.control("trap", end="h1/2", number=129)
        self.assertGreater(self.counters()["PortRcvErrors"], 0)
        self.assertEqual(self.counters("1", "2")["LocalLinkIntegrityErrors"], 1)
        text = self.lab.run("h2", "ibqueryerrors", "-P", "1", status=1)
        self.assertRegex(text, r"(?s)h2 softhca0.*\[PortRcvErrors == \d+\]")
        self.assertRegex(text, r"\[LocalLinkIntegrityErrors == 1\]")
        self.lab.run("h2", "ibqueryerrors", "-P", "1", "-k", status=1)  # shows, and clears
        self.assertIn("0 bad nodes found", self.lab.run("h2", "ibqueryerrors", "-P", "1"))


class Servers(TwoHosts):
    """Programs that answer each other: vendor classes between any two clients, and OpenSM's test client."""

    def test_ibping(self):
        ping = "ibping", "-P", "1", "-c", "3", "-G", H1
        self.assertIn("3 packets transmitted, 0 received", self.lab.run("h2", *ping, "-t", "20"))
        server = self.lab.start("h1", "ibping", "-S", "-P", "2")
        wait_for(lambda: "3 received, 0% packet loss" in self.lab.run("h2", *ping), "ibping is answered")
        self.assertIn("3 received, 0% packet loss", self.lab.run("h2", "ibping", "-P", "1", "-c", "3", "1"))
        flood = self.lab.run("h2", "ibping", "-P", "1", "-f", "-c", "500", "1")
        self.assertIn("500 packets transmitted, 500 received, 0% packet loss", flood)
        self.lab.stop(server)

    def test_ibping_with_another_oui(self):
        """Two servers of one class on one port, told apart by their OUI."""
        first = self.lab.start("h1", "ibping", "-S", "-P", "2")
        second = self.lab.start("h1", "ibping", "-S", "-P", "2", "-o", "0x0002c9")
        for oui in (), ("-o", "0x0002c9"):
            wait_for(lambda oui=oui: "1 received" in self.lab.run("h2", "ibping", "-P", "1", "-c", "1", *oui, "1"),
                     f"ibping {oui} is answered")
        self.lab.stop(first)
        self.assertIn("0 received", self.lab.run("h2", "ibping", "-P", "1", "-c", "1", "1"))
        self.assertIn("1 received", self.lab.run("h2", "ibping", "-P", "1", "-c", "1", "-o", "0x0002c9", "1"))
        self.lab.stop(second)

    def test_ibsysstat(self):
        server = self.lab.start("h1", "ibsysstat", "-S", "-P", "2")
        wait_for(lambda: "cpu 0:" in self.lab.run("h2", "ibsysstat", "-P", "1", "1", "cpu"), "ibsysstat is answered")
        self.assertIn("sysstat ping succeeded", self.lab.run("h2", "ibsysstat", "-P", "1", "1", "ping"))
        self.assertIn(os.uname().nodename, self.lab.run("h2", "ibsysstat", "-P", "1", "1", "host"))
        self.lab.stop(server)

    def test_osmtest(self):
        inventory = os.path.join(self.lab.directory.name, "inventory")
        flows = [["c"], ["v"], ["s"], ["q"], ["m", "-M", "1"]]
        if FULL:  # these wait
            flows += [["e"], *(["m", "-M", mode] for mode in "234")]
        for flow in flows:
            status, text = self.lab.outcome("h2", "osmtest", "-f", *flow, "-g", H2, "-i", inventory)
            self.assertEqual(status, 0, text)
            self.assertRegex(text, r'OSMTEST: TEST ".*" PASS\n', flow)
            self.assertNotIn("FAIL", text, flow)


class Manager(unittest.TestCase):
    """What OpenSM makes of the adapter's part of the protocol."""

    def opensm(self, lab, *options, **configuration):
        path = os.path.join(lab.directory.name, "opensm.conf")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{name} {value}\n" for name, value in configuration.items())
        manager = lab.opensm(1, 2, "-F", path, *options)
        self.log = os.path.join(lab.directory.name, "opensm-1-2.log")
        return manager

    def in_log(self, pattern):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return re.search(pattern, file.read())

    def test_mkey(self):
        """OpenSM protects its ports; who does not know the key sees nothing and changes nothing."""
        with Lab() as lab:
            self.opensm(lab, m_key="0x1234", m_key_protection_level=2, m_key_lease_period=60)
            query = "smpquery", "-P", "1", "-t", "50"
            lab.run("h2", *query, "portinfo", "1", status=1)
            self.assertEqual(fields(lab.run("h2", *query, "-y", "0x1234", "portinfo", "1"))["ProtectBits"], "2")
            lab.run("h2", *query, "-y", "0x1235", "portinfo", "1", status=1)
            lab.run("h2", "ibportstate", "-P", "1", "-t", "50", "-D", "0,1", "2", "disable", status=1)
            self.assertEqual(lab.port("h1/2")["state"], "Active")
            # Each of these was a violation, and the manager was told of them (trap 256).
            violations = int(fields(lab.run("h2", *query, "-y", "0x1234", "portinfo", "1"))["MkeyViolations"])
            self.assertGreaterEqual(violations, 3)
            wait_for(lambda: self.in_log(r"num:256"), "OpenSM has heard of the violations")

    def test_partitions(self):
        """A partition that h2 is a limited member of: the tables of both ports say so."""
        with Lab() as lab:
            partitions = os.path.join(lab.directory.name, "partitions.conf")
            with open(partitions, "w", encoding="utf-8") as file:
                file.write("Default=0x7fff, ipoib: ALL=full;\n"
                           f"mine=0x0123: {H1}=full, {H2}=limited;\n")
            self.opensm(lab, "-P", partitions)
            wait_for(lambda: "0x0123" in lab.run("h2", "smpquery", "-P", "1", "pkeys", "2"), "the table of h2")
            wait_for(lambda: "0x8123" in lab.run("h2", "smpquery", "-P", "1", "pkeys", "1"), "the table of h1")
            self.assertIn("0x8123", lab.run("h1", "cat", *(f"/sys/class/infiniband/softhca0/ports/2/pkeys/{i}"
                                                           for i in range(4))))
            self.assertIn("PKEY", lab.run("h1", "saquery", "-P", "2", "--smkey", "1", "PKTR").upper())

    def test_traps(self):
        """129, 130, 131, 144, 257 and 258 reach OpenSM."""
        with Lab() as lab:
            self.opensm(lab)
            for number in 129, 130, 131:
                lab.control("trap", end="h2/1", number=number)
                wait_for(lambda number=number: self.in_log(rf"num:{number}"), f"OpenSM logs trap {number}")
            # Data with a wrong key: the adapter that drops it says so.
            failures = os.path.join(softhca_lab.BUILD, "tests", "verbs_failures")
            for key, number in ("P_Key of no partition", 257), ("wrong Q_Key", 258):
                lab.run("h1", failures, "--only", key, "softhca0/2", "softhca0/2")
                wait_for(lambda number=number: self.in_log(rf"num:{number}"), f"OpenSM logs trap {number}")
            lab.control("describe", host="h2", text="renamed")
            wait_for(lambda: self.in_log(r"num:144"), "OpenSM logs trap 144")
            wait_for(lambda: "renamed" in lab.run("h1", "saquery", "-P", "2"), "and asks for the new description")

    def test_no_trap_128(self):
        """Trap 128 (a port of a switch has changed) is for switches: a HCA never sends it, and OpenSM waits."""
        with Lab() as lab:
            self.opensm(lab)
            lab.control("cut", a="h1", b="h2")
            lab.control("mend", a="h1", b="h2")
            lab.run("h1", "smpquery", "-P", "2", "-D", "nodeinfo", "0,2")
            self.assertIsNone(self.in_log(r"num:128"))


if __name__ == "__main__":
    softhca_lab.main()
