"""A client of the subnet administrator, for a program that runs on a host of a lab with the library preloaded."""

import ctypes
import errno
import struct
import time

umad = ctypes.CDLL(None, use_errno=True)
HEADER = 64
GET, SET, REPORT, TABLE, MULTI, DELETE = 0x01, 0x02, 0x06, 0x12, 0x14, 0x15
RESPONSE = 0x80
CLASS_PORT_INFO, NOTICE, INFORM_INFO, PATH, MEMBER, MULTI_PATH, INFORM_RECORD = (0x01, 0x02, 0x03, 0x35, 0x38, 0x3A,
                                                                                 0xF3)


class PortAttributes(ctypes.Structure):
    _fields_ = [("ca_name", ctypes.c_char * 20), ("portnum", ctypes.c_int), ("base_lid", ctypes.c_uint),
                ("lmc", ctypes.c_uint), ("sm_lid", ctypes.c_uint), ("sm_sl", ctypes.c_uint),
                ("state", ctypes.c_uint), ("phys_state", ctypes.c_uint), ("rate", ctypes.c_uint),
                ("capmask", ctypes.c_uint32), ("gid_prefix", ctypes.c_uint64), ("port_guid", ctypes.c_uint64),
                ("pkeys_size", ctypes.c_uint), ("pkeys", ctypes.POINTER(ctypes.c_uint16)),
                ("link_layer", ctypes.c_char * 20)]


class Answer:
    def __init__(self, mad):
        self.method, self.status, = mad[3], struct.unpack_from(">H", mad, 4)[0]
        self.attribute, = struct.unpack_from(">H", mad, 16)
        self.mad = mad
        self.data = mad[56:]
        stride = 8 * struct.unpack_from(">H", mad, 44)[0]
        self.records = [self.data[i:i + stride] for i in range(0, len(self.data), stride)] if stride else []


class Client:
    def __init__(self, device="softhca0", port=1):
        attributes = PortAttributes()
        assert umad.umad_get_port(device.encode(), port, ctypes.byref(attributes)) == 0
        self.lid, self.sm_lid = attributes.base_lid, attributes.sm_lid
        # Both are as they are on the wire.
        self.gid = struct.pack("=QQ", attributes.gid_prefix, attributes.port_guid)
        umad.umad_release_port(ctypes.byref(attributes))
        self.fd = umad.umad_open_port(device.encode(), port)
        assert self.fd >= 0
        methods = (ctypes.c_long * 2)(1 << REPORT, 0)
        self.agent = umad.umad_register(self.fd, 3, 2, 1, methods)
        assert self.agent >= 0
        self.tid = 100
        self.confirmed = set()  # transactions of Reports
        self.waiting = []  # Reports that came while an answer was awaited

    def close(self):
        umad.umad_close_port(self.fd)

    def neighbour(self, guid):
        return self.gid[:8] + struct.pack(">Q", guid)

    def send(self, mad, lid=None, qp=1, timeout=2000, retries=2):
        buffer = ctypes.create_string_buffer(bytes(HEADER) + mad, HEADER + len(mad))
        umad.umad_set_addr(buffer, lid or self.sm_lid, qp, 0, ctypes.c_int(0x80010000 - (1 << 32)))
        assert umad.umad_send(self.fd, self.agent, buffer, len(mad), timeout, retries) == 0

    def receive(self, seconds):
        """A MAD and its source (LID, QPN), or None."""
        room = 8192
        buffer = ctypes.create_string_buffer(HEADER + room)
        length = ctypes.c_int(room)
        agent = umad.umad_recv(self.fd, buffer, ctypes.byref(length), max(1, int(1000 * seconds)))
        if agent == -errno.ETIMEDOUT:
            return None
        assert agent == self.agent, agent
        assert umad.umad_status(buffer) == 0, f"no answer: {umad.umad_status(buffer)}"
        qpn, = struct.unpack_from(">I", buffer.raw, 28)
        lid, = struct.unpack_from(">H", buffer.raw, 36)
        return buffer.raw[HEADER:HEADER + length.value], (lid, qpn)

    def ask(self, method, attribute, data=b"", mask=0, modifier=0, key=0, rmpp=False):
        self.tid += 1
        mad = bytearray(56) + data + (b"" if rmpp else bytes(200 - len(data)))
        struct.pack_into(">BBBBHHQHHI", mad, 0, 1, 3, 2, method, 0, 0, self.tid, attribute, 0, modifier)
        if rmpp:
            struct.pack_into(">BBBB", mad, 24, 1, 1, 1, 0)
        struct.pack_into(">QHHQ", mad, 36, key, 0, 0, mask)
        self.send(bytes(mad))
        while True:
            got = self.receive(10)
            assert got is not None, "no answer"
            if got[0][3] & RESPONSE:
                assert struct.unpack_from(">I", got[0], 12)[0] == self.tid
                return Answer(got[0])
            self.waiting.append(got)

    def report(self, seconds, confirm=True):
        """The data of the next Report, or None. It is confirmed; one that comes again, because the confirmation was
        late, is confirmed again and no news."""
        deadline = time.monotonic() + seconds
        while True:
            got = self.waiting.pop(0) if self.waiting else self.receive(deadline - time.monotonic())
            if got is None:
                return None
            mad, (lid, qpn) = bytearray(got[0]), got[1]
            assert mad[3] == REPORT and struct.unpack_from(">H", mad, 16)[0] == NOTICE
            notice = bytes(mad[56:56 + 80])
            if not confirm:
                return notice
            mad[3] |= RESPONSE
            self.send(bytes(mad[:256]), lid=lid, qp=qpn, timeout=0, retries=0)
            transaction = bytes(mad[8:16])
            if transaction not in self.confirmed:
                self.confirmed.add(transaction)
                return notice

    def next_report(self, trap, seconds=10):
        """The next Report of a trap with this number; others are confirmed and passed over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            notice = self.report(deadline - time.monotonic())
            if notice is not None and trap_number(notice) == trap:
                return notice
        raise AssertionError(f"no Report of trap {trap}")


def trap_number(notice):
    return struct.unpack_from(">H", notice, 4)[0]


def inform_info(subscribe, trap=0xFFFF, qpn=0, gid=bytes(16), first=0xFFFF, last=0, kind=0xFFFF, producer=0xFFFFFF):
    data = bytearray(36)
    data[:16] = gid
    struct.pack_into(">HHHBBHHI", data, 16, first, last, 0, 1, subscribe, kind, trap, qpn << 8 | 15)
    struct.pack_into(">I", data, 32, producer)
    return bytes(data)
