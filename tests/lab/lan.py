"""What tests of labs with a LAN share: addresses, costs, traffic in the background.

upstream - LAN - h1, h2 (the pair) - ring - h3, h4, h5; a guest with a network of its own behind every host.
"""

import contextlib
import re
import signal
import subprocess
import threading

from lab import wait_until

WORLD4, WORLD6 = "198.51.100.1", "2001:db8::1"
VIRTUAL4, VIRTUAL6 = "192.168.88.100", "fd88:1a::100"

# Cost of sending from a host to its neighbour, as in the original design: low towards the gateways, high on the
# way round. h1 is dear as a transit host, so that h5's way to h2 is the long one.
COSTS = {("h1", "h2"): 10, ("h2", "h1"): 10, ("h2", "h3"): 10, ("h3", "h2"): 10, ("h3", "h4"): 20, ("h4", "h3"): 20,
         ("h4", "h5"): 50, ("h5", "h4"): 50, ("h5", "h1"): 10, ("h1", "h5"): 10}


def guest(number, family=4):
    return f"10.77.{number}.2" if family == 4 else f"fd88:77:0:{number:x}::2"


def configuration(number, gateway=None, default=False):
    """fabricd's, for a host of the lab: what fabric-lab writes, with more in [gateway], or with a default route
    instead of it."""
    networks = [f"10.77.{number}.0/24", f"fd88:77:0:{number:x}::/64"] + (["0.0.0.0/0", "::/0"] if default else [])
    text = f"[network]\nprefixes = {networks}\n".replace("'", '"')
    if gateway is not None and number <= 2:
        text += (f'[gateway]\ninterface = "lan0"\nvrid = 88\npriority = {250 - 50 * number}\n'
                 f'addresses = ["{VIRTUAL4}/24", "fe80::88/64", "{VIRTUAL6}/64"]\n{gateway}\n')
    return text


def cheapest(source, target):
    """The hosts on the cheapest of the two ways round, by COSTS; None where both cost the same."""
    names = ["h1", "h2", "h3", "h4", "h5"]
    ways = []
    for step in (1, -1):
        at, way, cost = names.index(source), [source], 0
        while way[-1] != target:
            after = names[(at + step) % len(names)]
            cost += COSTS[way[-1], after]
            way.append(after)
            at += step
        ways.append((cost, way))
    (a, first), (b, second) = sorted(ways)
    return first if a < b else None


class Ping:
    """ping in the background, 100 a second; what has been answered can be asked while it runs."""

    def __init__(self, lab, source, target):
        self.process = subprocess.Popen(lab._on(source, ["ping", "-n", "-i", "0.01", target]), env=lab.env,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.answered = set()
        self.last = 0
        self.what = f"{source} to {target}"
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            if found := re.search(r"icmp_seq=(\d+) ttl", line):
                self.answered.add(int(found[1]))
                self.last = max(self.last, int(found[1]))

    def wait_for_more(self, count=20):
        goal = len(self.answered) + count
        wait_until(lambda: len(self.answered) >= goal, what=f"{count} more echo replies, {self.what}")

    def lost(self):
        """So far, between the first answer and the last."""
        return self.last - min(self.answered) + 1 - len(self.answered)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=10)
        self.reader.join()
        self.process.stdout.close()


@contextlib.contextmanager
def traffic(lab, *pairs):
    pings = [Ping(lab, source, target) for source, target in pairs]
    try:
        for ping in pings:
            ping.wait_for_more()
        yield pings
    finally:
        for ping in pings:
            ping.stop()


def reach_everything(lab, guests):
    """From the LAN to the guests and back, both families."""
    for number in guests:
        for source, target in (("upstream", guest(number)), ("upstream", guest(number, 6)),
                               (f"g{number}", WORLD4), (f"g{number}", WORLD6)):
            wait_until(lambda: lab.run(source, "ping", "-n", "-c", "1", "-W", "1", target, check=False).returncode == 0,
                       what=f"{source} reaches {target}")
