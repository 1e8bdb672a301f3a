"""`cmake --install` puts everything where it belongs, and systemd has nothing to say against the unit."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

BUILD = Path(os.environ["FABRIC_BUILD"])


class InstallTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.root = Path(self.directory.name)
        self.install()

    def install(self):
        subprocess.run(["cmake", "--install", BUILD, "--prefix", "/usr/local"], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "DESTDIR": str(self.root)})

    def run_quietly(self, *command):
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_files(self):
        files = {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}
        documents = {f"usr/local/share/doc/fabric/{name}.md"
                     for name in ["configuration", "ethernet", "fabricctl", "hardware"]}
        self.assertEqual(files, documents | {"usr/local/sbin/fabricd", "usr/local/bin/fabricctl",
                                             "usr/local/lib/systemd/system/fabricd.service",
                                             "etc/fabricd/fabricd.toml"})

    def test_configuration_is_good_and_never_replaced(self):
        file = self.root / "etc/fabricd/fabricd.toml"
        self.run_quietly(self.root / "usr/local/sbin/fabricd", "--config", file, "--check")
        file.write_text("# a host's own\n")
        self.install()
        self.assertEqual(file.read_text(), "# a host's own\n")

    def test_unit(self):
        unit = (self.root / "usr/local/lib/systemd/system/fabricd.service").read_text()
        # What it names is under another root here.
        for path in ["/usr/local/sbin/fabricd", "/etc/fabricd/fabricd.toml"]:
            self.assertIn(f" {path}" if path.startswith("/etc") else f"={path}", unit)
            unit = unit.replace(path, f"{self.root}{path}")
        copy = self.root / "fabricd.service"
        copy.write_text(unit)
        self.assertEqual(self.run_quietly("systemd-analyze", "verify", copy), "")


if __name__ == "__main__":
    unittest.main()
