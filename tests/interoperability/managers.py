"""Who manages the cable between h1 port 2 and h2 port 1 of a lab: OpenSM or fabricd, on h1. Tests run their
programs on h2, at the other end, and compare what they get from the one with what they get from the other."""

import os
import re

from softhca_lab import port_guid, wait_for

MANAGERS = ("opensm", "fabricd")


class Layout:
    """What a manager has given the two ports."""

    def __init__(self, lab):
        self.lids = {1: lab.port("h1/2")["lid"], 2: lab.port("h2/1")["lid"]}
        shown = lab.run("h2", "smpquery", "-C", "softhca0", "-P", "1", "portinfo", str(self.lids[1]), "2")
        self.prefix = re.search(r"GidPrefix:\.+(0x[0-9a-f]{16})", shown)[1]


def manage(lab, manager, layout=None):
    """Starts it, and waits until the cable is Active and the manager knows all there is to know. OpenSM takes LIDs
    and prefix from `layout`, where there is one."""
    if manager == "opensm":
        options = []
        if layout is not None:
            disk = lab.environment("h1")["OSM_CACHE_DIR"]
            with open(os.path.join(disk, "guid2lid"), "w", encoding="utf-8") as file:
                for host, port in ((1, 2), (2, 1)):
                    file.write(f"{port_guid(host, port):#018x} {layout.lids[host]:#06x} {layout.lids[host]:#06x}\n\n")
            with open(os.path.join(disk, "opensm.conf"), "w", encoding="utf-8") as file:
                file.write(f"subnet_prefix {layout.prefix}\nhonor_guid2lid_file TRUE\n")
            options = ["-F", os.path.join(disk, "opensm.conf")]
        process = lab.opensm(1, 2, *options)
    else:
        directory = os.path.join(lab.directory.name, "fabricd")
        os.makedirs(directory, exist_ok=True)
        # In a network namespace of its own, for its TUN device and routes.
        process = lab.start("h1", "unshare", "--net", os.path.join(lab.build, "fabricd"),
                            "--state", os.path.join(directory, "state"), "--socket", os.path.join(directory, "socket"))
        # A ring of one host agrees on its LIDs soon after the start; until then they are provisional.
        wait_for(lambda: lab.port("h1/2")["lid"] in range(1, 0xB000) and
                 lab.port("h1/2")["state"] == lab.port("h2/1")["state"] == "Active", "fabricd makes it Active")
    wait_for(lambda: complete(lab), f"{manager} knows the cable")
    return process


def complete(lab):
    """Both ports' tables have been read."""
    answers = {name: lab.attempt("h2", "saquery", "-C", "softhca0", "-P", "1", "--smkey", "1", name)
               for name in ("NR", "PKTR", "GIR", "VLAR")}
    return (answers["NR"].count("softhca0") == answers["PKTR"].count("Port...") == 2 and
            answers["GIR"].count("Block...") == 4 and answers["VLAR"].count("Block...") == 8)
