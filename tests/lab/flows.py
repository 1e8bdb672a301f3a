"""Numbered datagrams of many flows, and whether each flow has arrived in order.

    flows.py receive PORT             one line of JSON when every flow has said that it ends
    flows.py send HOST PORT FLOWS COUNT
"""

import json
import socket
import struct
import sys
import time

FORMAT = "!III"  # flow, number, count


def receive(port):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("", port))
    print("listening", flush=True)
    last, received, out_of_order, ended = {}, 0, 0, False
    while not ended:
        flow, number, count = struct.unpack(FORMAT, sock.recv(64))
        if count == 0:  # sent when all the others have had time to arrive
            ended = True
            continue
        received += 1
        if number <= last.get(flow, -1):
            out_of_order += 1
        last[flow] = max(number, last.get(flow, -1))
    print(json.dumps({"flows": len(last), "received": received, "out_of_order": out_of_order}), flush=True)


def send(host, port, flows, count):
    target = (socket.gethostbyname(host), port)
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(flows)]
    for number in range(count):
        for flow, sock in enumerate(socks):
            sock.sendto(struct.pack(FORMAT, flow, number, count), target)
        time.sleep(0.0005)  # a rate that nothing drops
    time.sleep(0.5)
    socks[0].sendto(struct.pack(FORMAT, 0, 0, 0), target)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
