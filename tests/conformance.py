"""Makes docs/vrrp-conformance.md from the tests: each FABRIC_SHOWS(section, level, text) in tests/unit, with the
test it stands in, and NOT_SHOWN below. With --check says whether the page is what it should be."""
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, "docs", "vrrp-conformance.md")
FILES = ["tests/unit/gateway_election_test.cpp", "tests/unit/vrrp_packet_test.cpp"]

# Shown by a test on a LAN, or not at all, and why.
OTHERS = [
    ("RFC 9568, 6.4.2", "MUST NOT", "as Backup: answer no ARP request or neighbour solicitation for the virtual addresses", "interoperability.gateway_vrrp"),
    ("RFC 9568, 6.4.2", "MUST", "as Backup: drop frames to the virtual MAC address", "interoperability.gateway_pair (its interface is down)"),
    ("RFC 9568, 6.4.3", "MUST", "as Active: answer ARP requests and neighbour solicitations with the virtual MAC address", "interoperability.gateway_pair, Accept"),
    ("RFC 9568, 6.4.3", "MUST", "as Active: pass on packets to the virtual MAC address", "interoperability.gateway_pair, Accept"),
    ("RFC 9568, 6.4.3", "MUST", "as Active without Accept_Mode and not the owner: accept no packets to the addresses", "interoperability.gateway_pair, Accept"),
    ("RFC 9568, 6.1", "MUST NOT", "drop neighbour solicitations and advertisements when Accept_Mode is False", "interoperability.gateway_pair, Accept"),
    ("RFC 9568, 8.1.2", "MUST NOT", "as Active: answer with, or ask in the name of a virtual address from, the physical MAC address", "interoperability.gateway_vrrp"),
    ("RFC 9568, 8.1.2, 8.2.2", "MUST", "announce only when address and virtual MAC address are there", "by the order of BecomeMaster and Announce"),
    ("RFC 9568, 7.4", "MUST NOT", "make interface identifiers from the virtual MAC address", "the interface has addrgenmode none; the virtual link-local address is configured, or derived once, as the virtual router's own"),
    ("RFC 9568, 6.4.3, 8.2.3", "MUST", "as Active: send Router Advertisements for the virtual router", "not done: no Router Advertisements at all; run radvd"),
    ("RFC 9568, 8.1.1, 8.2.1", "MUST", "choose the source of redirects by the virtual router", "no redirects are sent by its interface"),
    ("RFC 9568, 8.1.3", "MUST", "proxy ARP with the virtual MAC address", "no proxy ARP"),
    ("RFC 9568, 8.4", "MUST", "send versions 2 and 3 at the same time", "not done: one version; 8.4 calls it an option for migration"),
    ("RFC 9568, 7.1", "SHOULD", "log what is discarded, at a limited rate", "Gateway: once in 10 s for each reason, with the count"),
    ("RFC 9568, 7.1", "SHOULD", "log an interval other than the configured one", "not logged: it is learnt, and shown"),
    ("RFC 9568, 8.1.2", "MUST NOT", "the owner answers with its physical MAC address", "not met with priority 255: the address is on the LAN interface too"),
]


def requirements():
    for name in FILES:
        test = None
        source = open(os.path.join(ROOT, name)).read()
        pattern = r'^TEST(?:_F)?\((\w+), (\w+)\)|FABRIC_SHOWS\(((?:\s*"(?:[^"\\]|\\.)*"\s*,?)+)\)'
        for match in re.finditer(pattern, source, re.M):
            if match.group(1):
                test = f"{match.group(1)}.{match.group(2)}"
                continue
            # Adjacent literals are one; commas between are arguments.
            arguments = [""]
            for literal, comma in re.findall(r'"((?:[^"\\]|\\.)*)"\s*(,?)', match.group(3)):
                arguments[-1] += literal
                if comma:
                    arguments.append("")
            section, level, text = arguments[:3]
            yield section, level, text, f"`{test}`"
    yield from OTHERS


def key(row):
    rfc, _, section = row[0].partition(", ")
    numbers = [int(n) for n in re.findall(r"\d+", section.split(" ")[0].rstrip(","))]
    return (rfc != "RFC 9568", numbers)


def page():
    rows = sorted(requirements(), key=key)
    lines = ["# VRRP: requirements and the tests that show them", "",
             "Made by `tests/conformance.py` from the tests; do not edit. The RFC's Active is called master elsewhere in this project.", "",
             "| section | level | requirement | shown by |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if open(PAGE).read() != page():
            sys.exit("docs/vrrp-conformance.md is out of date: run tests/conformance.py")
    else:
        with open(PAGE, "w") as file:
            file.write(page())
