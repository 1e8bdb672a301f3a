#!/usr/bin/env python3
"""The forwarder beside its yardstick, in one run on one machine (as root):

    yardstick   two TUN devices copied into each other by two threads (tun_copy)
    direct      two hosts over one cable of the software HCA
    relayed     two hosts with one, and with three, hosts in between

for each: TCP with one stream and with four, 64-byte datagrams, and the round trip of ping. The last column is the
ratio to the yardstick. Lab hosts share the machine's processors, so every relay takes from the same ones.

    tests/bench/forwarder_bench.py [SECONDS]
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "lab"))
from lab import BUILD, Lab  # noqa: E402

SECONDS = sys.argv[1] if len(sys.argv) > 1 else "5"


def iperf(server, client, address, *options):
    """One measurement; `server` and `client` are what to put in front of a command to run it there."""
    daemon = subprocess.Popen([*server, "iperf3", "--forceflush", "-s", "-1"], stdout=subprocess.PIPE, text=True)
    try:
        while "listening" not in daemon.stdout.readline():
            assert daemon.poll() is None, "iperf3 -s has ended"
        out = subprocess.run([*client, "iperf3", "-J", "-t", SECONDS, "-c", address, *options],
                             stdout=subprocess.PIPE, text=True, check=True).stdout
        return json.loads(out)["end"]
    finally:
        daemon.kill()
        daemon.wait()


def measure(server, client, address):
    tcp = [iperf(server, client, address, "-P", str(n))["sum_received"]["bits_per_second"] / 1e9 for n in (1, 4)]
    udp = iperf(server, client, address, "-u", "-b", "0", "-l", "64")["sum"]
    received = (udp["packets"] - udp["lost_packets"]) / udp["seconds"]
    out = subprocess.run([*client, "ping", "-q", "-c", "200", "-i", "0.005", address],
                         stdout=subprocess.PIPE, text=True, check=True).stdout
    round_trip = float(re.search(r"= [\d.]+/([\d.]+)/", out).group(1)) * 1000
    return [*tcp, received / 1000, round_trip]


def yardstick():
    names = [f"tc{os.getpid()}{side}" for side in "ab"]
    copier = None
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        copier = subprocess.Popen([BUILD / "tests" / "tun_copy", *names], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        assert copier.stdout.readline() == "ready\n"
        for number, name in enumerate(names, 1):
            for command in (f"addr add 10.99.0.{number}/24 dev fab0", "link set fab0 up"):
                subprocess.run(["ip", "-n", name, *command.split()], check=True)
        prefix = [["ip", "netns", "exec", name] for name in names]
        return measure(prefix[1], prefix[0], "10.99.0.2")
    finally:
        if copier:
            copier.stdin.close()
            copier.wait()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def fabric(hosts):
    with Lab(hosts=hosts, shape="chain") as lab:
        on = [[str(BUILD / "fabric-lab"), "exec", f"h{n}", "--"] for n in (1, hosts)]
        os.environ["FABRIC_LAB"] = lab.name
        return measure(on[1], on[0], f"10.88.0.{hosts}")


def main():
    columns = ("TCP 1 [Gbit/s]", "TCP 4 [Gbit/s]", "UDP 64 [k/s]", "ping [us]")
    print(f"{'':<22}" + "".join(f"{column:>24}" for column in columns))
    base = yardstick()
    rows = [("yardstick: TUN to TUN", base), ("direct", fabric(2)), ("one relay", fabric(3)),
            ("three relays", fabric(5))]
    for name, values in rows:
        cells = (f"{value:.2f} ({value / reference:.2f})" for value, reference in zip(values, base))
        print(f"{name:<22}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
