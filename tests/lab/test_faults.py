"""Cables are cut, hosts lose power, daemons are killed, under traffic: it goes on, the other way."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import unittest

from lab import HERE, Lab, wait_until

TRANSFER = HERE / "transfer.py"
SEED = int(os.environ.get("FABRIC_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
CUTS = int(os.environ.get("FABRIC_CUTS", "100"))


class Ping:
    """ping -i 0.01 in the background; what has been answered can be asked while it runs."""

    def __init__(self, lab, source, target):
        self.process = subprocess.Popen(lab._on(source, ["ping", "-n", "-i", "0.01", "-W", "2", target]), env=lab.env,
                                        stdout=subprocess.PIPE, text=True)
        self.answered = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        self.summary = ""
        for line in self.process.stdout:
            if found := re.search(r"icmp_seq=(\d+) ttl", line):
                self.answered.append(int(found[1]))
            else:
                self.summary += line

    def wait_for_more(self, count=20):
        """Waits until another `count` requests have been answered."""
        goal = len(self.answered) + count
        wait_until(lambda: len(self.answered) >= goal, what=f"{count} more echo replies")

    def stop(self):
        """Ends it; returns how many requests were sent and never answered."""
        self.process.send_signal(signal.SIGINT)
        self.reader.join()
        self.process.wait(timeout=10)
        self.process.stdout.close()
        sent = int(re.search(r"(\d+) packets transmitted", self.summary)[1])
        return sent, sent - len(set(self.answered))


class Stream:
    """Files by TCP in the background, one after the other, each with its hash."""

    def __init__(self, lab, source, target, port, size=16 << 20, seed=1):
        self.name = f"{source} to {target}"
        self.files, self.received = [], []
        self.receiver = subprocess.Popen(lab._on(target, ["python3", str(TRANSFER), "receive-files", str(port)]),
                                         env=lab.env, stdout=subprocess.PIPE, text=True)
        assert "listening" in self.receiver.stdout.readline()
        self.sender = subprocess.Popen(
            lab._on(source, ["python3", str(TRANSFER), "send-files", target, str(port), str(size), str(seed)]),
            env=lab.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.threads = [threading.Thread(target=self._read, args=(self.sender.stdout, self.files)),
                        threading.Thread(target=self._read, args=(self.receiver.stdout, self.received))]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def _read(stream, into):
        for line in stream:
            into.append(json.loads(line))

    def wait_for_more(self, count=1, timeout=30):
        goal = len(self.files) + count
        wait_until(lambda: len(self.files) >= goal or self.sender.poll() is not None, timeout,
                   what=f"{count} more files, {self.name}")
        assert len(self.files) >= goal, f"the sender {self.name} has ended"

    def stop(self):
        self.sender.stdin.close()
        self.sender.wait(timeout=60)
        self.threads[0].join()
        wait_until(lambda: len(self.received) >= len(self.files), what="the receiver's last word")
        self.kill()
        return self.files, self.received

    def kill(self):
        for process in (self.sender, self.receiver):
            process.kill()
            process.wait()
        for thread in self.threads:
            thread.join()
        for pipe in (self.sender.stdin, self.sender.stdout, self.receiver.stdout):
            pipe.close()


class Faults(unittest.TestCase):
    def setUp(self):
        self.lab = Lab(hosts=5)
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(self.lab)
        self.addCleanup(self.stack.close)

    def ping(self, source, target):
        ping = Ping(self.lab, source, target)
        self.addCleanup(ping.process.kill)
        ping.wait_for_more()
        return ping

    def stream(self, source, target, port, **options):
        stream = Stream(self.lab, source, target, port, **options)
        self.addCleanup(stream.kill)
        stream.wait_for_more()
        return stream

    def assert_right(self, stream):
        sent, received = stream.stop()
        self.assertGreater(len(sent), 0)
        self.assertTrue(all(file["match"] for file in sent))
        self.assertEqual([file["sha256"] for file in sent], [file["sha256"] for file in received][:len(sent)])

    def cut_and_mend(self, silent):
        lab = self.lab
        lab.wait_for_path("h1", "h2")
        ping, stream = self.ping("h1", "h2"), self.stream("h1", "h2", 7100)
        lab.cut("h1", "h2", silent)
        lab.wait_for_path("h1", "h5", "h4", "h3", "h2")
        ping.wait_for_more()
        stream.wait_for_more()
        lab.mend("h1", "h2")
        lab.wait_for_path("h1", "h2")
        ping.wait_for_more()
        stream.wait_for_more()
        sent, lost = ping.stop()
        self.assert_right(stream)
        return sent, lost

    def test_announced_cut(self):
        sent, lost = self.cut_and_mend(silent=False)
        print(f"announced cut: {lost} of {sent} pings lost", file=sys.stderr)
        self.assertLessEqual(lost, 1)

    def test_silent_cut(self):
        sent, lost = self.cut_and_mend(silent=True)
        print(f"silent cut: {lost} of {sent} pings lost", file=sys.stderr)
        self.assertLessEqual(lost, 20)

    def transit(self, fail, repair, allowed):
        """h2 is on the way from h1 to h3; something happens to it, and is undone."""
        lab = self.lab
        lab.wait_for_path("h1", "h2", "h3")
        ping, stream = self.ping("h1", "h3"), self.stream("h1", "h3", 7200)
        fail()
        lab.wait_for_path("h1", "h5", "h4", "h3")
        ping.wait_for_more()
        stream.wait_for_more()
        repair()
        lab.wait_for_path("h1", "h2", "h3")
        ping.wait_for_more()
        stream.wait_for_more()
        sent, lost = ping.stop()
        print(f"{self.id().split('.')[-1]}: {lost} of {sent} pings lost", file=sys.stderr)
        self.assertLessEqual(lost, allowed)
        self.assert_right(stream)
        # It is one of them again: everybody reaches it, and it has kept its address.
        for host in ("h1", "h5"):
            lab.run(host, "ping", "-c", "1", "-W", "5", "h2")
        lab.run("h2", "ping", "-c", "1", "-W", "5", "h4")

    def test_transit_host_loses_power(self):
        self.transit(lambda: self.lab.kill("h2"), lambda: self.lab.start("h2"), allowed=10)

    def test_transit_host_loses_power_silently(self):
        self.transit(lambda: self.lab.kill("h2", silent=True), lambda: self.lab.start("h2"), allowed=25)

    def test_daemon_of_transit_host_is_killed(self):
        self.transit(lambda: os.kill(self.lab.fabricd_pid("h2"), signal.SIGKILL), lambda: self.lab.start("h2"),
                     allowed=25)

    def test_hashes_through_random_cuts_and_mends(self):
        print(f"seed {SEED} (FABRIC_SEED repeats it), {CUTS} cuts", file=sys.stderr)
        chance = random.Random(SEED)
        cables = [("h1", "h2"), ("h2", "h3"), ("h3", "h4"), ("h4", "h5"), ("h5", "h1")]
        streams = [self.stream("h1", "h3", 7300, size=1 << 20, seed=SEED),
                   self.stream("h4", "h2", 7301, size=1 << 20, seed=SEED + 1)]
        for number in range(CUTS):
            # One cable at a time, and now and then a second one, which parts the ring for a moment.
            cut = chance.sample(cables, 2 if chance.random() < 0.1 else 1)
            for cable in cut:
                self.lab.cut(*cable, silent=chance.random() < 0.3)
            with self.subTest(number=number, cut=cut):
                if len(cut) == 1:
                    for stream in streams:
                        stream.wait_for_more()
                for cable in chance.sample(cut, len(cut)):
                    self.lab.mend(*cable)
                for stream in streams:
                    stream.wait_for_more()
        for stream in streams:
            self.assert_right(stream)


if __name__ == "__main__":
    unittest.main(verbosity=2)
