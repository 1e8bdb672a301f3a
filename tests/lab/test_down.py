"""Nothing of a lab stays behind."""

import os
import signal
import subprocess
import unittest
from pathlib import Path

from lab import Lab, leftovers, wait_until


def shared_memory():
    return set(os.listdir("/dev/shm"))


def devices():
    return set(os.listdir("/sys/class/net"))


class Down(unittest.TestCase):
    def setUp(self):
        self.before = shared_memory(), devices()

    def assert_gone(self, lab):
        self.assertEqual(leftovers(lab.name), [])
        self.assertEqual((shared_memory(), devices()), self.before)

    def members(self, lab):
        return [int(process.name) for process in Path("/proc").glob("[0-9]*")
                if f"FABRIC_LAB_MEMBER={lab.name}/".encode() in self.environment(process)]

    @staticmethod
    def environment(process):
        try:
            return (process / "environ").read_bytes()
        except OSError:
            return b""

    def test_after_up(self):
        lab = Lab(hosts=3).up()
        self.assertNotEqual(leftovers(lab.name), [], "the test sees nothing")
        lab.down()
        self.assert_gone(lab)

    def test_programs_on_hosts_end_too(self):
        lab = Lab(hosts=2).up()
        with lab.program("h1", "sh", "-c", "trap '' TERM HUP; sleep 1000 & echo; wait; wait") as shell:
            shell.stdout.readline()
            lab.down()
            self.assertEqual(shell.wait(timeout=10), -signal.SIGKILL)
        self.assert_gone(lab)

    def test_after_kill_of_everything(self):
        lab = Lab(hosts=3).up()
        pids = self.members(lab)
        self.assertEqual(len(pids), 4, "three daemons and the hardware")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.members(lab), what="the processes' end")
        lab.down()
        self.assert_gone(lab)

    def test_after_kill_of_the_hardware_alone(self):
        lab = Lab(hosts=3).up()
        pid = int((lab.directory / "softhca.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        lab.down()
        self.assert_gone(lab)

    def test_without_its_folder(self):
        lab = Lab(hosts=2).up()
        subprocess.run(["rm", "-rf", lab.directory], check=True)
        lab.down()
        self.assert_gone(lab)

    def test_in_the_middle_of_up(self):
        lab = Lab(hosts=5)
        up = subprocess.Popen([str(Path(os.environ.get("FABRIC_BUILD", "build"), "fabric-lab")), "up"],
                              env=lab.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: (lab.directory / "h2" / "fabricd.pid").exists(), what="the second daemon's start",
                   interval=0.001)
        up.kill()
        up.wait()
        lab.down()
        self.assert_gone(lab)

    def test_twice(self):
        lab = Lab(hosts=2).up()
        lab.down()
        lab.down()
        self.assert_gone(lab)

    def test_a_daemon_that_stops_removes_its_device_and_routes(self):
        with Lab(hosts=2) as lab:
            self.assertIn("fab0", lab.run("h1", "ls", "/sys/class/net").stdout)
            os.kill(lab.fabricd_pid("h1"), signal.SIGTERM)
            wait_until(lambda: lab.fabricd_pid("h1") is None, what="the daemon's end")
            self.assertEqual(lab.run("h1", "ls", "/sys/class/net").stdout.split(), ["lo"])
            self.assertEqual(lab.run("h1", "ip", "route").stdout, "")
            self.assertFalse((lab.directory / "h1" / "fabricd.sock").exists())


if __name__ == "__main__":
    unittest.main(verbosity=2)
