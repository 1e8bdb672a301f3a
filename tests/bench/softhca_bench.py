#!/usr/bin/env python3
"""The software HCA beside its yardstick, in one run on one machine: stock perftest between two hosts of a lab, and a
plain ring in memory that two processes share (memory_ring), by turns. Figures are medians of REPEATS runs. Afterwards what
idle costs: processor time of programs that sleep on completion events, and the memory of many hosts.

    tests/bench/softhca_bench.py [REPEATS]      # FABRIC_BUILD: another build folder
"""

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "interoperability"))
from softhca_lab import Lab, free_port, listening, wait_for  # noqa: E402

BUILD = Path(os.environ.get("FABRIC_BUILD", ROOT / "build"))
REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
HOSTS = 64


def perftest(lab, program, *options):
    """The numbers of the one line of results that the client prints."""
    port = free_port()
    command = [program, "-F", "-d", "softhca0", "-p", str(port), *options]
    server = lab.start("h1", *command, "-i", "2")
    wait_for(lambda: server.poll() is not None or listening(port), f"{program} listens")
    text = lab.run("h2", *command, "-i", "1", "localhost")
    server.wait()
    lab.processes.remove(server)
    return [float(number) for number in re.findall(r"^ \d[\d. \t]+", text, re.MULTILINE)[-1].split()]


def ring(*size):
    """What the plain ring does at this moment: messages a second, or without a size nanoseconds one way."""
    return float(subprocess.run([BUILD / "tests" / "memory_ring", *map(str, size)], stdout=subprocess.PIPE, text=True,
                                check=True).stdout)


def row(lab, wanted, unit, scale, size, column, *command):
    """Medians: what perftest says, what the ring does just before, and the ratio of the two."""
    pairs = [(ring(*size), perftest(lab, *command)[column] * scale) for _ in range(REPEATS)]
    ratio = statistics.median(here / yardstick for yardstick, here in pairs)
    yardstick, here = (statistics.median(column) for column in zip(*pairs))
    print(f"{' '.join(command):45} {here * unit[0]:10.4g} {yardstick * unit[0]:10.4g} {unit[1]:4} {ratio:8.3g}   "
          f"{wanted}", flush=True)


def speed():
    with Lab(BUILD) as lab:
        lab.opensm(1, 2)
        print(f"{'':45} {'here':>10} {'ring':>10} {'':4} {'ratio':>8}   wanted")
        for size, count in ((65536, "20000"), (1 << 20, "2000")):
            for program, wanted in (("ib_write_bw", "ratio >= 0.4"), ("ib_send_bw", "ratio >= 0.4"),
                                    ("ib_read_bw", "")):
                row(lab, wanted, (size / 1e9, "GB/s"), (1 << 20) / size, (size,), 3, program, "-s", str(size),
                    "-n", count)
        for options, wanted in (("-q 4 -l 16", ">= 8 M/s"), ("-q 1", "")):
            row(lab, wanted, (1e-6, "M/s"), 1e6, (64,), -1, "ib_write_bw", "-s", "64", "-n", "200000",
                *options.split())
        for program, wanted in (("ib_send_lat", "ratio <= 6"), ("ib_write_lat", ""), ("ib_read_lat", "")):
            row(lab, wanted, (1, "ns"), 1000, (), 4, program, "-s", "8", "-n", "200000")


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_bytes(pid):
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE).group(1)) * 1024


def idle():
    """One process per host, connected to nobody yet and waiting; `verbs_idle` sleeps on its completion channel."""
    with Lab(BUILD, hosts=HOSTS) as lab:
        programs = [lab.start(f"h{n + 1}", str(BUILD / "tests" / "verbs_idle"), "softhca0") for n in range(HOSTS)]
        everybody = [lab.hardware, *programs]
        wait_for(lambda: sum(len(host["clients"]) for host in lab.control("status")["hosts"]) == HOSTS,
                 "all have opened their adapter")
        wait_for(lambda: all("S" in Path(f"/proc/{p.pid}/stat").read_text(encoding="ascii").rpartition(")")[2][:3]
                             for p in programs), "all sleep")
        before = sum(processor_seconds(p.pid) for p in everybody)
        time.sleep(5)  # the length of the measurement
        used = sum(processor_seconds(p.pid) for p in everybody) - before
        memory = sum(proportional_bytes(p.pid) for p in everybody)
        print(f"{HOSTS} hosts with one process each: {memory / 2 ** 20:.0f} MiB (wanted <= 2048), "
              f"{used:.2f} s of processor time in 5 s (wanted 0)")


def main():
    speed()
    idle()


main()
