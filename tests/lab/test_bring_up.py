"""A lab comes up, and every host reaches every other: by address and by name, IPv4 and IPv6."""

import os
import subprocess
import sys
import tempfile
import unittest

from lab import BUILD, Lab


def ping_every_pair(test, lab):
    """Every host pings all others, four ways. All hosts at once, each one after the other."""
    script = """
    for target in "$@"; do
      case $target in *:*) family=-6 ;; *.*) family=-4 ;; 6h*) family=-6 target=${target#6} ;; *) family=-4 ;; esac
      ping $family -q -n -c 1 -W 5 "$target" > /dev/null && echo "ok $target" || echo "FAILED $family $target"
    done
    """
    running = {}
    for host in lab.hosts:
        others = [other for other in lab.hosts if other != host]
        targets = [target for other in others
                   for target in (lab.address(other), lab.address(other, 6), other, "6" + other)]
        running[host] = (len(targets), subprocess.Popen(
            [BUILD / "fabric-lab", "exec", host, "--", "sh", "-c", script, "sh", *targets],
            env=lab.env, stdout=subprocess.PIPE, text=True))
    for host, (count, process) in running.items():
        output, _ = process.communicate(timeout=180)
        lines = output.splitlines()
        test.assertEqual([line for line in lines if not line.startswith("ok ")], [], f"from {host}")
        test.assertEqual(len(lines), count, f"from {host}")


class BringUp(unittest.TestCase):
    def check(self, hosts, shape):
        with Lab(hosts=hosts, shape=shape) as lab:
            print(f"{shape} of {hosts}: ready after {lab.ready_ms:.0f} ms", file=sys.stderr)
            self.assertEqual(lab.hosts, [f"h{k}" for k in range(1, hosts + 1)])
            self.assertGreater(lab.ready_ms, 0)
            ping_every_pair(self, lab)

    def test_ring_of_2(self):
        self.check(2, "ring")

    def test_ring_of_3(self):
        self.check(3, "ring")

    def test_ring_of_4(self):
        self.check(4, "ring")

    def test_ring_of_5(self):
        self.check(5, "ring")

    def test_ring_of_8(self):
        self.check(8, "ring")

    def test_ring_of_16(self):
        self.check(16, "ring")

    def test_chain_of_2(self):
        self.check(2, "chain")

    def test_chain_of_5(self):
        self.check(5, "chain")

    def test_five_hosts_in_two_seconds(self):
        # The promise holds for an idle machine, which a test cannot know it has: the best of five counts.
        times = []
        for _ in range(5):
            with Lab(hosts=5) as lab:
                times.append(lab.ready_ms)
            if times[-1] < 2000:
                break
        self.assertLess(min(times), 2000, f"milliseconds: {times}")


class TellsSystemd(unittest.TestCase):
    def test_both_kinds_of_address(self):
        listen = (r"import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)" "\n"
                  r"s.bind(sys.argv[1].replace('@', '\0')); print('bound', flush=True)" "\n"
                  r"while True: print(s.recv(4096).decode().split('\n'), flush=True)")
        with Lab(hosts=2, fabricd=False) as lab, tempfile.TemporaryDirectory() as directory:
            for address in f"{directory}/notify", "@fabricd-test":
                with lab.program("h1", sys.executable, "-c", listen, address) as listener:
                    self.assertEqual(listener.stdout.readline(), "bound\n")
                    with lab.program("h1", "env", f"NOTIFY_SOCKET={address}", BUILD / "fabricd", "--state", directory,
                                     "--socket", f"{directory}/control", stderr=subprocess.PIPE) as daemon:
                        self.assertEqual(listener.stdout.readline(), "['READY=1', 'STATUS=Looking for an adapter']\n")
                        self.assertEqual(listener.stdout.readline(), "['STATUS=Running with 2 ports']\n")
                        daemon.terminate()
                        line = "['STATUS=Running with 2 ports']\n"
                        while line == "['STATUS=Running with 2 ports']\n":
                            line = listener.stdout.readline()
                        self.assertEqual(line, "['STOPPING=1']\n")
                        self.assertEqual(daemon.wait(timeout=20), 0)


class HostsFeelLikeHosts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab(hosts=2)
        cls.lab.up()

    @classmethod
    def tearDownClass(cls):
        cls.lab.down()

    def test_exit_status_and_streams_pass_through(self):
        result = self.lab.run("h2", "sh", "-c", "cat; echo oops >&2; exit 7", stdin="hello", check=False)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (7, "hello", "oops\n"))

    def test_signals_reach_the_program(self):
        with self.lab.program("h1", "sh", "-c", "trap 'echo got it; exit 3' TERM; echo ready; while :; do read x; done",
                              stdin=subprocess.PIPE) as shell:
            self.assertEqual(shell.stdout.readline(), "ready\n")
            shell.terminate()
            shell.stdin.write("\n")
            shell.stdin.flush()
            self.assertEqual(shell.stdout.readline(), "got it\n")
            self.assertEqual(shell.wait(timeout=10), 3)

    def test_terminal(self):
        # script(1) gives the program a terminal; exec must hand it on.
        result = subprocess.run(["script", "-qec", f"{BUILD}/fabric-lab exec h1 -- tty", "/dev/null"],
                                env=self.lab.env, capture_output=True, text=True, timeout=30,
                                stdin=subprocess.DEVNULL)
        self.assertRegex(result.stdout, r"^/dev/pts/\d+")

    def test_names(self):
        self.assertEqual(self.lab.run("h2", "hostname").stdout, "h2\n")
        resolved = self.lab.run("h1", "getent", "ahosts", "h2").stdout
        self.assertIn(self.lab.address("h2"), resolved)
        self.assertIn(self.lab.address("h2", 6), resolved)

    def test_devices_are_the_hosts_own(self):
        self.assertEqual(set(os.listdir("/sys/class/net")) & {"fab0"}, set(), "fab0 outside of the hosts")
        self.assertEqual(self.lab.run("h1", "ls", "/sys/class/net").stdout.split(), ["fab0", "lo"])

    def test_namespace_is_visible(self):
        listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        self.assertIn(f"{self.lab.name}-h1", listed)

    def test_program_that_is_not_there(self):
        result = self.lab.run("h1", "no-such-program", check=False)
        self.assertEqual(result.returncode, 127)
        self.assertIn("no-such-program", result.stderr)

    def test_host_that_is_not_there(self):
        result = self.lab.run("h3", "true", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("only h1, h2", result.stderr)

    def test_second_up_says_what_to_do(self):
        result = self.lab.lab("up", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("fabric-lab down", result.stderr)

    def test_status(self):
        status = self.lab.status()
        self.assertEqual(status["schema"], 1)
        self.assertEqual([host["power"] for host in status["hosts"]], [True, True])
        self.assertEqual([cable["state"] for cable in status["cables"]], ["up", "up"])
        self.assertIn("h2/1", self.lab.lab("status").stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
