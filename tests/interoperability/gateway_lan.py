"""A LAN in network namespaces: a bridge, two routers a and b, and a client that looks at what happens.

Everything has a prefix of its own and is removed at the end; a router's programs are ended by their pid.
"""
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

BUILD = os.environ.get("FABRIC_BUILD") or (sys.argv.pop(1) if len(sys.argv) > 1 and os.path.isdir(sys.argv[1]) else "build")
PROGRAM = os.environ.get("GATEWAY_PROGRAM") or os.path.join(BUILD, "tests", "gateway_program")
VRID = 7
VIP4, VIP6, LINK6 = "192.0.2.1", "2001:db8::1", "fe80::7"
MAC4, MAC6 = "00:00:5e:00:01:07", "00:00:5e:00:02:07"
ADDRESS = {"a": "192.0.2.11", "b": "192.0.2.12", "client": "192.0.2.100"}
ADDRESS6 = {"a": "2001:db8::11", "b": "2001:db8::12", "client": "2001:db8::100"}
PATIENCE = 30  # seconds, for a condition to come true


def run(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True)


def wait(condition, what, patience=PATIENCE):
    """Until condition() is true; returns its value."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("never: " + what)
        time.sleep(0.02)


class Lan:
    def __init__(self):
        self.prefix = "fgw%d" % os.getpid()
        self.folder = tempfile.mkdtemp(prefix=self.prefix)
        self.programs = []

    def __enter__(self):
        try:
            run("ip", "netns", "add", self.space("lan"))
            self.exec("lan", "ip", "link", "add", "name", "switch", "type", "bridge", "mcast_snooping", "0")
            self.exec("lan", "ip", "link", "set", "switch", "up")
            for host in ADDRESS:
                space = self.space(host)
                run("ip", "netns", "add", space)
                self.exec(host, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0",
                          "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
                run("ip", "-n", self.space("lan"), "link", "add", "name", "to-" + host, "type", "veth", "peer", "name", "eth0", "netns", space)
                self.exec("lan", "ip", "link", "set", "to-" + host, "master", "switch", "up")
                self.exec(host, "ip", "link", "set", "lo", "up")
                self.exec(host, "ip", "address", "add", ADDRESS[host] + "/24", "dev", "eth0")
                self.exec(host, "ip", "address", "add", ADDRESS6[host] + "/64", "dev", "eth0", "nodad")
                self.exec(host, "ip", "link", "set", "eth0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for program in reversed(self.programs):
            program.stop()
        for host in ["lan", *ADDRESS]:
            run("ip", "netns", "delete", self.space(host), check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def space(self, host):
        return self.prefix + host

    def exec(self, host, *command, check=True):
        return run("ip", "netns", "exec", self.space(host), *command, check=check)

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def start(self, host, *command, **kind):
        program = kind.pop("kind", Program)(["ip", "netns", "exec", self.space(host), *command], **kind)
        self.programs.append(program)
        return program

    # --- who plays

    def gateway(self, host, priority=100, version=3, interval="100ms", preempt=True, preempt_delay="0s", accept=True,
                families=(4, 6), checksum="auto", ring=False, guid=None, extra=""):
        addresses = ([f'"{VIP4}/24"'] if 4 in families else []) + ([f'"{LINK6}/64"', f'"{VIP6}/64"'] if 6 in families else [])
        text = f"""[gateway]
interface = "eth0"
addresses = [{", ".join(addresses)}]
vrid = {VRID}
priority = {priority}
version = {version}
interval = "{interval}"
preempt = {str(preempt).lower()}
preempt_delay = "{preempt_delay}"
accept = {str(accept).lower()}
checksum = "{checksum}"
{extra}
"""
        path = self.write(f"gateway-{host}.toml", text)
        command = [PROGRAM, path, str(guid or (1 if host == "a" else 2))]
        if ring:
            sockets = [os.path.join(self.folder, "ring-" + name) for name in "ab"]
            command += sockets if host == "a" else sockets[::-1]
        gateway = self.start(host, *command, kind=Gateway)
        gateway.events.wait(lambda event: event.get("kind") == "ready")
        return gateway

    def keepalived(self, host, priority, version=3, interval=0.1, preempt=True, families=(4,), vmac=True):
        instances = ""
        for family in families:
            addresses = [VIP4 + "/24"] if family == 4 else [LINK6 + "/64", VIP6 + "/64"]
            instances += f"""
vrrp_instance v{family} {{
  state BACKUP
  interface eth0
  {f"use_vmac vr{family}" if vmac else ""}
  virtual_router_id {VRID}
  priority {priority}
  version {3 if family == 6 else version}
  advert_int {interval}
  {"" if preempt else "nopreempt"}
  accept
  virtual_ipaddress {{
    {chr(10).join("    " + a for a in addresses)}
  }}
}}
"""
        path = self.write(f"keepalived-{host}.conf", "global_defs {\n  vrrp_garp_master_delay 5\n}\n" + instances)
        pid = os.path.join(self.folder, f"keepalived-{host}")
        return self.start(host, "keepalived", "-n", "-l", "-D", "-P", "-f", path, "-p", pid + ".pid", "-r", pid + ".vrrp.pid")

    def vrrpd(self, host, priority, version=3, interval=100, preempt=True, families=(4,)):
        """FRR's zebra and vrrpd, and the macvlans that vrrpd needs."""
        folder = os.path.join(self.folder, "frr-" + host)
        os.makedirs(folder, exist_ok=True)
        shutil.chown(folder, "frr", "frr")
        os.chmod(self.folder, 0o755)
        lines = ["interface eth0", f" vrrp {VRID} version {version}", f" vrrp {VRID} priority {priority}",
                 f" vrrp {VRID} advertisement-interval {interval}"]
        lines.append(f" {'' if preempt else 'no '}vrrp {VRID} preempt")
        for family in families:
            name, mac = ("vrrp4", MAC4) if family == 4 else ("vrrp6", MAC6)
            self.exec(host, "ip", "link", "add", "name", name, "link", "eth0", "type", "macvlan", "mode", "bridge")
            self.exec(host, "ip", "link", "set", "dev", name, "address", mac, "addrgenmode", "none")
            if family == 4:
                self.exec(host, "ip", "address", "add", VIP4 + "/24", "dev", name)
                lines.append(f" vrrp {VRID} ip {VIP4}")
            else:
                for address in (LINK6, VIP6):
                    self.exec(host, "ip", "address", "add", address + "/64", "dev", name, "nodad")
                    lines.append(f" vrrp {VRID} ipv6 {address}")
            self.exec(host, "ip", "link", "set", name, "up")
        conf = self.write(f"frr-{host}/frr.conf", "\n".join(lines) + "\n")
        os.chmod(conf, 0o644)
        common = ["-u", "frr", "-g", "frr", "--vty_socket", folder, "-z", folder + "/zserv.api", "-A", "127.0.0.1", "-P", "0"]
        zebra = self.start(host, "/usr/lib/frr/zebra", *common, "-f", conf, "-i", folder + "/zebra.pid")
        wait(lambda: os.path.exists(folder + "/zserv.api"), "zebra listens")
        vrrpd = self.start(host, "/usr/lib/frr/vrrpd", *common, "-f", conf, "-i", folder + "/vrrpd.pid")
        vrrpd.with_it = zebra
        return vrrpd

    def capture(self, expression="vrrp or ip6 proto 112", host="client"):
        return self.start(host, "tcpdump", "-l", "-n", "-e", "-vv", "-i", "eth0", expression, kind=Capture)

    # --- what the client sees

    def owner4(self):
        """Whose port the bridge has learnt the virtual MAC from: a, b or None."""
        return self.port_of(MAC4)

    def port_of(self, mac):
        for line in self.exec("lan", "bridge", "fdb", "show", "br", "switch").stdout.splitlines():
            match = re.match(rf"{mac} dev to-(\S+)", line)
            if match and "permanent" not in line:
                return match.group(1)
        return None

    def holds(self, host, address):
        out = self.exec(host, "ip", "-o", "address", "show").stdout
        return any(f" {address}/" in line and "eth0 " not in line.split("inet")[0] for line in out.splitlines())

    def pings(self, address, count=1):
        return self.exec("client", "ping", "-n", "-c", str(count), "-W", "1", address, check=False).returncode == 0


class Program:
    def __init__(self, command, **options):
        self.log = tempfile.TemporaryFile(mode="w+")  # closed with the test's end
        self.with_it = None
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=options.get("stdout", self.log),
                                        stderr=self.log, text=True)

    def alive(self):
        return self.process.poll() is None

    def stop(self, how=signal.SIGTERM):
        if self.alive():
            self.process.send_signal(how)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.with_it:
            self.with_it.stop()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def output(self):
        self.log.seek(0)
        return self.log.read()


class Lines:
    """What a program writes, line by line."""

    def __init__(self, stream, parse):
        self.all, self.queue = [], queue.Queue()
        threading.Thread(target=self.read, args=(stream, parse), daemon=True).start()

    def read(self, stream, parse):
        for line in stream:
            self.queue.put(parse(line))

    def wait(self, condition, patience=PATIENCE):
        end = time.monotonic() + patience
        while True:
            try:
                item = self.queue.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError("never said; the last: %s" % self.all[-5:])
            self.all.append(item)
            if condition(item):
                return item

    def drain(self):
        while not self.queue.empty():
            self.all.append(self.queue.get())
        return self.all


class Gateway(Program):
    def __init__(self, command):
        super().__init__(command, stdout=subprocess.PIPE)
        self.events = Lines(self.process.stdout, json.loads)

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def view(self):
        self.say("view")
        return self.events.wait(lambda event: "vrrp-instance" in event)

    def instance(self, family):
        return next(i for i in self.view()["vrrp-instance"] if i["family"] == "ipv%d" % family)

    def state(self, family):
        return self.instance(family)["state"]


class Capture(Program):
    def __init__(self, command):
        super().__init__(command, stdout=subprocess.PIPE)
        self.lines = Lines(self.process.stdout, str.rstrip)
        wait(lambda: "listening on" in self.output(), "tcpdump listens")

    def text(self):
        time.sleep(0.1)
        return "\n".join(self.lines.drain())
