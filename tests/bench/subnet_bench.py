#!/usr/bin/env python3
"""fabricd as subnet manager and administrator beside OpenSM, in one run, on the software HCA. Needs root.

    tests/bench/subnet_bench.py BUILD [PART...]

Parts: start, replug, takeover, queries, memory, calm (all by default).

start      from exec to Active at both ends of a cable
replug     from the cable's return to Active again
takeover   from the master's kill -9 until the other manager is the master of both ports
queries    PathRecords answered a second to one client at the other end, one and sixteen at a time
memory     of one fabricd with five cables, and of five OpenSM
calm       two fabricd, every processor busy, 1 % of all MADs lost: takeovers that nobody needed, in
           FABRIC_BENCH_SECONDS (20)

OpenSM runs with its defaults, once more ("fast") with sweeps each second and its fastest takeover. What depends on its
sweep timer takes up to a minute.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interoperability"))
from softhca_lab import Lab  # noqa: E402

BUILD = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else "build"
CALM = float(os.environ.get("FABRIC_BENCH_SECONDS", 20))
FAST = "sweep_interval 1\nsminfo_polling_timeout 10\npolling_retry_number 1\n"
ENDS = ("h1/2", "h2/1")


def until(condition, what, limit=120.0):
    """Seconds until the condition holds, looking as often as the hardware answers."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > limit:
            raise RuntimeError(f"not within {limit} s: {what}")
    return time.monotonic() - begin


class Manager:
    """A subnet manager of one host: fabricd, or OpenSM on one port ("2", or "1/2" of the second adapter)."""

    def __init__(self, lab, host, port, kind):
        self.lab, self.host, self.port, self.kind = lab, host, port, kind
        self.directory = Path(lab.directory.name, f"{kind}-{host}-{port}".replace("/", "-"))
        self.directory.mkdir(exist_ok=True)
        # In a network namespace of its own, for fabricd's interface.
        if kind == "fabricd":
            command = [os.path.join(BUILD, "fabricd"), "--state", str(self.directory), "--socket",
                       str(self.directory / "socket")]
        else:
            options = self.directory / "conf"
            options.write_text(FAST if kind == "OpenSM, fast" else "")
            command = ["opensm", "-F", str(options), "-f", str(self.directory / "log"), "-g",
                       lab.port(f"{host}/{port}")["guid"]]
        self.process = lab.start(host, "unshare", "-n", *command)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def cable(self, port):
        out = subprocess.run([os.path.join(BUILD, "fabricctl"), "-j", "-s", str(self.directory / "socket"), "cable"],
                             capture_output=True, check=True, text=True).stdout
        return next(cable for cable in json.loads(out)["cables"] if cable["device_port"] == port)

    def stop(self):
        self.lab.stop(self.process)


@contextlib.contextmanager
def managers(lab, *wanted):
    running = []
    try:
        for host, port, kind in wanted:
            running.append(Manager(lab, host, port, kind))
        yield running
    finally:
        for manager in running:
            manager.stop()


def ports(lab, ends=ENDS):
    return [port for host in lab.control("status")["hosts"] for hca in host["hcas"] for port in hca["ports"]
            if port["end"] in ends]


def active(lab, ends=ENDS):
    return all(port["state"] == "Active" for port in ports(lab, ends))


def say(what, kind, values, unit="ms", scale=1000.0):
    values = [value * scale for value in values]
    print(f"{what:32} {kind:13} median {statistics.median(values):9.1f} {unit}   worst {max(values):9.1f}   "
          f"runs {len(values)}", flush=True)
    return statistics.median(values)


def ratio(what, own, other, limit=""):
    print(f"{what:32} fabricd / OpenSM = {own / other:.3f}{limit and '   target: ' + limit}\n", flush=True)


def start():
    medians = {}
    took = {"fabricd": [], "OpenSM": []}
    for _ in range(15):
        for kind, values in took.items():
            with Lab(BUILD) as lab:
                begin = time.monotonic()
                with managers(lab, ("h1", 2, kind)):
                    until(lambda: active(lab), "Active")
                    values.append(time.monotonic() - begin)
    for kind, values in took.items():
        medians[kind] = say("start to Active", kind, values)
    ratio("start to Active", medians["fabricd"], medians["OpenSM"], "1")


def replug():
    medians = {}
    for kind, runs in (("fabricd", 100), ("OpenSM, fast", 15), ("OpenSM", 7)):
        with Lab(BUILD) as lab, managers(lab, ("h1", 2, kind)):
            until(lambda: active(lab), "Active")
            values = []
            for run in range(runs):
                # Not in step with the sweeps.
                time.sleep(0.011 * (run % 9))
                lab.control("cut", a=ENDS[0], b=ENDS[1])
                until(lambda: not active(lab), "Down")
                lab.control("mend", a=ENDS[0], b=ENDS[1])
                values.append(until(lambda: active(lab), "Active again"))
            medians[kind] = say("re-plug to Active", kind, values)
    ratio("re-plug to Active", medians["fabricd"], medians["OpenSM"], "median < 50 ms")


def takeover():
    medians = {}
    for kind, runs in (("fabricd", 40), ("OpenSM, fast", 10), ("OpenSM", 1)):
        values = []
        with Lab(BUILD) as lab, managers(lab, ("h1", 2, kind), ("h2", 1, kind)) as pair:
            by_end = dict(zip(ENDS, pair))

            def master(lab=lab):
                """The end whose LID both ports have as their SM's."""
                known = {port["end"]: port for port in ports(lab)}
                for end, port in known.items():
                    if all(other["sm_lid"] == port["lid"] and other["state"] == "Active" for other in known.values()):
                        return end
                return None

            until(master, "a master")
            for _ in range(runs):
                # The standby must have found its place; the lower GUID is to be master.
                until(lambda: master() == ENDS[0], "the first is master", 30)
                time.sleep(1.5)
                dying = master()
                by_end[dying].kill()
                values.append(until(lambda d=dying: master() not in (d, None), "takeover"))
                again = by_end[dying] = Manager(lab, dying.split("/")[0], int(dying.split("/")[1]), kind)
                pair.append(again)
        medians[kind] = say("takeover after kill -9", kind, values)
    ratio("takeover after kill -9", medians["fabricd"], medians["OpenSM"], "< 100 ms with defaults")


def queries():
    for window in (1, 16):
        rates = {}
        for kind in ("fabricd", "OpenSM"):
            with Lab(BUILD) as lab, managers(lab, ("h1", 2, kind)):
                until(lambda: active(lab), "Active")
                # A host that is alone agrees with itself on its LIDs after a second.
                until(lambda: ports(lab)[0]["lid"] < 0xB000, "LIDs that stay")
                until(lambda: lab.status("h2", "saquery", "-C", "softhca0", "-P", "1", "CPI") == 0, "answers")
                rate, answered, lost, wrong = map(int, lab.run("h2", os.path.join(BUILD, "tests", "sa_queries"),
                                                               "softhca0", "1", "5", str(window)).split())
                rates[kind] = rate
                print(f"PathRecords a second, window {window:2} {kind:13} {rate:9}      lost {lost}, refused {wrong}, "
                      f"answered {answered}", flush=True)
        ratio(f"PathRecords a second, window {window}", rates["fabricd"], rates["OpenSM"],
              ">= 15000" if window == 1 else "")


def memory_of(process):
    kilobytes = {}
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        words = line.split()
        if words[0] in ("Rss:", "Pss:", "Private_Dirty:"):
            kilobytes[words[0][:-1]] = int(words[1])
    return kilobytes


def memory():
    # h1 has five ports in use, and h2 to h6 one cable to it each. OpenSM knows adapters of two ports at most.
    own = ["1", "2", "1/1", "1/2", "2/1"]
    lab = Lab(BUILD, hosts=6, cables=[[f"h1/{port}", f"h{k + 2}/1"] for k, port in enumerate(own)])
    lab.description["hosts"][0]["hcas"] = [{"ports": 2}] * 3
    ends = [end for cable in lab.description["cables"] for end in cable]
    sums = {}
    for kind in ("fabricd", "OpenSM"):
        with lab:
            wanted = [("h1", 1, kind)] if kind == "fabricd" else [("h1", port, kind) for port in own]
            with managers(lab, *wanted) as running:
                until(lambda: active(lab, ends), "five cables Active")
                time.sleep(2)
                each = [memory_of(manager.process) for manager in running]
        sums[kind] = {name: sum(one[name] for one in each) for name in each[0]}
        print(f"memory, five cables              {kind:13} " +
              "   ".join(f"{name} {value / 1024:8.1f} MiB" for name, value in sums[kind].items()) +
              f"   processes {len(each)}", flush=True)
    ratio("memory (PSS), five cables", sums["fabricd"]["Pss"], sums["OpenSM"]["Pss"], "< 1")


def calm():
    with Lab(BUILD) as lab, managers(lab, ("h1", 2, "fabricd"), ("h2", 1, "fabricd")) as pair:
        def facts(manager, port):
            return manager.cable(port)

        def settled():
            states = [facts(pair[0], 2)["facts"].get("sm_state"), facts(pair[1], 1)["facts"].get("sm_state")]
            return states == ["master", "standby"] and facts(pair[0], 2)["connected"]

        until(lambda: (time.sleep(0.2), active(lab))[1], "Active")
        until(lambda: (time.sleep(0.2), settled())[1], "one master, connected")
        for end in ENDS:
            lab.control("faults", end=end, loss_ppm=10000)
        burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
        before = [facts(pair[0], 2), facts(pair[1], 1)]
        left, begin, looks = [], time.monotonic(), 0
        try:
            while time.monotonic() - begin < CALM:
                time.sleep(0.02)
                looks += 1
                now = [(port["state"], port["sm_lid"]) for port in ports(lab)]
                if now != [(port["state"], port["sm_lid"]) for port in ports(lab)] or \
                        any(state != "Active" for state, _ in now) or len({lid for _, lid in now}) != 1:
                    left.append((round(time.monotonic() - begin, 3), now))
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        after = [facts(pair[0], 2), facts(pair[1], 1)]
        for one, other in zip(before, after):
            changed = {name: other["counters"][name] - one["counters"][name] for name in other["counters"]
                       if other["counters"][name] != one["counters"][name]}
            print(f"  {other['facts']['sm_state']}: {changed}")
        false = sum(other["counters"]["elections"] - one["counters"]["elections"] for one, other in zip(before, after))
        lost = sum(other["counters"]["connections_lost"] - one["counters"]["connections_lost"]
                   for one, other in zip(before, after))
        print(f"calm: {CALM:.0f} s, 1 % of MADs lost, {2 * os.cpu_count()} busy processes: false takeovers {false}, "
              f"connections lost {lost}, moments without one master {len(left)} {left[:3]}\n", flush=True)


PARTS = {"start": start, "replug": replug, "takeover": takeover, "queries": queries, "memory": memory, "calm": calm}

if __name__ == "__main__":
    for name in sys.argv[2:] or PARTS:
        PARTS[name]()
