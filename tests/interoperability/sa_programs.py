"""Runs on h2 of a lab of two hosts, whose h1 manages the cable: what Linux and others ask of the administrator.

    sa_programs.py ipoib|rdma_cm|multi_path|events|unconfirmed MANAGER
"""

import struct
import sys

from sa_client import (CLASS_PORT_INFO, DELETE, GET, INFORM_INFO, INFORM_RECORD, MEMBER, MULTI, MULTI_PATH, PATH, SET,
                       TABLE, Client, inform_info, trap_number)

H1_PORT_GUID = 0x0014050000010002
H2_PORT_GUID = 0x0014050000020001


def component(*numbers):
    return sum(1 << number for number in numbers)


# MCMemberRecord, as include/rdma/ib_sa.h numbers its components.
MGID, PORT_GID, QKEY, MLID, MTU_SELECTOR, MTU, TRAFFIC_CLASS, PKEY, RATE_SELECTOR, RATE = range(10)
SL, FLOW_LABEL, HOP_LIMIT, SCOPE, JOIN_STATE = 12, 13, 14, 15, 16
# PathRecord.
SERVICE_ID, DGID, SGID, NUMB_PATH, PATH_PKEY, REVERSIBLE, QOS_CLASS, PATH_TRAFFIC_CLASS = (0, 1), 2, 3, 12, 13, 11, 14, 10


def mgid(text):
    """A group of IPoIB's: the last bytes of its MGID, in hexadecimal, with signature and P_Key before."""
    signature, last = text.split(":")
    return bytes([0xFF, 0x12]) + bytes.fromhex(signature) + b"\xff\xff" + bytes.fromhex(last.rjust(20, "0"))


BROADCAST = mgid("401b:ffffffff")


def member(group, port, qkey=0, mtu=0, pkey=0xFFFF, rate=0, sl_flow_hop=0, state=1):
    return group + port + struct.pack(">IHBBHBBIB", qkey, 0, mtu, 0, pkey, rate, 0, sl_flow_hop, state) + bytes(3)


class Member:
    def __init__(self, record):
        self.mgid, self.port = record[:16], record[16:32]
        (self.qkey, self.mlid, self.mtu, self.traffic_class, self.pkey, self.rate, self.life, self.sl_flow_hop,
         self.scope_state) = struct.unpack_from(">IHBBHBBIB", record, 32)


def expect(answer, status, what):
    assert answer.status == status, f"{what}: status {answer.status:#06x}"
    return answer


def join_broadcast(client):
    mask = component(MGID, PORT_GID, PKEY, JOIN_STATE)
    return Member(expect(client.ask(SET, MEMBER, member(BROADCAST, client.gid), mask), 0, "broadcast group").data)


def later_join(client, broadcast, group, state):
    """ipoib_mcast_join(): everything as the broadcast group has it."""
    mask = component(MGID, PORT_GID, PKEY, JOIN_STATE, QKEY, MTU_SELECTOR, MTU, TRAFFIC_CLASS, RATE_SELECTOR, RATE, SL,
                     FLOW_LABEL, HOP_LIMIT)
    return client.ask(SET, MEMBER, member(group, client.gid, broadcast.qkey, 0x80 | broadcast.mtu & 0x3F, 0xFFFF,
                                          0x80 | broadcast.rate & 0x3F, broadcast.sl_flow_hop, state), mask)


def leave(client, group, state):
    return client.ask(DELETE, MEMBER, member(group, client.gid, pkey=0, state=state),
                      component(MGID, PORT_GID, JOIN_STATE))


def groups(client):
    return {record[:16] for record in expect(client.ask(TABLE, MEMBER), 0, "groups").records}


def ipoib():
    """Linux 6.1: ib_core at CLIENT_REREGISTER or PORT_ACTIVE, ipoib_open(), traffic, ipoib_stop()."""
    client = Client()
    class_info = expect(client.ask(GET, CLASS_PORT_INFO), 0, "ClassPortInfo").data
    assert struct.unpack_from(">I", class_info, 4)[0] >> 5 & 1 << 12, "SendOnlyFullMember"

    # ipoib_mcast_join_task(): the broadcast group first, whose answer makes the interface.
    broadcast = join_broadcast(client)
    assert broadcast.mgid == BROADCAST and broadcast.port == client.gid
    assert broadcast.mlid >= 0xC000 and broadcast.pkey == 0xFFFF
    assert broadcast.qkey == 0x0B1B and broadcast.scope_state == 0x21 and broadcast.mtu >> 6 == 2
    print(f"broadcast mtu={broadcast.mtu & 0x3F} rate={broadcast.rate & 0x3F}")

    # All hosts, IPv4; all nodes and a solicited node, IPv6.
    mlids = {broadcast.mlid}
    joined = [mgid("401b:00000001"), mgid("601b:00000001"), mgid("601b:01ff020001")]
    for group in joined:
        answer = Member(expect(later_join(client, broadcast, group, 1), 0, group.hex()).data)
        assert answer.mtu & 0x3F == broadcast.mtu & 0x3F and answer.rate & 0x3F == broadcast.rate & 0x3F
        assert answer.qkey == broadcast.qkey and answer.scope_state & 0x0F == 1
        mlids.add(answer.mlid)
    assert len(mlids) == 4, "a LID for each group"
    # Again, as after ClientReregister: nothing changes.
    for group in joined:
        expect(later_join(client, broadcast, group, 1), 0, "again")
    # A packet to a group that nobody has joined (mDNS): send only, as a full member.
    mdns = mgid("401b:000000fb")
    assert Member(expect(later_join(client, broadcast, mdns, 8), 0, "send only").data).scope_state & 0x0F == 8
    assert groups(client) == {BROADCAST, mdns, *joined}

    # unicast_arp_send(): path_rec_start().
    query = bytearray(64)
    query[8:24], query[24:40] = client.neighbour(H1_PORT_GUID), client.gid
    query[49] = 1
    struct.pack_into(">H", query, 50, 0xFFFF)
    path = expect(client.ask(GET, PATH, bytes(query), component(DGID, SGID, NUMB_PATH, PATH_TRAFFIC_CLASS, PATH_PKEY)), 0,
                  "path").data
    dlid, slid = struct.unpack_from(">HH", path, 40)
    assert (dlid, slid) == (client.sm_lid, client.lid), (dlid, slid)
    assert path[54] & 0x3F >= broadcast.mtu & 0x3F and path[54] >> 6 == 2

    # ipoib_mcast_leave(), of what is joined.
    assert leave(client, mdns, 1).status == 0x0200, "not joined as a full member"
    expect(leave(client, mdns, 8), 0, "leave")
    for group in [*joined, BROADCAST]:
        expect(leave(client, group, 1), 0, "leave")
    assert groups(client) == {BROADCAST}, "the broadcast group stays"
    assert leave(client, BROADCAST, 1).status == 0x0200


def rdma_cm():
    """cma_query_ib_route() for IPv4, IPv6 and IB addresses; cma_join_ib_multicast()."""
    client = Client()
    service_id = 0x0000000001060000 | 4791  # RDMA_PS_TCP, port
    for mask in (component(*SERVICE_ID, DGID, SGID, PATH_PKEY, NUMB_PATH, REVERSIBLE, QOS_CLASS),
                 component(*SERVICE_ID, DGID, SGID, PATH_PKEY, NUMB_PATH, REVERSIBLE, PATH_TRAFFIC_CLASS)):
        query = bytearray(64)
        struct.pack_into(">Q", query, 0, service_id)
        query[8:24], query[24:40] = client.neighbour(H1_PORT_GUID), client.gid
        query[49] = 0x80 | 1
        struct.pack_into(">H", query, 50, 0xFFFF)
        path = expect(client.ask(GET, PATH, bytes(query), mask), 0, "path").data
        assert struct.unpack_from(">HH", path, 40) == (client.sm_lid, client.lid)
        assert path[49] & 0x80, "reversible"
        assert struct.unpack_from(">H", path, 50)[0] == 0xFFFF
        assert path[54] == 0x85 and path[55] == 0x80 | 16, "exactly what the cable can do"
        query[8:24] = client.neighbour(0x77)
        assert client.ask(GET, PATH, bytes(query), mask).status != 0, "to nobody"

    broadcast = join_broadcast(client)
    mask = component(MGID, PORT_GID, PKEY, JOIN_STATE, QKEY, SL, FLOW_LABEL, TRAFFIC_CLASS)
    group = bytes([0xFF, 0x12, 0xA0, 0x1C]) + b"\xff\xff" + bytes(6) + b"\x0e\x01\x02\x03"
    record = member(group, client.gid, qkey=0x01234567, state=1)
    made = Member(expect(client.ask(SET, MEMBER, record, mask), 0, "multicast").data)
    assert made.mlid != broadcast.mlid and made.qkey == 0x01234567
    expect(leave(client, group, 1), 0, "leave")
    expect(leave(client, BROADCAST, 1), 0, "leave")


def multi_path():
    """GetMulti: a request that is an RMPP message itself."""
    client = Client()
    own, other = client.gid, client.neighbour(H1_PORT_GUID)
    for sources, destinations, number, expected in (([own], [other], 127, 1), ([own], [other, own], 127, 2),
                                                    ([own, other], [own, other], 127, 4),
                                                    ([own, other], [own, other], 3, 3)):
        query = bytearray(24)
        query[5], query[15], query[16] = 0x80 | number, len(sources), len(destinations)
        data = bytes(query) + b"".join(sources + destinations)
        answer = expect(client.ask(MULTI, MULTI_PATH, data, component(5, 6, 19, 20), rmpp=True), 0, "multi path")
        assert answer.attribute == PATH and answer.method == 0x94
        assert len(answer.records) == expected, len(answer.records)
        pairs = [(record[24:40], record[8:24]) for record in answer.records]
        assert len(set(pairs)) == expected and all(s in sources and d in destinations for s, d in pairs)
    query[16] = 0
    answer = client.ask(MULTI, MULTI_PATH, bytes(query), component(19, 20), rmpp=True)
    assert answer.status != 0 or not answer.records, "paths to nobody"


def events():
    """Subscribes, and tells on standard output what it hears; the test makes things happen when told so."""
    client = Client()
    for trap in (144, 129):
        expect(client.ask(SET, INFORM_INFO, inform_info(1, trap)), 0, "subscribe")
    records = expect(client.ask(TABLE, INFORM_RECORD), 0, "subscriptions").records
    assert len(records) == 2 and all(record[:16] == client.gid for record in records)
    print("subscribed", flush=True)
    notice = client.next_report(144)
    print(f"144 lid={struct.unpack_from('>H', notice, 6)[0]} gid={notice[64:].hex()}", flush=True)
    if sys.argv[2] == "fabricd":  # OpenSM does not report it
        notice = client.next_report(129)
        print(f"129 lid={struct.unpack_from('>H', notice, 6)[0]} gid={notice[64:].hex()}", flush=True)
    # A group that comes and goes is an event of the manager.
    expect(client.ask(SET, INFORM_INFO, inform_info(1, 66)), 0, "subscribe")
    expect(client.ask(SET, INFORM_INFO, inform_info(1, 67)), 0, "subscribe")
    group = mgid("401b:00000002")
    broadcast = join_broadcast(client)
    expect(later_join(client, broadcast, group, 1), 0, "join")
    while client.next_report(66)[16:32] != group:
        pass
    expect(leave(client, group, 1), 0, "leave")
    while client.next_report(67)[16:32] != group:
        pass
    # No more.
    for trap in (144, 129, 66, 67):
        expect(client.ask(SET, INFORM_INFO, inform_info(0, trap, qpn=1)), 0, "unsubscribe")
    assert client.ask(SET, INFORM_INFO, inform_info(0, 144, qpn=1)).status == 0x0200
    assert not client.ask(TABLE, INFORM_RECORD).records
    print("unsubscribed", flush=True)
    sys.stdin.readline()
    late = client.report(0.3)
    assert late is None, f"a Report of trap {trap_number(late)} after the end of the subscription"


def unconfirmed():
    """Never says that it got a Report: it comes again, four times in all, the same each time."""
    client = Client()
    expect(client.ask(SET, INFORM_INFO, inform_info(1, 144)), 0, "subscribe")
    print("subscribed", flush=True)
    first = client.report(10, confirm=False)
    assert first is not None and trap_number(first) == 144
    for _ in range(3):
        assert client.report(10, confirm=False) == first
    print("four", flush=True)
    assert client.report(2, confirm=False) is None
    assert len(client.ask(TABLE, INFORM_RECORD).records) == 1, "still subscribed"


globals()[sys.argv[1]]()
print("done")
