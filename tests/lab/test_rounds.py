"""Twenty rounds of up and down in a row: nothing stays, and, in a build with AddressSanitizer, nothing leaks:
`down` fails when one of the daemons has written a sanitizer's report."""

import os
import unittest

from lab import Lab, leftovers
from test_bring_up import ping_every_pair

ROUNDS = int(os.environ.get("FABRIC_ROUNDS", "20"))


class Rounds(unittest.TestCase):
    def test_rounds(self):
        for number in range(1, ROUNDS + 1):
            with self.subTest(round=number):
                lab = Lab(hosts=5, timeout=120)
                with lab:
                    if number == 1:
                        ping_every_pair(self, lab)
                self.assertEqual(leftovers(lab.name), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
