"""softhca_control.py SOCKET cut|mend END END [PID]: a request to the hardware process. After a mend OpenSM (PID), which
without a switch hears of nothing, is told to sweep, and the cable is waited for to be Active again."""

import json
import os
import signal
import socket
import sys
import time


def control(path, **request):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path + ".ctl")
        connection.sendall((json.dumps(request) + "\n").encode())
        with connection.makefile() as lines:
            answer = json.loads(lines.readline())
    if not answer["ok"]:
        sys.exit(answer["error"])
    return answer


def active(path, ends):
    ports = [port for host in control(path, op="status")["hosts"] for hca in host["hcas"] for port in hca["ports"]]
    return all(port["state"] == "Active" for port in ports if port["end"] in ends)


def main():
    path, op, a, b, *manager = sys.argv[1:]
    control(path, op=op, a=a, b=b)
    for pid in manager:
        os.kill(int(pid), signal.SIGHUP)
    deadline = time.monotonic() + 30
    while op == "mend" and not active(path, (a, b)):
        if time.monotonic() > deadline:
            sys.exit("nobody makes the cable Active")
        time.sleep(0.01)


main()
