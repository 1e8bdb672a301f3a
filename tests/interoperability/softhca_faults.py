"""Faults by command: what programs and counters see of each. docs/softhca.md says what real event each stands for.

Delays and rates are measured against bounds that a busy machine cannot break: nothing is faster than the fault allows.
"""

import os
import re
import subprocess
import time
import unittest

import softhca_lab
from softhca_lab import Lab, TwoHosts, fields, free_port, listening, port_guid, wait_for


class Faults(unittest.TestCase):
    def setUp(self):
        self.lab = self.enterContext(Lab())

    def states(self):
        return self.lab.port("h1/2")["state"], self.lab.port("h2/1")["state"]

    def query(self, **expect):
        return self.lab.run("h1", "smpquery", "-t", "50", "-P", "2", "-D", "nodeinfo", "0,2", **expect)

    def test_cut_and_mend(self):
        self.lab.opensm(1, 2)
        self.lab.control("cut", a="h2", b="h1")
        self.assertEqual(self.states(), ("Down", "Down"))
        self.assertEqual(self.lab.control("status")["cables"], [{"a": "h1/2", "b": "h2/1", "state": "cut", "blocked": [], "faults": {}}])
        self.query(status=1)
        self.lab.control("mend", a="h1/2", b="h2/1")
        # Without a trap OpenSM waits for its sweep timer; the link is there at once.
        self.assertEqual(self.lab.port("h2/1")["physical"], "LinkUp")
        self.query()
        self.assertEqual(self.lab.port("h1/2")["counters"]["link_downed"], 1)

    def test_silent_cut(self):
        self.lab.opensm(1, 2)
        self.lab.control("cut", a="h1", b="h2", silent=True)
        self.assertEqual(self.states(), ("Active", "Active"))
        self.query(status=1)
        self.lab.control("mend", a="h1", b="h2")
        self.assertEqual(self.states(), ("Active", "Active"))
        self.query()

    def test_one_way_cable(self):
        self.lab.control("block", **{"from": "h2/1"})
        self.query(status=1)
        self.assertEqual(self.lab.port("h2/1")["counters"]["rcv_packets"],
                         self.lab.port("h1/2")["counters"]["xmit_packets"])
        self.assertEqual(self.lab.port("h1/2")["counters"]["rcv_packets"], 0)
        self.lab.control("block", **{"from": "h2/1", "on": False})
        self.query()

    def test_power(self):
        self.lab.opensm(1, 2)
        self.lab.control("power", host="h2", on=False)
        self.assertEqual(self.lab.port("h1/2")["state"], "Down")
        self.assertIn("Host is down", self.lab.run("h2", "ibstat", status=1))
        self.lab.control("power", host="h2", on=True)
        self.assertEqual(self.lab.port("h2/1")["lid"], 0)
        self.assertEqual(self.lab.port("h2/1")["physical"], "LinkUp")
        self.query()

    def test_silent_death(self):
        self.lab.opensm(1, 2)
        self.lab.control("power", host="h2", on=False, silent=True)
        self.assertEqual(self.lab.port("h1/2")["state"], "Active")
        self.query(status=1)
        self.lab.control("power", host="h2", on=True)
        self.assertEqual(self.lab.port("h1/2")["counters"]["link_downed"], 1)
        self.query()

    def test_plug(self):
        self.lab.control("plug", a="h1/2", b="h1/1")
        self.assertEqual(self.lab.port("h2/1")["physical"], "Polling")
        peer = fields(self.lab.run("h1", "smpquery", "-P", "2", "-D", "nodeinfo", "0,2"))
        self.assertEqual(int(peer["PortGuid"], 16), port_guid(1, 1))
        self.lab.control("unplug", end="h1/1")
        self.assertEqual(self.lab.port("h1/2")["physical"], "Polling")

    def test_loss(self):
        self.lab.control("faults", end="h2/1", loss_ppm=500000)
        for _ in range(10):  # each of several tries is answered with probability one half
            self.lab.status("h1", "smpquery", "-t", "20", "-P", "2", "-D", "nodeinfo", "0,2")
        sent = self.lab.port("h2/1")["counters"]["xmit_packets"]
        arrived = self.lab.port("h1/2")["counters"]["rcv_packets"]
        self.assertTrue(0 < arrived < sent, (arrived, sent))

    def test_delay(self):
        self.lab.control("faults", end="h2/1", delay_us=100000)
        began = time.monotonic()
        self.lab.run("h1", "smpquery", "-t", "1000", "-P", "2", "-D", "nodeinfo", "0,2")
        self.assertGreaterEqual(time.monotonic() - began, 0.1)
        self.lab.control("faults", end="h2/1")
        self.assertEqual(self.lab.port("h1/2")["counters"]["rcv_packets"],
                         self.lab.port("h1/2")["counters"]["xmit_packets"])

    def test_description(self):
        self.lab.control("describe", host="h2", text="a host in the corner")
        self.assertRegex(self.lab.run("h1", "smpquery", "-P", "2", "-D", "nodedesc", "0,2"),
                         r"^Node Description:\.+a host in the corner\n$")


class Data(TwoHosts):
    """What faults do to data: the verbs programs of h1 and h2, over one cable."""
    # No sweeps: one that met a silent cable would take the other end for gone, and bring it up anew afterwards.
    MANAGER_OPTIONS = ("-s", "0")

    def setUp(self):
        self.addCleanup(self.lab.control, "faults", a="h1", b="h2")

    def counter(self, end, name):
        return self.lab.port(end)["counters"][name]

    def figure(self, text, column):
        """A figure of perftest's only row."""
        row = re.findall(r"^ \d+ +\d+ .*$", text, re.MULTILINE)
        self.assertEqual(len(row), 1, text)
        return float(row[0].split()[column])

    def test_delay(self):
        """Half a round trip takes the mean of the two directions' delays, at least."""
        self.lab.control("faults", end="h1/2", delay_us=3000)
        self.lab.control("faults", end="h2/1", delay_us=1000)
        for program in "ib_send_lat", "ib_write_lat":
            text, _ = self.pair(program, "-F", "-n", "20")
            self.assertGreaterEqual(self.figure(text, 2), 2000, text)  # t_min
            self.assertGreaterEqual(self.figure(text, 4), 2000, text)  # t_typical
        text, _ = self.pair("ib_read_lat", "-F", "-n", "20")
        self.assertGreaterEqual(self.figure(text, 2), 4000, text)  # there and back

    def test_rate(self):
        """80 Mb/s are 9.54 MiB/s, headers included; the other direction is as fast as ever."""
        self.lab.control("faults", end="h2/1", rate_mbps=80)
        for program in "ib_write_bw", "ib_send_bw":
            text, _ = self.pair(program, "-F", "-n", "30")
            self.assertLessEqual(self.figure(text, 3), 9.54, text)
            self.assertGreater(self.figure(text, 3), 1, text)
        text, _ = self.pair("ib_write_bw", "-F", "-n", "30", "--reversed")
        self.assertGreater(self.figure(text, 3), 9.54, text)

    def test_loss(self):
        """Reliable connections send again what was lost; datagrams and unreliable ones do without."""
        names = "xmit_packets", "rcv_packets"
        before = [self.counter(end, name) for end in ("h1/2", "h2/1") for name in names]
        self.lab.control("faults", a="h1", b="h2", loss_ppm=20_000)
        for text in self.pair("ibv_rc_pingpong", "-c", "-n", "500"):
            self.assertIn("500 iters in", text)  # -c: with the right content
        after = [self.counter(end, name) for end in ("h1/2", "h2/1") for name in names]
        sent_1, received_1, sent_2, received_2 = (a - b for a, b in zip(after, before))
        self.assertGreater(sent_1, received_2)  # lost packets were sent
        self.assertGreater(sent_2, received_1)

    def test_loopback(self):
        """What a port sends to itself is on no cable: nothing of it is lost, though the cable loses everything."""
        self.lab.control("faults", a="h1", b="h2", loss_ppm=1_000_000)
        common = "ibv_rc_pingpong", "-d", "softhca0", "-i", "2", "-c", "-n", "500", "-p", str(port := free_port())
        server = self.lab.start("h1", *common)
        wait_for(lambda: listening(port), "the server listens")
        self.assertIn("500 iters in", self.lab.run("h1", *common, "localhost"))
        self.assertEqual(server.wait(softhca_lab.DEADLINE), 0)

    def test_corruption(self):
        """A packet with bit errors is dropped by whoever receives it, and counted there."""
        before = self.counter("h1/2", "rcv_errors"), self.counter("h2/1", "rcv_errors")
        self.lab.control("faults", end="h2/1", corrupt_ppm=20_000)
        for text in self.pair("ibv_rc_pingpong", "-c", "-n", "500"):
            self.assertIn("500 iters in", text)
        self.assertGreater(self.counter("h1/2", "rcv_errors"), before[0])
        self.assertEqual(self.counter("h2/1", "rcv_errors"), before[1])

    def refuse(self):
        """Traffic over a cable that does not carry it ends with transport retry exceeded (12)."""
        port = free_port()
        common = "ibv_rc_pingpong", "-d", "softhca0", "-p", str(port), "-n", "10"
        server = self.lab.start("h1", *common, "-i", "2")
        wait_for(lambda: listening(port), "the server listens")
        text = self.lab.run("h2", *common, "-i", "1", "localhost", status=1)
        self.assertIn("transport retry counter exceeded (12)", text)
        self.lab.stop(server)  # it waits for a message

    def test_one_way(self):
        """Either direction is enough to end a reliable connection: what is not acknowledged has not arrived."""
        for end in "h1/2", "h2/1":
            self.lab.control("block", **{"from": end})
            self.refuse()
            self.lab.control("block", **{"from": end}, on=False)
            self.assertIn("10 iters in", self.pair("ibv_rc_pingpong", "-n", "10")[0])

    def test_one_way_answers(self):
        """What a READ brings back is sent, and does not arrive."""
        port = free_port()
        common = "ib_read_bw", "-F", "-d", "softhca0", "-p", str(port), "-D", "60"
        server = self.lab.start("h1", *common, "-i", "2")
        wait_for(lambda: listening(port), "the server listens")
        begin = self.counter("h2/1", "rcv_packets")
        client = self.lab.start("h2", *common, "-i", "1", "localhost", output=subprocess.PIPE)
        wait_for(lambda: self.counter("h2/1", "rcv_packets") > begin + 1000, "traffic flows")
        self.lab.control("block", **{"from": "h1/2"})
        self.addCleanup(self.lab.control, "block", **{"from": "h1/2", "on": False})
        self.assertIn("Failed status 12", "".join(client.communicate(timeout=softhca_lab.DEADLINE)))
        # 64 KiB are sixteen packets, sent eight times; what else may be lost are some MADs.
        lost = self.counter("h1/2", "xmit_packets") - self.counter("h2/1", "rcv_packets")
        self.assertGreaterEqual(lost, 8 * 16)
        self.lab.stop(server)

    def test_silent_cut(self):
        self.lab.control("cut", a="h1", b="h2", silent=True)
        self.refuse()
        self.assertEqual(self.lab.port("h1/2")["state"], "Active")
        self.lab.control("mend", a="h1", b="h2")
        self.assertIn("10 iters in", self.pair("ibv_rc_pingpong", "-n", "10")[0])


class EndOfTraffic(unittest.TestCase):
    """Traffic without end, and what ends it: the peer's process, or the state of a port."""

    def setUp(self):
        self.lab = self.enterContext(Lab())
        self.manager = self.lab.opensm(1, 2)
        port = free_port()
        common = "ib_write_bw", "-F", "-d", "softhca0", "-p", str(port), "-D", "60"
        self.server = self.lab.start("h1", *common, "-i", "2")
        wait_for(lambda: listening(port), "the server listens")
        before = self.lab.port("h1/2")["counters"]["rcv_packets"]
        self.client = self.lab.start("h2", *common, "-i", "1", "localhost", output=subprocess.PIPE)
        wait_for(lambda: self.lab.port("h1/2")["counters"]["rcv_packets"] > before + 1000, "traffic flows")

    def expect_retry_exceeded(self):
        text = "".join(self.client.communicate(timeout=softhca_lab.DEADLINE))
        self.assertIn("Failed status 12", text)
        self.assertNotEqual(self.client.returncode, 0)

    def test_peer_dies(self):
        self.server.kill()
        self.expect_retry_exceeded()
        wait_for(lambda: sum(len(host["clients"]) for host in self.lab.control("status")["hosts"]) == 1,
                 "only OpenSM is left")

    def test_peer_loses_its_adapter(self):
        """The adapter that is put in again knows nothing of the queue pair."""
        self.lab.control("remove", host="h1")
        self.lab.control("insert", host="h1")
        self.lab.stop(self.manager)
        self.lab.opensm(1, 2)
        self.expect_retry_exceeded()

    def test_own_power_is_cut(self):
        """The queues of a process are its own until it ends, whatever becomes of the adapter."""
        self.lab.control("power", host="h2", on=False)
        self.expect_retry_exceeded()
        self.assertGreater(self.client.returncode, 0)

    def test_port_leaves_active(self):
        """After a flap the link is there at once, but the ports are in Initialize: data does not pass."""
        self.lab.stop(self.manager)
        self.lab.control("flap", end="h1/2")
        wait_for(lambda: self.lab.port("h2/1")["state"] == "Init", "the link comes back")
        self.expect_retry_exceeded()


class Events(unittest.TestCase):
    """What ibv_asyncwatch sees."""

    def setUp(self):
        self.lab = self.enterContext(Lab())
        self.manager = self.lab.opensm(1, 2)
        self.watch = self.lab.start("h2", "ibv_asyncwatch", "-d", "softhca0", output=subprocess.PIPE)
        self.assertIn("async event FD", self.watch.stdout.readline())

    def expect(self, event):
        for line in self.watch.stdout:
            if event in line:
                return
        self.fail(f"ibv_asyncwatch ended without {event}")

    def test_flap(self):
        downs = self.lab.port("h2/1")["counters"]["link_downed"]
        self.lab.control("flap", end="h1/2", ms=30)
        self.expect("IBV_EVENT_PORT_ERR (10), port 1")
        wait_for(lambda: self.lab.port("h2/1")["state"] == "Init", "the link comes back")
        for end in "h1/2", "h2/1":
            self.assertEqual(self.lab.port(end)["counters"]["link_downed"], downs + 1)

    def test_flaps_again_and_again(self):
        """Each of many flaps is seen, by both ends, and the last one heals."""
        for _ in range(20):
            self.lab.control("flap", a="h1", b="h2", ms=1)
            wait_for(lambda: self.lab.port("h2/1")["state"] == "Init", "the link comes back")
        self.assertEqual(self.lab.port("h1/2")["counters"]["link_downed"], 20)

    def test_reset(self):
        self.lab.control("reset", host="h2", ms=10)
        self.expect("IBV_EVENT_DEVICE_FATAL")
        wait_for(lambda: self.lab.port("h1/2")["state"] == "Init", "the adapter starts anew")
        port = self.lab.port("h2/1")
        self.assertEqual((port["state"], port["lid"], port["sm_lid"]), ("Init", 0, 0))


class Removal(unittest.TestCase):
    """An adapter is taken out, and put in again, while programs use it."""

    def setUp(self):
        self.lab = self.enterContext(Lab())
        self.manager = self.lab.opensm(1, 2)

    def remove_under(self, again=False, **environment):
        """Takes the adapter of h2 out while verbs_removed uses it; what that has to say of it."""
        program = subprocess.Popen([os.path.join(self.lab.build, "tests", "verbs_removed"), "softhca0/1"],
                                   env=self.lab.environment("h2") | environment, text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.lab.processes.append(program)
        self.assertEqual(program.stdout.readline(), "ready\n")
        self.lab.control("remove", host="h2")
        if again:
            self.lab.control("insert", host="h2")
            self.activate()
        said, _ = program.communicate("go\n", timeout=softhca_lab.DEADLINE)
        self.assertEqual((said, program.returncode), ("done\n", 0))

    def activate(self):
        self.lab.stop(self.manager)
        self.manager = self.lab.opensm(1, 2)

    def test_what_is_open_is_dead(self):
        self.remove_under()

    def test_what_is_open_stays_dead_when_the_adapter_is_back(self):
        self.remove_under(again=True, RDMAV_ALLOW_DISASSOC_DESTROY="1")

    def test_what_the_tools_see(self):
        self.assertIn("softhca0", self.lab.run("h2", "ibv_devices"))
        self.lab.control("remove", host="h2")
        self.assertNotIn("softhca0", self.lab.run("h2", "ibv_devices"))
        self.assertEqual(self.lab.run("h2", "ibstat", "-l"), "")
        self.assertEqual(self.lab.run("h2", "ls", "/sys/class/infiniband"), "")
        self.lab.run("h2", "smpquery", "-D", "nodeinfo", "0", status=1)
        self.assertEqual((self.lab.port("h1/2")["state"], self.lab.port("h2/1")["state"]), ("Down", "Down"))
        self.lab.control("insert", host="h2")
        self.activate()
        self.assertIn("State: Active", self.lab.run("h2", "ibstat", "softhca0", "1"))
        self.lab.run("h2", "smpquery", "-D", "nodeinfo", "0,1")

    def test_subnet_manager_goes_with_its_adapter(self):
        """Its IsSM bit too, also when the adapter is back and it has not noticed."""
        self.lab.stop(self.manager)
        self.lab.opensm(2, 1)
        wait_for(lambda: self.lab.port("h2/1")["issm"], "OpenSM says that it is there")
        self.lab.control("remove", host="h2")
        self.lab.control("insert", host="h2")
        self.assertFalse(self.lab.port("h2/1")["issm"])
        wait_for(lambda: self.lab.port("h2/1")["state"] == "Init", "the adapter starts anew")


class LabFiles(unittest.TestCase):
    """What is wrong with a lab file is said with its place, and nothing is left behind."""

    def test_errors(self):
        host = '{"name": "a", "hcas": [{"ports": 2}]}'
        for text, words in (
                ("", "not JSON"),
                ('{"hosts": []}', '"cables" is missing'),
                (f'{{"hosts": [{host}], "cables": [["a/1", "a/3"]]}}', 'cables[0]: end "a/3": the HCA has no such port'),
                (f'{{"hosts": [{host}], "cables": [["a/1", "b/1"]]}}', 'cables[0]: there is no host "b"'),
                (f'{{"hosts": [{host}], "cables": [], "colour": 1}}', 'unknown key "colour"')):
            with self.subTest(text):
                with softhca_lab.tempfile.TemporaryDirectory() as directory:
                    path = os.path.join(directory, "lab.json")
                    with open(path, "w", encoding="utf-8") as file:
                        file.write(text)
                    result = subprocess.run([os.path.join(softhca_lab.BUILD, "softhca"), "--lab", path, "--socket",
                                             os.path.join(directory, "hca")], capture_output=True, text=True,
                                            timeout=30, check=False)
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertIn(f"softhca: {path}: ", result.stderr)
                    self.assertIn(words, result.stderr)
                    self.assertEqual(os.listdir(directory), ["lab.json"])


if __name__ == "__main__":
    softhca_lab.main()
