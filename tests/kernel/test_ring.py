"""fabricd over kernel Soft-RoCE: a ring of guests, three of them or $FABRIC_HOSTS.

One ring serves all tests; each begins with all cables whole and all daemons running. When a test fails, the
state of every guest is written beside its logs, in build/kernel-guests/logs.
"""

import os
import re
import sys
import time
import unittest

from guests import Ring, wait_until

HOSTS = int(os.environ.get("FABRIC_HOSTS", "3"))
ring = None


def setUpModule():
    global ring
    began = time.monotonic()
    ring = Ring(HOSTS)
    ring.__enter__()
    print(f"{HOSTS} guests up after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def tearDownModule():
    ring.close()


def port(name, number):
    """What fabricctl says of a port (from 1) and its cable."""
    return dict(ring[name].json("port")["ports"][number - 1], **ring[name].json("cable")["cables"][number - 1])


def phase(name, number):
    return port(name, number)["phase"]


def wait_for_phase(name, number, wanted, timeout=60):
    """The port's entry, once its cable is in this phase."""
    def attempt():
        entry = port(name, number)
        return entry if entry["phase"] == wanted else None
    try:
        return wait_until(attempt, timeout)
    except AssertionError:
        entry = port(name, number)
        raise AssertionError(f"port {number} of {name} is not {wanted} but {entry['phase']}: "
                             f"{entry['reason']}") from None


def way(source, destination):
    """The hosts on the way in use."""
    ways = ring[source].json("path", source, destination)["ways"]
    chosen = next(w for w in ways if w["chosen"])
    return [hop["from"] for hop in chosen["hops"]] + [chosen["hops"][-1]["to"]]


class Stream:
    """Numbered packets from one host to another, 50 a second, counted at their return."""

    def __init__(self, source, destination):
        self.guest = ring[source]
        self.guest.run("rm -f /tmp/stream.pid; >/tmp/stream")
        # Without -w, with which an ICMP error would end it.
        self.job = self.guest.start(f"ping -n -i 0.02 -W 10 {ring.address(destination)} >/tmp/stream & "
                                    f"echo $! >/tmp/stream.pid; wait")
        wait_until(lambda: self.received() > 5, what="first packets of the stream")

    def received(self):
        return int(self.guest.run("grep -c 'bytes from' /tmp/stream || true").strip() or 0)

    def flows(self, more=20, timeout=60):
        """Until `more` further packets have come back."""
        before = self.received()
        wait_until(lambda: self.received() >= before + more, timeout, "the stream goes on")

    def end(self):
        """(sent, received, duplicated), with what is still under way given time to arrive."""
        self.guest.run("kill -INT $(cat /tmp/stream.pid)")
        self.job.wait()
        summary = self.guest.run("tail -3 /tmp/stream")
        sent, received = map(int, re.search(r"(\d+) packets transmitted, (\d+) received", summary).groups())
        duplicates = re.search(r"\+(\d+) duplicates", summary)
        return sent, received, int(duplicates.group(1)) if duplicates else 0


class RingTest(unittest.TestCase):
    def setUp(self):
        for guest in ring.guests.values():
            if not guest.alive():
                guest.boot()
        for guest in ring.guests.values():
            guest.ready()
        for a, b in ring.neighbours():
            ring.mend(a, b)
        for guest in ring.guests.values():
            if not guest.fabricd_runs():
                guest.start_fabricd()
        self.began = time.monotonic()
        took = ring.wait_for_all(120)
        print(f"[all pairs after {took:.0f} s] ", end="", file=sys.stderr, flush=True)

    def tearDown(self):
        print(f"[{time.monotonic() - self.began:.0f} s] ", end="", file=sys.stderr, flush=True)

    def run(self, result=None):
        before = len(result.failures) + len(result.errors) if result else 0
        outcome = super().run(result)
        if result and len(result.failures) + len(result.errors) > before:
            ring.keep_state()
            print(f"state and logs of the guests: {ring.logs}", file=sys.stderr)
        return outcome

    # --- a ring without configuration

    def test_01_every_pair_without_configuration(self):
        for guest in ring.guests.values():
            self.assertNotIn("softhca", guest.run("cat /proc/$(cat /run/fabricd.pid)/maps"))
            self.assertNotIn("--config", guest.run("tr '\\0' ' ' </proc/$(cat /run/fabricd.pid)/cmdline"))
            wait_until(lambda: guest.json("status")["hosts"] == {"known": HOSTS, "reachable": HOSTS},
                       what=f"{guest.name} knows all")
            wait_until(lambda: guest.json("status")["cables"] == {"total": 2, "connected": 2},
                       what=f"cables of {guest.name}")

    def test_02_ports_and_paths_are_shown(self):
        for k, name in enumerate(ring.names):
            for number in [1, 2]:
                entry = port(name, number)
                self.assertEqual(entry["link_layer"], "Ethernet")
                self.assertEqual((entry["device"], entry["device_port"]), (f"rxe{number - 1}", 1))
                self.assertEqual(entry["interface"], f"nic{number - 1}")
                self.assertEqual(entry["driver"], "rdma_rxe")
                self.assertEqual(entry["gid"], ring.link_local(name, number - 1))
                self.assertEqual(entry["mtu"], 4096)
                self.assertGreater(entry["rate"], 0)
                self.assertEqual(entry["phase"], "connected")
                self.assertEqual(entry["facts"]["interface_mtu"], "4500")
                self.assertEqual(entry["facts"]["gid_type"], "RoCE v2")
                other = ring.names[(k + (1 if number == 2 else -1)) % HOSTS]
                self.assertEqual((entry["neighbour"]["name"], entry["neighbour"]["port"]), (other, 3 - number))
            table = ring[name].run("fabricctl port")
            for word in ["Ethernet", "rdma_rxe", "rxe0/1", "nic1", "4096", "fe80::"]:
                self.assertIn(word, table)
        self.assertEqual(way("h1", "h2"), ["h1", "h2"])
        self.assertEqual(way("h1", f"h{HOSTS}"), ["h1", f"h{HOSTS}"])

    def test_03_bandwidth_and_latency_between_any_two(self):
        for source in ring.names:
            for destination in ring.names:
                if source == destination:
                    continue
                bandwidth = ring[source].json("bw", destination, "-n", "200")
                self.assertGreater(bandwidth["bandwidth"]["received_frames"], 100, bandwidth)
                latency = ring[source].json("lat", destination, "-n", "50")
                self.assertEqual((latency["latency"]["samples"], latency["lost"]), (50, 0), latency)

    def test_04_iperf_and_a_file_across_a_relay(self):
        ring.cut("h1", f"h{HOSTS}")
        last = f"h{HOSTS}"
        wait_until(lambda: way("h1", last) == ring.names, what="the way is over all hosts")
        guest, target = ring["h1"], ring[last]
        target.run("iperf3 -s -D -1 -I /tmp/iperf.pid; sleep 0.2")
        report = guest.run(f"iperf3 -c {ring.address(last)} -t 5 -J", timeout=120)
        self.assertNotIn('"error"', report)
        guest.run("head -c 67108864 /dev/urandom >/tmp/file; httpd -p 5000 -h /tmp")
        self.assertEqual(target.run(f"""wget -q -O /tmp/file http://{ring.address('h1')}:5000/file
                                        sha256sum </tmp/file""", timeout=180), guest.run("sha256sum </tmp/file"))
        for end in [guest, target]:
            self.assertEqual(end.run("stat -c %s /tmp/file; rm /tmp/file").strip(), "67108864")

    # --- faults. In each a stream runs from h1 to h2 over the cable that breaks.

    def break_and_heal(self, fault, heal, lossless, detectors):
        """The stream goes the other way round, and comes back; returns what was lost."""
        stream = Stream("h1", "h2")
        fault()
        wait_until(lambda: phase("h1", 2) != "connected", what="the fault is noticed")
        cable = port("h1", 2)
        self.assertIn(cable["last_detector"], detectors, cable)
        stream.flows()
        self.assertEqual(way("h1", "h2"), ["h1"] + ring.names[:1:-1] + ["h2"], "all the way round")
        heal()
        wait_for_phase("h1", 2, "connected")
        wait_until(lambda: way("h1", "h2") == ["h1", "h2"], what="the short way is back")
        stream.flows()
        sent, received, duplicated = stream.end()
        self.assertEqual(duplicated, 0)
        if lossless:
            self.assertEqual(received, sent)
        else:
            self.assertGreater(received, 0.7 * sent)
        return sent - received

    def test_05_announced_cut(self):
        self.break_and_heal(lambda: ring.cut("h1", "h2"), lambda: ring.mend("h1", "h2"), True, ["event", "peer"])

    def test_06_silent_cut(self):
        self.break_and_heal(lambda: ring.silence("h1", "h2"), lambda: ring.mend("h1", "h2"), False,
                            ["completion", "heartbeat"])

    def test_07_interface_down_and_up(self):
        self.break_and_heal(lambda: ring["h1"].run("ip link set nic1 down"),
                            lambda: ring["h1"].run("ip link set nic1 up"), False, ["event"])

    def test_08_address_removed_and_added(self):
        address = ring.link_local("h1", 1)
        reason = []

        def remove():
            ring["h1"].run(f"ip address del {address}/64 dev nic1")

        def add():
            reason.append(wait_for_phase("h1", 2, "configuring")["reason"])
            ring["h1"].run(f"ip address add {address}/64 dev nic1")

        self.break_and_heal(remove, add, False, ["event"])
        self.assertIn("nic1 has no IPv6 link-local address", reason[0])
        self.assertIn("sysctl net.ipv6.conf.nic1.disable_ipv6=0", reason[0])

    def test_09_daemon_killed(self):
        ring["h2"].stop_fabricd("KILL")
        others = [name for name in ring.names if name != "h2"]
        entry = wait_for_phase("h1", 2, "greeting")
        self.assertEqual(entry["last_detector"], "peer", "the kernel closes a dead program's connections")
        ring.wait_for_all(60, others)
        ring["h2"].start_fabricd()
        ring.wait_for_all(60)

    def test_10_guest_killed_and_rebooted(self):
        ring["h2"].kill()
        others = [name for name in ring.names if name != "h2"]
        wait_for_phase("h1", 2, "greeting")
        ring.wait_for_all(60, others)
        ring["h2"].boot()
        ring["h2"].ready()
        ring["h2"].start_fabricd()
        ring.wait_for_all(120)

    def test_11_mtu_is_followed(self):
        ring["h1"].run("ip link set nic1 mtu 1500")
        for name, number in [("h1", 2), ("h2", 1)]:
            wait_until(lambda: port(name, number)["facts"]["path_mtu"] == "1024", what="the smaller path MTU")
            wait_for_phase(name, number, "connected")
        ring.wait_for_all()
        ring["h1"].run("ip link set nic1 mtu 4500")
        for name, number in [("h1", 2), ("h2", 1)]:
            wait_until(lambda: port(name, number)["facts"]["path_mtu"] == "4096", what="the larger path MTU")
        ring.wait_for_all()

    # --- others beside fabricd

    def test_12_verbs_programs_beside_fabricd(self):
        ring["h1"].run("ip address replace 192.168.7.1/24 dev nic1")
        ring["h2"].run("ip address replace 192.168.7.2/24 dev nic0")
        here, there = [port(*end)["facts"]["gid_index"] for end in [("h1", 2), ("h2", 1)]]

        def pair(server, client, listening):
            job = ring["h2"].start(server)
            wait_until(lambda: job.future.done() or ring["h2"].status(listening)[0] == 0, what="the server listens")
            output = ring["h1"].run(client, timeout=120)
            job.wait(60)
            return output

        output = pair(f"ibv_rc_pingpong -d rxe0 -g {there} -e -n 200", f"ibv_rc_pingpong -d rxe1 -g {here} -e -n 200 "
                      "192.168.7.2", "netstat -lnt | grep -q :18515")
        self.assertIn("200 iters", output)
        output = pair(f"ib_send_bw -d rxe0 -x {there} -e -F -s 4096 -n 500", f"ib_send_bw -d rxe1 -x {here} -e -F "
                      "-s 4096 -n 500 192.168.7.2", "netstat -lnt | grep -q :18515")
        self.assertRegex(output, r"4096 +500 ")
        output = pair("rping -s -a 192.168.7.2 -C 20 -v", "rping -c -a 192.168.7.2 -C 20 -v",
                      "rdma resource show cm_id | grep -q 'state LISTEN.*192.168.7.2:7174'")
        self.assertIn("ping data: rdma-ping-19", output)
        self.assertEqual(ring.unreachable(), [])

    def test_13_a_neighbour_that_is_no_fabricd(self):
        ring["h2"].stop_fabricd()
        entry = wait_for_phase("h1", 2, "greeting")
        wait_until(lambda: "no fabricd announces itself" in port("h1", 2)["reason"], what="a sentence")
        for arguments, words in [("99", "stranger speaks version 99"), ("1 7", "in format 7")]:
            ring["h2"].run(f"announce nic0 {arguments} >/dev/null 2>&1 & echo $! >/tmp/announce.pid")
            entry = wait_for_phase("h1", 2, "refused")
            self.assertIn(words, entry["reason"])
            before = entry["counters"]["attempts"]
            ring["h2"].run("kill $(cat /tmp/announce.pid)")
            entry = wait_for_phase("h1", 2, "greeting")
            self.assertEqual(entry["counters"]["attempts"], before, "left alone")
        self.assertIn("stranger", ring["h1"].run("fabricctl log"))
        ring["h2"].start_fabricd()
        ring.wait_for_all()

    def test_14_a_switch_in_between(self):
        last = f"h{HOSTS}"
        guest = ring[last]
        guest.stop_fabricd()
        guest.run("""rdma link delete rxe0; rdma link delete rxe1
                     ip link add bridge0 type bridge; ip link set bridge0 mtu 4500 up
                     ip link set nic0 master bridge0; ip link set nic1 master bridge0
                     rdma link add rxe8 type rxe netdev bridge0""")
        try:
            guest.start_fabricd()
            for name, number in [(f"h{HOSTS - 1}", 2), ("h1", 1), (last, 1)]:
                self.assertIn("a switch is in between", wait_for_phase(name, number, "refused")["reason"])
            ring.wait_for_all(60, ring.names[:-1])  # over the other cables
        finally:
            guest.stop_fabricd()
            guest.run("""rdma link delete rxe8; ip link delete bridge0
                         rdma link add rxe0 type rxe netdev nic0; rdma link add rxe1 type rxe netdev nic1""")
        guest.start_fabricd()
        ring.wait_for_all()

    def test_15_a_cable_to_oneself(self):
        guest = ring["h1"]
        guest.run("""ip link add loop0 type veth peer name loop1
                     ip link set loop0 address 52:54:00:fb:00:00; ip link set loop1 address 52:54:00:fb:00:01
                     ip link set loop0 up; ip link set loop1 up
                     rdma link add rxe2 type rxe netdev loop0; rdma link add rxe3 type rxe netdev loop1""")
        try:
            guest.stop_fabricd()
            guest.start_fabricd()
            self.assertIn("goes to port 4 of this same host", wait_for_phase("h1", 3, "refused")["reason"])
            self.assertIn("goes to port 3 of this same host", wait_for_phase("h1", 4, "refused")["reason"])
            ring.wait_for_all()
        finally:
            guest.stop_fabricd()
            guest.run("rdma link delete rxe2; rdma link delete rxe3; ip link delete loop0")

    # --- what is missing is named

    def test_16_missing_module_and_adapter(self):
        guest = ring["h1"]
        guest.stop_fabricd()
        guest.run("rmmod rdma_ucm")
        guest.start_fabricd()
        self.assertIn("modprobe rdma_ucm", wait_for_phase("h1", 1, "no-device")["reason"])
        guest.run("insmod /modules/rdma_ucm.ko")
        ring.wait_for_all()

        guest.stop_fabricd()
        guest.run("rdma link delete rxe0; rdma link delete rxe1")
        guest.start_fabricd()
        wait_until(lambda: "no RDMA adapter" in guest.run("fabricctl log 2>&1 || true"), what="an event")
        guest.run("rdma link add rxe0 type rxe netdev nic0; rdma link add rxe1 type rxe netdev nic1")
        ring.wait_for_all()


if __name__ == "__main__":
    unittest.main()
