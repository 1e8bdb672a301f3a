"""All of perftest on the software HCA: eight programs, each with each option.

The table below is the test. An option that perftest itself refuses for a program is a test too: that it says so. Of
the others each must end well at both ends, print the header and the rows that belong to the option, and as many octets
as it claims must have crossed the cable, by the counters of the hardware.

In the short form (the default) the numbers of iterations are small, and only three programs go through all sizes:
perftest spins a quarter of a second for each line that it prints. SOFTHCA_FULL=1 runs everything, for longer.
"""

import os
import re
import typing

import softhca_lab
from softhca_lab import TwoHosts

FULL = os.environ.get("SOFTHCA_FULL", "") not in ("", "0")
ALL_SIZES = [2 ** n for n in range(1, 24)]
THROUGH_ALL_SIZES = ("ib_send_bw", "ib_read_bw", "ib_write_lat")  # of the short form
# "inf" is perftest's own, where it could not tell the processor's clock rate on a busy machine.
FIGURE = r"\s+(\d+\.\d+|inf)"
ROW = {"bw": rf"^ (\d+) +(\d+){FIGURE * 3}\s*$", "lat": rf"^ (\d+) +(\d+){FIGURE * 2}",
       "lat, duration": rf"^ (\d+) +(\d+){FIGURE * 2}\s*$"}


class Row(typing.NamedTuple):
    name: str
    arguments: str
    header: tuple = ()  # what both ends say
    refused: dict = {}  # programs that perftest refuses it for, and its words
    only: str = ""      # verbs
    part: str = ""      # adapter that the program is to believe in


# Perftest knows adapters by their part number. ConnectX-3: inline data. ConnectX-4: ibv_wr_*, the extended polling
# of completions, and inline data.
CONNECTX3, CONNECTX4 = "4099", "4115"
EXTENDED = r"ibv_wr\* API     : ON"
NOT_SEND, NOT_CONNECTED = "write|read|atomic", "read|atomic"
NO_UC = {NOT_CONNECTED: "UC connection not possible in READ/ATOMIC verbs"}
NO_UD = {NOT_SEND: "UD connection only possible in SEND verb"}
NO_INLINE = {NOT_CONNECTED: "Inline feature not available on READ/Atomic verbs"}

TABLE = (
    Row("plain", "-n 200", (r"Number of qps   : 1", "Connection type : RC", r"Using SRQ      : OFF",
                            r"ibv_wr\* API     : OFF")),
    Row("all_sizes", "-a -n 20", (), {"atomic": "Message size cannot be changed for Atomic tests"}),
    Row("bidirectional", "-b -n 200", ("Bidirectional BW Test",),
        {"lat": "Bidirectional is only available in BW test"}),
    Row("queue_pairs", "-q 8 -n 100", ("Number of qps   : 8",), {"lat": "Multiple QPs only available on bw tests"}),
    Row("events", "-e -n 200", (), {"write": "Events feature not available on WRITE verb"}),
    Row("duration", "-D 1"),
    Row("inline", "-I 64 -s 32 -n 200", (r"Max inline data : 64\[B\]",), NO_INLINE, part=CONNECTX3),
    Row("post_lists", "-l 16 -n 256", (), {"lat": "Post list is supported in BW tests only"}),
    Row("shared_receive_queue", "--use-srq -n 200", ("Using SRQ      : ON",),
        {NOT_SEND: "Using SRQ only avavilible in SEND tests"}),
    Row("uc", "-c UC -n 200", ("Connection type : UC",), NO_UC),
    Row("ud", "-c UD -n 200 -s 2048", ("Connection type : UD",), NO_UD),
    Row("multicast", "-c UD -g -n 200 -s 1024", ("Connection type : UD",), NO_UD),
    Row("fetch_and_add", "-A FETCH_AND_ADD -n 200", only="atomic"),
    Row("compare_and_swap", "-A CMP_AND_SWAP -n 200", only="atomic"),
    Row("extended", "-n 200", (EXTENDED,), part=CONNECTX4),
    Row("extended_inline", "-I 64 -s 32 -n 200", (EXTENDED, r"Max inline data : 64\[B\]"), NO_INLINE, part=CONNECTX4),
    Row("extended_uc", "-c UC -n 200", (EXTENDED,), only="send|write", part=CONNECTX4),
    Row("extended_ud", "-c UD -n 200 -s 2048", (EXTENDED,), only="send", part=CONNECTX4),
    Row("extended_queue_pairs", "-q 8 -l 16 -n 128", (EXTENDED, "Number of qps   : 8"),
        {"lat": "Multiple QPs only available on bw tests"}, part=CONNECTX4),
)


# SOFTHCA_FULL: each option again over each transport that the program has.
if FULL:
    ALONE = [row for row in TABLE if "-c" not in row.arguments and not row.only and row.name not in ("plain", "extended")]
    for _transport, _verbs, _size in ("UC", "send|write", ""), ("UD", "send", " -s 2048"):
        TABLE += tuple(row._replace(name=f"{row.name}_over_{_transport.lower()}", only=_verbs, arguments=(
            f"{row.arguments} -c {_transport}" + ("" if {"-a", "-s"} & set(row.arguments.split()) else _size)))
            for row in ALONE)


class Perftest(TwoHosts):
    def octets(self):
        """What the hardware has counted on the cable, both directions together."""
        return sum(self.lab.port(end)["counters"]["rcv_data"] for end in ("h1/2", "h2/1"))

    def measure(self, verb, kind, row, arguments):
        before = self.octets()
        texts = self.pair(f"ib_{verb}_{kind}", "-F", *arguments, SOFTHCA_PART_ID=row.part or "0")
        crossed = self.octets() - before
        for text in texts:
            for words in (*row.header, "Transport type : IB", "Device         : softhca0", "Link type       : IB"):
                self.assertRegex(text, words)
        text = texts[0]
        duration = "-D" in arguments
        rows = re.findall(ROW["lat, duration" if duration and kind == "lat" else kind], text, re.MULTILINE)
        if "-a" in arguments:
            sizes = [size for size in ALL_SIZES if "UD" not in arguments or size <= 4096]  # the MTU
        elif "-s" in arguments:
            sizes = [int(arguments[arguments.index("-s") + 1])]
        else:
            sizes = [8 if verb == "atomic" else 65536 if kind == "bw" else 2]
        self.assertEqual([int(size) for size, *_ in rows], sizes, text)
        claimed = 0
        for size, iterations, *figures in rows:
            claimed += int(size) * int(iterations)
            # Of a duration there is no peak; of few small messages a busy machine makes 0.00 MB/s.
            self.assertGreater(float(figures[-1]), 0, text)
            if duration:
                self.assertGreater(int(iterations), 0, text)
            else:
                of_each = int(arguments[arguments.index("-n") + 1])
                self.assertEqual(int(iterations), of_each * (8 if "-q" in arguments else 1), text)
        self.assertGreaterEqual(crossed, claimed, text)

    def refuse(self, program, arguments, words):
        self.assertIn(words, self.lab.run("h1", program, "-d", "softhca0", *arguments, status=1))


def add(verb, kind, row):
    program = f"ib_{verb}_{kind}"
    words = next((words for of, words in row.refused.items() if re.search(f"_({of})(_|$)", program)), None)
    if row.only and not re.fullmatch(row.only, verb):
        return
    if row.name == "all_sizes" and not FULL and words is None and program not in THROUGH_ALL_SIZES:
        return
    arguments = row.arguments.split()
    for option, longer in ("-n", "2048"), ("-D", "5"):
        if FULL and option in arguments:
            arguments[arguments.index(option) + 1] = longer

    def test(self):
        if words is None:
            self.measure(verb, kind, row, arguments)
        else:
            self.refuse(program, arguments, words)
    setattr(Perftest, f"test_{program}_{row.name}", test)


for _verb in ("send", "write", "read", "atomic"):
    for _kind in ("bw", "lat"):
        for _row in TABLE:
            add(_verb, _kind, _row)


if __name__ == "__main__":
    softhca_lab.main()
