"""Sends and receives data inside of a lab and says what went through, as one JSON object a line.

    transfer.py receive-files PORT            accepts connections one after the other, each carries one file
    transfer.py send-file HOST PORT BYTES SEED
    transfer.py send-files HOST PORT BYTES SEED   one after the other until standard input ends
    transfer.py receive-datagrams PORT
    transfer.py send-datagrams HOST PORT SIZE COUNT SEED

Content is made from the seed, with the place in the file in every block, so that nothing can be lost,
repeated or swapped without changing the hash. Datagrams go in windows that the receiver acknowledges: what is
missing then was lost on the way, not in a full socket buffer.
"""

import errno
import hashlib
import json
import random
import select
import socket
import struct
import sys
import time

BLOCK = 1 << 20
WINDOW = 32  # datagrams; of 64 KiB they fill 2 MiB of the receiver's buffer


def say(**facts):
    print(json.dumps(facts), flush=True)


def blocks(size, seed):
    base = random.Random(seed).randbytes(BLOCK)
    for offset in range(0, size, BLOCK):
        yield (struct.pack("!Q", offset) + base[8:])[:min(BLOCK, size - offset)]


def listen(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    say(listening=port)
    return listener


def receive_files(port):
    listener = listen(port)
    buffer = bytearray(BLOCK)
    while True:
        connection, _ = listener.accept()
        digest, size = hashlib.sha256(), 0
        while got := connection.recv_into(buffer):
            digest.update(memoryview(buffer)[:got])
            size += got
        say(bytes=size, sha256=digest.hexdigest())
        connection.sendall(digest.digest())  # only now does the sender know that all has arrived
        connection.close()


def connect(host, port):
    """A host that is cut off from the other says so at once: tried again for half a minute."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection((host, port))
        except OSError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.ENETUNREACH) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def send_one(host, port, size, seed):
    digest = hashlib.sha256()
    with connect(host, port) as connection:
        for block in blocks(size, seed):
            connection.sendall(block)
            digest.update(block)
        connection.shutdown(socket.SHUT_WR)
        there = b""
        while piece := connection.recv(64):
            there += piece
    say(bytes=size, sha256=digest.hexdigest(), match=there == digest.digest())


def send_files(host, port, size, seed):
    while not select.select([sys.stdin], [], [], 0)[0]:
        send_one(host, port, size, seed)
        seed += 1


def datagram_socket():
    endpoint = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    for option in (33, 32):  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
        endpoint.setsockopt(socket.SOL_SOCKET, option, 16 << 20)
    return endpoint


def receive_datagrams(port):
    endpoint = datagram_socket()
    endpoint.bind(("::", port))
    listener = listen(port)
    connection, _ = listener.accept()  # tells the sender how many have come
    digest, count, size = hashlib.sha256(), 0, 0
    while True:
        ready, _, _ = select.select([endpoint, connection], [], [])
        if endpoint in ready:
            data = endpoint.recv(65536)
            digest.update(data)
            count += 1
            size += len(data)
            connection.sendall(struct.pack("!Q", count))
        elif not connection.recv(1):
            break
    say(datagrams=count, bytes=size, sha256=digest.hexdigest())


def send_datagrams(host, port, size, count, seed):
    connection = socket.create_connection((host, port))
    family = connection.family
    endpoint = socket.socket(family, socket.SOCK_DGRAM)
    endpoint.setsockopt(socket.SOL_SOCKET, 32, 16 << 20)
    endpoint.connect(connection.getpeername()[:2])
    source = random.Random(seed)
    base = source.randbytes(size)
    digest = hashlib.sha256()
    there, pending = 0, b""
    for number in range(count):
        place = struct.pack("!Q", number)
        data = place + base[8:] if size >= 8 else place[-size:]
        endpoint.send(data)
        digest.update(data)
        sent = number + 1
        while sent - there >= WINDOW or (sent == count and there < count):
            if not select.select([connection], [], [], 5)[0]:
                say(datagrams=sent, acknowledged=there, error="no progress for 5 s")
                sys.exit(1)
            pending += connection.recv(65536)
            whole = len(pending) // 8 * 8
            if whole:
                there = struct.unpack("!Q", pending[whole - 8:whole])[0]
                pending = pending[whole:]
    connection.close()
    say(datagrams=count, bytes=size * count, sha256=digest.hexdigest())


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    rest = [int(word) if word.isdigit() else word for word in rest]
    {"receive-files": receive_files, "send-file": send_one, "send-files": send_files,
     "receive-datagrams": receive_datagrams, "send-datagrams": send_datagrams}[verb](*rest)
