"""fabricctl for programs: JSON for every command, exit statuses, and a sentence when there is no daemon."""

import json
import os
import signal
import threading
import unittest

from lab import BUILD, Lab, wait_until

SHOWS = [["status"], ["host"], ["port"], ["cable"], ["route"], ["route", "h3"], ["path", "h1", "h3"], ["counters"],
         ["log"]]
MEASUREMENTS = [["ping", "-c", "3", "h3"], ["trace", "h3"], ["bw", "h3"], ["bw", "--all"], ["lat", "h3"]]


class Json(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab(hosts=5)
        cls.lab.up()

    @classmethod
    def tearDownClass(cls):
        cls.lab.down()

    def ctl(self, *arguments, host="h1"):
        return self.lab.run(host, BUILD / "fabricctl", *arguments, check=False, timeout=120)

    def test_every_command_prints_json(self):
        for words in SHOWS + MEASUREMENTS:
            for arguments in (["-j", *words], [*words, "-j"]):
                with self.subTest(arguments=arguments):
                    result = self.ctl(*arguments)
                    self.assertEqual(result.returncode, 0, result.stderr)
                    self.assertEqual(json.loads(result.stdout)["schema"], 1)

    def test_every_command_prints_text(self):
        for words in SHOWS + MEASUREMENTS:
            with self.subTest(words=words):
                result = self.ctl(*words)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertNotEqual(result.stdout, "")
                self.assertNotIn("\x1b", result.stdout, "colour, and no terminal")

    def test_monitor_prints_events_as_they_happen(self):
        events = []

        def read(stream):
            for line in stream:
                events.append(json.loads(line))

        with self.lab.program("h1", BUILD / "fabricctl", "-j", "monitor") as monitor:
            reader = threading.Thread(target=read, args=(monitor.stdout,), daemon=True)
            reader.start()
            for _ in range(20):  # until the monitor has begun to listen
                self.lab.cut("h1", "h2")
                self.lab.wait_for_path("h1", "h5", "h4", "h3", "h2")
                self.lab.mend("h1", "h2")
                self.lab.wait_for_path("h1", "h2")
                if events:
                    break
            wait_until(lambda: any(event["kind"] == "cable-up" for event in events), what="the event")
        for event in events:
            self.assertEqual(event["schema"], 1)
            self.assertIn("time", event)

    def test_bandwidth_in_perftests_columns(self):
        text = self.ctl("bw", "h3").stdout
        self.assertRegex(text, r"#bytes\s+#iterations\s+BW peak\[MB/sec\]\s+BW average\[MB/sec\]\s+MsgRate\[Mpps\]")
        text = self.ctl("lat", "h3").stdout
        self.assertRegex(text, r"#bytes\s+#iterations\s+t_min\[usec\]\s+t_max\[usec\]\s+t_typical\[usec\]\s+"
                               r"t_avg\[usec\]\s+t_stdev\[usec\]\s+99% percentile\[usec\]\s+99\.9% percentile\[usec\]")

    def test_threshold_sets_the_exit_status(self):
        self.assertEqual(self.ctl("bw", "h3", "--min", "0.001").returncode, 0)
        self.assertEqual(self.ctl("bw", "h3", "--min", "100000000").returncode, 1)

    def test_abbreviations(self):
        self.assertEqual(self.ctl("cab").stdout.splitlines()[0], self.ctl("cable", "show").stdout.splitlines()[0])

    def test_wrong_usage(self):
        for words in (["no-such-object"], ["path"], ["status", "frobnicate"], ["--no-such-option"]):
            with self.subTest(words=words):
                result = self.ctl(*words)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertNotEqual(result.stderr, "")

    def test_host_that_is_not_there(self):
        result = self.ctl("path", "h1", "h9")
        self.assertEqual(result.returncode, 1)
        self.assertIn("h9", result.stderr)


class NoDaemon(unittest.TestCase):
    def test_exit_status_three_and_what_to_do(self):
        with Lab(hosts=2) as lab:
            os.kill(lab.fabricd_pid("h2"), signal.SIGKILL)
            wait_until(lambda: lab.fabricd_pid("h2") is None, what="the daemon's end")
            for words in SHOWS + MEASUREMENTS + [["monitor"]]:
                for mode in ([], ["-j"]):
                    with self.subTest(words=words, mode=mode):
                        result = lab.run("h2", BUILD / "fabricctl", *mode, *words, check=False)
                        self.assertEqual(result.returncode, 3)
                        sentence = json.loads(result.stdout)["error"] if mode else result.stderr
                        self.assertRegex(sentence, r"no fabricd answers.*start it")


if __name__ == "__main__":
    unittest.main(verbosity=2)
