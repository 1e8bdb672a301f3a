"""Runs on h1 of a lab of two hosts, with the library preloaded: what libibumad and the kernel promise a program.

The cable has no subnet manager; SMPs by directed route reach the own port (path 0) and h2 (path 0,2).
"""

import ctypes
import errno
import os
import random
import select
import socket
import struct
import time

umad = ctypes.CDLL(None, use_errno=True)  # the preloaded definitions come first
HEADER = 64
SMI_DIRECTED, PERF, VENDOR = 0x81, 0x04, 0x32


def mask(*methods):
    bits = sum(1 << method for method in methods)
    return (ctypes.c_long * 2)(bits & (1 << 63) - 1, bits >> 64)


def node_info(path, transaction=0x11223344):
    """Get(NodeInfo) along a directed route."""
    mad = bytearray(256)
    struct.pack_into(">BBBBHBBQHHI", mad, 0, 1, SMI_DIRECTED, 1, 1, 0, 0, len(path), transaction, 0x11, 0, 0)
    struct.pack_into(">HH", mad, 32, 0xFFFF, 0xFFFF)
    mad[128:128 + len(path) + 1] = bytes([0, *path])
    return bytes(mad)


class Port:
    def __init__(self, number):
        self.fd = umad.umad_open_port(b"softhca0", number)
        assert self.fd > 2, self.fd
        assert umad.umad_get_fd(self.fd) == self.fd

    def close(self):
        assert umad.umad_close_port(self.fd) == 0

    def register(self, mgmt_class, version=1, rmpp=0, methods=None):
        return umad.umad_register(self.fd, mgmt_class, version, rmpp, methods)

    def send(self, agent, mad, timeout=1000, retries=0, lid=0xFFFF, qp=0):
        buffer = ctypes.create_string_buffer(bytes(HEADER) + mad, HEADER + len(mad))
        umad.umad_set_addr(buffer, lid, qp, 0, 0)
        return umad.umad_send(self.fd, agent, buffer, len(mad), timeout, retries)

    def receive(self, timeout=5000, room=256):
        """(agent or negative errno, status, length, MAD)"""
        buffer = ctypes.create_string_buffer(HEADER + room)
        length = ctypes.c_int(room)
        agent = umad.umad_recv(self.fd, buffer, ctypes.byref(length), timeout)
        return agent, umad.umad_status(buffer), length.value, buffer.raw[HEADER:HEADER + max(0, length.value)]


def test_response_carries_the_agent_in_its_transaction():
    port = Port(2)
    agent = port.register(SMI_DIRECTED)
    assert agent == 0, agent
    for path, owner in ([], 1), ([2], 2):
        assert port.send(agent, node_info(path)) == 0
        got, status, length, mad = port.receive()
        assert (got, status, length) == (agent, 0, 256), (got, status, length)
        assert mad[3] == 0x81 and mad[4] == 0x80  # GetResp, with the direction bit
        transaction, = struct.unpack_from(">Q", mad, 8)
        assert transaction & 0xFFFFFFFF == 0x11223344 and transaction >> 32 != 0
        guid, = struct.unpack_from(">Q", mad, 64 + 12)
        assert guid == 0x0014050000000000 | owner << 16, hex(guid)
    port.close()


def test_descriptor_works_with_epoll():
    port = Port(2)
    agent = port.register(SMI_DIRECTED)
    poller = select.epoll()
    poller.register(umad.umad_get_fd(port.fd), select.EPOLLIN)
    assert poller.poll(0) == []
    assert port.send(agent, node_info([2])) == 0
    assert poller.poll(5) == [(port.fd, select.EPOLLIN)]
    assert umad.umad_poll(port.fd, 0) == 0
    assert port.receive()[0] == agent
    assert poller.poll(0) == []
    assert umad.umad_poll(port.fd, 1) == -errno.ETIMEDOUT
    assert port.receive(timeout=1)[0] == -errno.ETIMEDOUT
    assert port.receive(timeout=0)[0] == -errno.EAGAIN  # never waits
    port.close()


def test_timeout_and_retries():
    port = Port(2)
    agent = port.register(SMI_DIRECTED)
    began = time.monotonic()
    assert port.send(agent, node_info([2, 1]), timeout=30, retries=2) == 0  # a HCA does not forward
    got, status, length, mad = port.receive()
    elapsed = time.monotonic() - began
    assert (got, status, length) == (agent, errno.ETIMEDOUT, 24), (got, status, length)
    assert elapsed >= 0.09, elapsed  # three times 30 ms
    assert struct.unpack_from(">Q", mad, 8)[0] & 0xFFFFFFFF == 0x11223344
    # Without a timeout nobody waits, and no response is delivered.
    assert port.send(agent, node_info([2]), timeout=0) == 0
    assert port.receive(timeout=100)[0] == -errno.ETIMEDOUT
    port.close()


def test_a_short_buffer_leaves_the_mad_where_it_is():
    port = Port(2)
    agent = port.register(SMI_DIRECTED)
    assert port.send(agent, node_info([])) == 0
    got, _, length, _ = port.receive(room=100)
    assert (got, length) == (-errno.EINVAL, 256), (got, length)
    assert port.receive()[0] == agent
    port.close()


def test_what_the_kernel_refuses():
    """As write(2) does: umad_send() returns -EIO, and errno says EINVAL."""
    port = Port(2)
    agent = port.register(SMI_DIRECTED)

    def refused(mad, agent=agent, pkey=0):
        buffer = ctypes.create_string_buffer(bytes(HEADER) + mad, HEADER + len(mad))
        umad.umad_set_addr(buffer, 0xFFFF, 0, 0, 0)
        umad.umad_set_pkey(buffer, pkey)
        ctypes.set_errno(0)
        result = umad.umad_send(port.fd, agent, buffer, len(mad), 100, 0)
        return (result, ctypes.get_errno()) == (-errno.EIO, errno.EINVAL)

    good = node_info([2])
    assert not refused(good) and port.receive()[0] == agent
    assert refused(good[:35])              # no room for the headers
    assert refused(good + bytes(1))        # longer than a MAD, and no RMPP
    assert refused(good, pkey=32)          # beyond the table
    assert refused(good, agent=7)          # nobody
    assert refused(good, agent=-1) and refused(good, agent=32)
    assert refused(node_info([1]))         # a route that begins at another port
    long = bytearray(good)
    long[7] = 64                           # hops
    assert refused(bytes(long))
    assert port.receive(timeout=20)[0] == -errno.ETIMEDOUT  # none of them went anywhere
    port.close()


def test_noise_on_the_descriptors():
    """Whatever a program writes to the hardware process, that goes on."""
    random_bytes = random.Random(1)
    port = Port(2)
    agent = port.register(SMI_DIRECTED)
    for _ in range(2000):
        size = random_bytes.choice((1, 3, HEADER - 1, HEADER, HEADER + 24, HEADER + 256, 5000))
        os.write(port.fd, random_bytes.randbytes(size))
    calls = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    calls.connect(os.environ["SOFTHCA_SOCKET"])
    calls.send(b"neither a hello nor anything else")
    assert calls.recv(100) == b""          # it hangs up
    for line in (b"\n", b"{}\n", b"[1, 2]\n", b"\xff\xfe\n", b'{"op": 7}\n', b'{"op": "cut", "a": {}}\n',
                 b'{"op": "faults", "end": "h1/2", "loss_ppm": 1e400}\n', b'{"op": "flap", "end": "h9/9"}\n'):
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.connect(os.environ["SOFTHCA_SOCKET"] + ".ctl")
        control.send(line)
        answer = control.recv(4096)
        assert b'"ok":false' in answer and b'"error"' in answer, answer
    while port.receive(timeout=100)[0] != -errno.ETIMEDOUT:
        pass
    assert port.send(agent, node_info([2])) == 0
    assert port.receive()[0] == agent
    port.close()


def test_registration():
    first, second = Port(2), Port(2)
    get, both = mask(1), mask(1, 2)
    assert first.register(PERF, methods=get) == 0
    assert second.register(PERF, methods=both) == -errno.EPERM  # Get is taken
    assert ctypes.get_errno() == errno.EINVAL
    assert second.register(PERF, methods=mask(2)) == 0
    assert second.register(PERF, version=2, methods=both) == 1  # another version
    assert Port(1).register(PERF, methods=both) == 0  # another port
    assert umad.umad_unregister(first.fd, 0) == 0
    assert umad.umad_unregister(first.fd, 0) != 0
    assert first.send(0, node_info([])) == -errno.EIO and ctypes.get_errno() == errno.EINVAL
    assert second.register(PERF, methods=get) == 2
    second.close()  # with the descriptor go its agents
    assert first.register(PERF, methods=both) == 0
    assert first.register(0x03, version=2, rmpp=1) == 1
    assert first.register(PERF, rmpp=1) == -errno.EPERM  # not a class for RMPP
    agents = [first.register(SMI_DIRECTED) for _ in range(31)]
    assert agents == list(range(2, 32)) + [-errno.EPERM] and ctypes.get_errno() == errno.ENOMEM
    first.close()


def test_oui_classes():
    port = Port(2)
    oui = (ctypes.c_uint8 * 3)(0x00, 0x02, 0xC9)
    other = (ctypes.c_uint8 * 3)(0x00, 0x14, 0x05)
    assert umad.umad_register_oui(port.fd, VENDOR, 0, oui, mask(1)) == 0
    assert umad.umad_register_oui(port.fd, VENDOR, 0, other, mask(1)) == 1
    assert umad.umad_register_oui(port.fd, VENDOR, 0, oui, mask(1)) == -errno.EPERM
    assert umad.umad_register_oui(port.fd, PERF, 0, oui, mask(1)) == -errno.EINVAL
    port.close()


def capability_mask():
    """As ibstat shows it: bit 1 is IsSM."""
    class PortAttributes(ctypes.Structure):
        _fields_ = [("ca_name", ctypes.c_char * 20), ("portnum", ctypes.c_int), ("base_lid", ctypes.c_uint),
                    ("lmc", ctypes.c_uint), ("sm_lid", ctypes.c_uint), ("sm_sl", ctypes.c_uint),
                    ("state", ctypes.c_uint), ("phys_state", ctypes.c_uint), ("rate", ctypes.c_uint),
                    ("capmask", ctypes.c_uint32), ("gid_prefix", ctypes.c_uint64), ("port_guid", ctypes.c_uint64),
                    ("pkeys_size", ctypes.c_uint), ("pkeys", ctypes.POINTER(ctypes.c_uint16)),
                    ("link_layer", ctypes.c_char * 20)]

    port = PortAttributes()
    assert umad.umad_get_port(b"softhca0", 2, ctypes.byref(port)) == 0
    assert (port.ca_name, port.portnum, port.link_layer) == (b"softhca0", 2, b"InfiniBand")
    assert (port.pkeys_size, port.pkeys[0], port.pkeys[1]) == (32, 0xFFFF, 0)
    value = struct.unpack(">I", struct.pack("=I", port.capmask))[0]
    assert umad.umad_release_port(ctypes.byref(port)) == 0
    return value


def test_issm():
    path = ctypes.create_string_buffer(64)
    assert umad.umad_get_issm_path(b"softhca0", 2, path, 64) == 0
    assert path.value == b"/dev/infiniband/issm1"
    assert capability_mask() & 2 == 0
    first, second = os.open(path.value, os.O_RDWR), os.open(path.value, os.O_RDWR | os.O_NONBLOCK)
    assert capability_mask() & 2 == 2
    os.close(first)
    # The hardware learns of a close when it comes to it; a call after it comes later.
    Port(2).close()
    assert capability_mask() & 2 == 2
    os.close(second)
    deadline = time.monotonic() + 10
    while capability_mask() & 2 != 0:
        assert time.monotonic() < deadline
    try:
        os.open("/dev/infiniband/issm7", os.O_RDWR)
        raise AssertionError("there is no eighth port")
    except OSError as problem:
        assert problem.errno == errno.ENXIO


def test_fork():
    """A child goes on with the parent's port, and has a session of its own."""
    port = Port(2)
    agent = port.register(SMI_DIRECTED)
    child = os.fork()
    if child == 0:
        good = port.send(agent, node_info([2])) == 0 and port.receive()[0] == agent
        good = good and port.register(PERF, methods=mask(1)) == 1
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert port.send(agent, node_info([])) == 0
    assert port.receive()[0] == agent
    port.close()


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print(f"{name}: ok", flush=True)
