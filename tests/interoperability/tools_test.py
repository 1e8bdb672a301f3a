"""Stock tools at the other end of a cable get from fabricd what they get from OpenSM: each runs against both, and
what it printed and how it ended is compared, record by record.

What differs by design is in DIFFERENCES, with the reason; OpenSM is given the LIDs and the prefix that fabricd chose.
"""

import difflib
import os
import re
import sys
import unittest

from managers import MANAGERS, Layout, manage
from softhca_lab import Lab

BUILD = os.environ.get("FABRIC_BUILD", "build")

RECORDS = ("ClassPortInfo", "NodeRecord", "PortInfoRecord", "SL2VLTableRecord", "PKeyTableRecord",
           "VLArbitrationTableRecord", "InformInfoRecord", "LinkRecord", "ServiceRecord", "PathRecord",
           "MCMemberRecord", "LFTRecord", "MFTRecord", "GUIDInfoRecord", "SwitchInfoRecord", "SMInfoRecord")

# {1} and {2} are the LIDs of h1 and h2, {gid1} and {gid2} the GIDs.
COMMANDS = (
    ["sminfo", "sminfo -D 0,1", "sminfo {1}", "sminfo {2}"] +
    [f"saquery {record}" for record in RECORDS] +
    [f"saquery --smkey 1 {record}" for record in RECORDS] +
    [f"saquery {option}" for option in ("-p", "-N", "-D", "-s", "-g", "-m", "-x", "-c", "-S", "-I")] +
    ["saquery NR {1}", "saquery NR {2}", "saquery NR 999", "saquery PIR {1}", "saquery PIR {2}/1", "saquery PIR {2}/7",
     "saquery SL2VL {1}", "saquery --smkey 1 PKTR {2}", "saquery --smkey 1 PKTR {2}/1/0", "saquery VLAR {1}/2/3",
     "saquery LR {1}", "saquery LR {1}/2 {2}/1", "saquery LR {1} {1}", "saquery GIR {1}/1", "saquery GIR {2}",
     "saquery SMIR {1}", "saquery SMIR {2}", "saquery LFTR {1}", "saquery SWIR {2}",
     "saquery -L h1", "saquery -l h2", "saquery -G h1", "saquery -O {1}", "saquery -O {2}", "saquery -O 999",
     "saquery -U 0x0014050000020001", "saquery --src-to-dst {1}:{2}", "saquery --src-to-dst {2}:{2}",
     "saquery --sgid-to-dgid {gid1}-{gid2}", "saquery PR --slid {1}", "saquery PR --slid {1} --dlid {2}",
     "saquery PR --sgid {gid2} --dgid {gid1}", "saquery PR --sgid {gid2} --dgid fe80::77",
     "saquery PR --slid {1} --dlid {2} --pkey 0x7fff", "saquery PR --slid {1} --dlid {2} --pkey 0x1234",
     "saquery PR --slid {1} --dlid {2} --sl 0", "saquery PR --slid {1} --dlid {2} --sl 3",
     "saquery PR --slid {1} --dlid {2} --mtu 4", "saquery PR --slid {1} --dlid {2} --mtu 0x85",
     "saquery PR --slid {1} --dlid {2} --rate 16", "saquery PR --slid {1} --dlid {2} --numb_path 1",
     "saquery PR --dgid ff12:401b:ffff::ffff:ffff", "saquery MCMR --mlid 0xc000", "saquery MCMR --mlid 0xc001",
     "saquery MCMR --mgid ff12:401b:ffff::ffff:ffff", "saquery MCMR --pkey 0xffff", "saquery MCMR --qkey 0xb1b",
     "saquery -m 0xC000", "saquery --smkey 2 NR --timeout 100"] +
    [f"smpquery {query} {{{host}}}{argument}" for host in (1, 2)
     for query, argument in (("nodeinfo", ""), ("nodedesc", ""), ("portinfo", f" {3 - host}"), ("pkeys", f" {3 - host}"),
                             ("sl2vl", f" {3 - host}"), ("vlarb", f" {3 - host}"), ("guids", ""))] +
    [f"smpquery -D {query} 0,1" for query in ("nodeinfo", "nodedesc", "portinfo")] +
    ["ibnetdiscover", "ibnetdiscover -p", "iblinkinfo", "iblinkinfo -l", "ibqueryerrors", "ibqueryerrors -k",
     "ibhosts", "ibswitches", "ibaddr {1}", "ibtracert {2} {1}", "ibportstate {1} 2", "perfquery {1} 2"])

DIFFERENCES = (
    (r"(?m)(^.*priority) \d+|(Priority\.+)\d+", r"\1\2P", "fabricd wins over OpenSM's default"),
    (r"activity count \d+|ActCount\.+\d+", "activity", "counts"),
    (r"(?i)(lmc[ .:]*)\d", r"\1M", "a LID for each way of the ring"),
    (r"(end 0x|lid \d+-)[0-9a-f]+", r"\1END", "likewise"),
    (r"(?i)(pkt_life\.+0x)(92|8a)", r"\1L", "4 ms instead of 1 s: a cable is no fabric of switches"),
    (r"(?i)\b((?:mtu|rate)\.+0x)(84|85|83|90)\b", r"\1G",
     "the broadcast group has what the cable can do, not 2048 bytes at 10 Gbit/s"),
    (r"Capability mask 2\.+0x[0-9A-F]+", "Capability mask 2",
     "OpenSM has alias GUIDs, multicast topologies and CapabilityMask2 matches"),
    (r"(?m)^# Topology file: generated on .*$", "", "the time"),
    (r"(?m)^ibwarn: .*timed out\n\n?", "", "no answer in any case; who notices first is chance"),
    (r"(?m)^((?:Port)?(?:Xmit|Rcv|Unicast)\w+):\.+\d+", r"\1", "traffic"),
)


class Tools(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.outputs, layout = {}, None
        for manager in ("fabricd", "opensm"):
            with Lab(BUILD) as lab:
                manage(lab, manager, layout)
                layout = Layout(lab)
                cls.outputs[manager] = {command: cls.outcome(lab, layout, command) for command in COMMANDS}

    @staticmethod
    def outcome(lab, layout, command):
        groups = ":".join(layout.prefix[i:i + 4] for i in range(2, 18, 4))
        gids = [f"{groups}:14:500:{host}:{3 - host}" for host in (1, 2)]
        program, *arguments = command.format(0, layout.lids[1], layout.lids[2], gid1=gids[0], gid2=gids[1]).split()
        status, text = lab.outcome("h2", program, "-C", "softhca0", "-P", "1", *arguments)
        return f"exit {status}\n{simplify(text)}"

    def test_outcomes_are_those_of_opensm(self):
        for command in COMMANDS:
            with self.subTest(command):
                opensm, fabricd = (self.outputs[manager][command] for manager in ("opensm", "fabricd"))
                difference = "\n".join(difflib.unified_diff(opensm.split("\n"), fabricd.split("\n"), "opensm", "fabricd",
                                                            lineterm=""))
                self.assertEqual(difference, "", f"{command}\n{difference}")

    def test_the_comparison_sees_something(self):
        """Most commands say something, and most of them end well."""
        for manager in MANAGERS:
            texts = self.outputs[manager].values()
            self.assertGreater(sum(text.startswith("exit 0\n") for text in texts), len(COMMANDS) * 3 // 4)
            self.assertGreater(sum(len(text) > 60 for text in texts), len(COMMANDS) * 2 // 3)


def simplify(text):
    """What is left when differences by design are out, and records are in order."""
    for pattern, replacement, _ in DIFFERENCES:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"[ \t]+", " ", text)
    records = re.split(r"(?m)^(?=\S.*dump:)", text)
    return records[0] + "".join(sorted(records[1:]))


if __name__ == "__main__":
    if len(sys.argv) > 1 and os.path.isdir(sys.argv[1]):
        BUILD = sys.argv.pop(1)
    unittest.main()
