// What goes wrong, and how an adapter has to say so: wrong keys, bounds, flags, numbers, states and limits,
// one case each, with the completion statuses, the asynchronous event and the errno that hardware gives.
//
//   verbs_failures [--only TEXT] [--except TEXT]... DEVICE/PORT DEVICE/PORT
//
// The requester uses the first port, the responder the second one, both in this process: two ports that are
// cabled to each other, or one port twice. Real or not: nothing here knows what the adapter is. Prints a line
// per case, exits 0 if all hold. verbs_conformance has what needs two processes, and what goes well.
//
// InfiniBand Architecture volume 1, release 1.3: 9.9 (errors of requester and responder), 10.3.1
// (states), 11.6.2 (completion statuses), 11.6.3 (asynchronous events).
#include <infiniband/verbs.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "verbs_programs.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr int kAllAccess =
    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
constexpr std::size_t kSize = 8192;
constexpr std::uint32_t kQkey = 0x11111111;
constexpr std::uint32_t kLimit = 8;  // of work requests and completions, where a case is about them

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// The ports do not have what the case is about.
struct LeftOut : std::runtime_error {
  using std::runtime_error::runtime_error;
};
void expect(bool condition, const std::string& what) {
  if (!condition) throw Failure(what);
}
void expect_errno(int got, std::initializer_list<int> wanted, const std::string& what) {
  if (std::find(wanted.begin(), wanted.end(), got) == wanted.end())
    throw Failure(what + ": " + (got == 0 ? "no error" : std::strerror(got)));
}

struct Port {
  ibv_context* context = nullptr;
  std::uint8_t number = 1;
  ibv_port_attr attr{};
  PortAddress address;

  explicit Port(const std::string& name) {
    const auto slash = name.find('/');
    if (slash != std::string::npos) number = static_cast<std::uint8_t>(std::stoi(name.substr(slash + 1)));
    ibv_device** list = ibv_get_device_list(nullptr);
    for (int i = 0; list != nullptr && list[i] != nullptr; ++i)
      if (name.substr(0, slash) == ibv_get_device_name(list[i])) context = ibv_open_device(list[i]);
    if (list != nullptr) ibv_free_device_list(list);
    expect(context != nullptr, "no device " + name);
    expect(ibv_query_port(context, number, &attr) == 0, "ibv_query_port");
    expect(attr.state == IBV_PORT_ACTIVE, name + " is not Active");
    address = address_of(context, number, attr);
  }
};

/// How the two queue pairs of a case are made. A case changes the one thing that it is about.
struct Plan {
  ibv_qp_type type = IBV_QPT_RC;
  ibv_qp_type responder_type = IBV_QPT_RC;
  unsigned responder_access = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
  int source_access = IBV_ACCESS_LOCAL_WRITE;               // of the requester's memory
  int target_access = kAllAccess;                           // of the responder's
  bool source_elsewhere = false, target_elsewhere = false;  // in another protection domain
  int requester_mtu = 0, responder_mtu = 0;                 // enum ibv_mtu; 0: the port's
  std::int32_t psn_ahead = 0;                   // how far the requester's PSN is from what is expected
  std::uint16_t requester_pkey = 0;             // index
  std::uint8_t responder_reads = 1;             // max_dest_rd_atomic
  std::uint32_t wrong_qpn = 0, wrong_peer = 0;  // xor: at the requester, at the responder
  std::uint16_t wrong_lid = 0;
  ibv_qp_state responder_state = IBV_QPS_RTS;
  int receives = 1;  // posted, of kSize bytes each
  std::function<ibv_sge(ibv_sge)> change_receive;
};

class Lane {
 public:
  Lane(Port& requester_port, Port& responder_port, const Plan& chosen)
      : plan(chosen), near(requester_port), far(responder_port) {
    if (plan.type != IBV_QPT_RC)
      plan.responder_type = plan.responder_type == IBV_QPT_RC ? plan.type : plan.responder_type;
    for (Port* port : {&near, &far}) {
      Side& side = port == &near ? source : target;
      side.memory.assign(kSize, port == &near ? 0xAA : 0x55);
      side.pd = ibv_alloc_pd(port->context);
      side.other_pd = ibv_alloc_pd(port->context);
      const bool elsewhere = port == &near ? plan.source_elsewhere : plan.target_elsewhere;
      side.mr = ibv_reg_mr(elsewhere ? side.other_pd : side.pd, side.memory.data(), kSize,
                           port == &near ? plan.source_access : plan.target_access);
      side.cq = ibv_create_cq(port->context, 64, nullptr, nullptr, 0);
      expect(side.mr != nullptr && side.cq != nullptr, "region and completion queue");
      ibv_qp_init_attr init{};
      init.send_cq = init.recv_cq = side.cq;
      init.cap = {16, 16, 2, 2, 0};
      init.qp_type = port == &near ? plan.type : plan.responder_type;
      side.qp = ibv_create_qp(side.pd, &init);
      expect(side.qp != nullptr, "queue pair");
    }
    drain_events();
  }
  ~Lane() {
    if (route != nullptr) ibv_destroy_ah(route);
    for (Side* side : {&source, &target}) {
      if (side->qp != nullptr) ibv_destroy_qp(side->qp);
      if (side->mr != nullptr) ibv_dereg_mr(side->mr);
      if (side->cq != nullptr) ibv_destroy_cq(side->cq);
      ibv_dealloc_pd(side->pd);
      ibv_dealloc_pd(side->other_pd);
    }
    drain_events();
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  void connect() {
    const std::uint32_t psn = 1000;
    expect(
        to_init(near, source.qp, plan.type, kAllAccess & ~IBV_ACCESS_LOCAL_WRITE, plan.requester_pkey) == 0,
        "requester to INIT");
    expect(to_init(far, target.qp, plan.responder_type, plan.responder_access, 0) == 0, "responder to INIT");
    for (int i = 0; i < plan.receives; ++i) {
      ibv_sge sge{reinterpret_cast<std::uint64_t>(target.memory.data()), kSize, target.mr->lkey};
      if (plan.change_receive) sge = plan.change_receive(sge);
      ibv_recv_wr wr{
          .wr_id = 500u + static_cast<unsigned>(i), .next = nullptr, .sg_list = &sge, .num_sge = 1};
      ibv_recv_wr* bad = nullptr;
      expect(ibv_post_recv(target.qp, &wr, &bad) == 0, "receive request");
    }
    const auto peer = target.qp->qp_num ^ plan.wrong_qpn;
    if (plan.wrong_lid != 0 && far.address.ethernet) throw LeftOut("there are no LIDs");
    PortAddress there = far.address;
    there.lid ^= plan.wrong_lid;
    expect(to_rtr(near, source.qp, plan.type, peer, there, psn, plan.requester_mtu, 1) == 0,
           "requester to RTR");
    expect(to_rts(source.qp, plan.type, psn + static_cast<std::uint32_t>(plan.psn_ahead)) == 0,
           "requester to RTS");
    if (plan.responder_state != IBV_QPS_INIT) {
      expect(to_rtr(far, target.qp, plan.responder_type, source.qp->qp_num ^ plan.wrong_peer, near.address,
                    psn, plan.responder_mtu, plan.responder_reads) == 0,
             "responder to RTR");
      if (plan.responder_state != IBV_QPS_RTR)
        expect(to_rts(target.qp, plan.responder_type, psn) == 0, "responder to RTS");
      if (plan.responder_state == IBV_QPS_ERR || plan.responder_state == IBV_QPS_RESET) {
        ibv_qp_attr attr{};
        attr.qp_state = plan.responder_state;
        expect(ibv_modify_qp(target.qp, &attr, IBV_QP_STATE) == 0, "responder to its state");
      }
    }
    if (plan.type == IBV_QPT_UD) {
      ibv_ah_attr attr = way_to(there, near.number);
      route = ibv_create_ah(source.pd, &attr);
      expect(route != nullptr, "address handle");
    }
  }

  static int to_init(Port& port, ibv_qp* qp, ibv_qp_type type, unsigned access, std::uint16_t pkey) {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_INIT;
    attr.port_num = port.number;
    attr.pkey_index = pkey;
    attr.qp_access_flags = access;
    attr.qkey = kQkey;
    return ibv_modify_qp(qp, &attr,
                         IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
                             (type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS));
  }
  static int to_rtr(Port& port, ibv_qp* qp, ibv_qp_type type, std::uint32_t peer, const PortAddress& there,
                    std::uint32_t psn, int mtu, std::uint8_t reads) {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_RTR;
    if (type == IBV_QPT_UD) return ibv_modify_qp(qp, &attr, IBV_QP_STATE);
    attr.path_mtu = mtu == 0 ? port.attr.active_mtu : static_cast<ibv_mtu>(mtu);
    attr.dest_qp_num = peer;
    attr.rq_psn = psn;
    attr.max_dest_rd_atomic = reads;
    attr.min_rnr_timer = 1;
    attr.ah_attr = way_to(there, port.number);
    return ibv_modify_qp(qp, &attr,
                         IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                             (type == IBV_QPT_RC ? IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER : 0));
  }
  static int to_rts(ibv_qp* qp, ibv_qp_type type, std::uint32_t psn) {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_RTS;
    attr.sq_psn = psn;
    attr.timeout = 10;  // 4 ms
    attr.retry_cnt = 1;
    attr.rnr_retry = 0;
    attr.max_rd_atomic = 1;
    return ibv_modify_qp(qp, &attr,
                         IBV_QP_STATE | IBV_QP_SQ_PSN |
                             (type == IBV_QPT_RC ? IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                                       IBV_QP_MAX_QP_RD_ATOMIC
                                                 : 0));
  }

  /// A request of `length` bytes; a case changes it.
  ibv_send_wr request(ibv_wr_opcode opcode, std::uint32_t length = 64) {
    sge = {reinterpret_cast<std::uint64_t>(source.memory.data()), length, source.mr->lkey};
    ibv_send_wr wr{};
    wr.wr_id = 1;
    wr.sg_list = &sge;
    wr.num_sge = 1;
    wr.opcode = opcode;
    wr.send_flags = IBV_SEND_SIGNALED;
    const auto remote = reinterpret_cast<std::uint64_t>(target.memory.data());
    if (opcode == IBV_WR_ATOMIC_FETCH_AND_ADD || opcode == IBV_WR_ATOMIC_CMP_AND_SWP) {
      sge.length = 8;
      wr.wr.atomic = {remote, 1, 0, target.mr->rkey};
    } else if (plan.type == IBV_QPT_UD) {
      wr.wr.ud = {route, target.qp->qp_num, kQkey};
    } else {
      wr.wr.rdma = {remote, target.mr->rkey};
    }
    return wr;
  }
  int post(ibv_send_wr wr) {
    ibv_send_wr* bad = nullptr;
    return ibv_post_send(source.qp, &wr, &bad);
  }

  static ibv_wc next(ibv_cq* cq, const std::string& what) {
    const auto deadline = Clock::now() + 20s;
    ibv_wc wc{};
    while (ibv_poll_cq(cq, 1, &wc) == 0) expect(Clock::now() < deadline, what + ": no completion");
    return wc;
  }
  static void expect_status(const ibv_wc& wc, const std::vector<ibv_wc_status>& wanted,
                            const std::string& what) {
    expect(std::find(wanted.begin(), wanted.end(), wc.status) != wanted.end(),
           what + ": \"" + ibv_wc_status_str(wc.status) + "\"");
  }
  static ibv_qp_state state(ibv_qp* qp) {
    ibv_qp_attr attr{};
    ibv_qp_init_attr init{};
    ibv_query_qp(qp, &attr, IBV_QP_STATE, &init);
    return attr.qp_state;
  }
  bool event_arrives(ibv_event_type wanted) {
    const auto deadline = Clock::now() + 20s;
    while (Clock::now() < deadline) {
      pollfd descriptor{far.context->async_fd, POLLIN, 0};
      if (poll(&descriptor, 1, 50) <= 0) continue;
      ibv_async_event event{};
      if (ibv_get_async_event(far.context, &event) != 0) return false;
      const bool found = event.event_type == wanted && event.element.qp == target.qp;
      ibv_ack_async_event(&event);
      if (found) return true;
    }
    return false;
  }
  void drain_events() {
    for (ibv_context* context : {near.context, far.context}) {
      for (;;) {
        pollfd descriptor{context->async_fd, POLLIN, 0};
        ibv_async_event event{};
        if (poll(&descriptor, 1, 0) <= 0 || ibv_get_async_event(context, &event) != 0) break;
        ibv_ack_async_event(&event);
      }
    }
  }
  [[nodiscard]] bool target_untouched() const {
    return std::all_of(target.memory.begin(), target.memory.end(),
                       [](std::uint8_t byte) { return byte == 0x55; });
  }

  struct Side {
    std::vector<std::uint8_t> memory;
    ibv_pd *pd = nullptr, *other_pd = nullptr;
    ibv_mr* mr = nullptr;
    ibv_cq* cq = nullptr;
    ibv_qp* qp = nullptr;
  };
  Plan plan;
  Port &near, &far;
  Side source, target;
  ibv_ah* route = nullptr;
  ibv_sge sge{};
};

// ---- Requests that are accepted and fail ----

using Change = std::function<void(Plan&)>;
using Request = std::function<ibv_send_wr(Lane&)>;
using Statuses = std::vector<ibv_wc_status>;

struct Case {
  const char* name;
  Change change;
  Request request;
  Statuses requester;                     // any of these
  Statuses responder = {};                // of its receive request, where that completes by itself
  std::optional<ibv_event_type> event{};  // at the responder
};

Request plain(ibv_wr_opcode opcode, std::uint32_t length = 64) {
  return [=](Lane& lane) { return lane.request(opcode, length); };
}
Request changed(ibv_wr_opcode opcode, const std::function<void(Lane&, ibv_send_wr&)>& change) {
  return [=](Lane& lane) {
    ibv_send_wr wr = lane.request(opcode);
    change(lane, wr);
    return wr;
  };
}
void nothing(Plan&) {}

const Statuses kAccess = {IBV_WC_REM_ACCESS_ERR}, kInvalid = {IBV_WC_REM_INV_REQ_ERR},
               kOperation = {IBV_WC_REM_OP_ERR}, kRetry = {IBV_WC_RETRY_EXC_ERR},
               kRnr = {IBV_WC_RNR_RETRY_EXC_ERR}, kProtection = {IBV_WC_LOC_PROT_ERR},
               kLength = {IBV_WC_LOC_LEN_ERR},
               // Where the operation is not allowed at all adapters differ.
    kForbidden = {IBV_WC_REM_INV_REQ_ERR, IBV_WC_REM_ACCESS_ERR},
               kMisaligned = {IBV_WC_REM_INV_REQ_ERR, IBV_WC_REM_ACCESS_ERR, IBV_WC_REM_OP_ERR};
constexpr auto kAccessEvent = IBV_EVENT_QP_ACCESS_ERR;

const std::vector<Case> kCases = {
    // R_Key, bounds, access flags (10.6.3, 9.7.4.1.5)
    {"write, R_Key of nobody",
     nothing,
     changed(IBV_WR_RDMA_WRITE, [](Lane&, ibv_send_wr& wr) { wr.wr.rdma.rkey ^= 0x100; }),
     kAccess,
     {},
     kAccessEvent},
    {"write, R_Key 0", nothing,
     changed(IBV_WR_RDMA_WRITE, [](Lane&, ibv_send_wr& wr) { wr.wr.rdma.rkey = 0; }), kAccess},
    {"write, R_Key of a region that is no more", nothing,
     changed(IBV_WR_RDMA_WRITE,
             [](Lane& lane, ibv_send_wr&) {
               ibv_dereg_mr(lane.target.mr);
               lane.target.mr = nullptr;
             }),
     kAccess},
    {"write, one byte behind the region",
     nothing,
     changed(IBV_WR_RDMA_WRITE, [](Lane&, ibv_send_wr& wr) { wr.wr.rdma.remote_addr += kSize - 63; }),
     kAccess,
     {},
     kAccessEvent},
    {"write, one byte before the region", nothing,
     changed(IBV_WR_RDMA_WRITE, [](Lane&, ibv_send_wr& wr) { wr.wr.rdma.remote_addr -= 1; }), kAccess},
    {"write, over the end of the address space", nothing,
     changed(IBV_WR_RDMA_WRITE, [](Lane&, ibv_send_wr& wr) { wr.wr.rdma.remote_addr = UINT64_MAX - 7; }),
     kAccess},
    {"read, one byte behind the region", nothing,
     changed(IBV_WR_RDMA_READ, [](Lane&, ibv_send_wr& wr) { wr.wr.rdma.remote_addr += kSize - 63; }),
     kAccess},
    {"atomic behind the region", nothing,
     changed(IBV_WR_ATOMIC_FETCH_AND_ADD, [](Lane&, ibv_send_wr& wr) { wr.wr.atomic.remote_addr += kSize; }),
     kAccess},
    {"write to a region of another protection domain",
     [](Plan& p) {
       p.target_elsewhere = true;
       p.receives = 0;
     },
     plain(IBV_WR_RDMA_WRITE),
     kAccess,
     {},
     kAccessEvent},
    {"write to a region without remote write",
     [](Plan& p) { p.target_access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ; },
     plain(IBV_WR_RDMA_WRITE),
     kAccess,
     {},
     kAccessEvent},
    {"read from a region without remote read",
     [](Plan& p) { p.target_access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE; },
     plain(IBV_WR_RDMA_READ),
     kAccess,
     {},
     kAccessEvent},
    {"atomic on a region without remote atomic",
     [](Plan& p) { p.target_access = kAllAccess & ~IBV_ACCESS_REMOTE_ATOMIC; },
     plain(IBV_WR_ATOMIC_CMP_AND_SWP),
     kAccess,
     {},
     kAccessEvent},
    {"write to a queue pair without remote write",
     [](Plan& p) { p.responder_access = IBV_ACCESS_REMOTE_READ; }, plain(IBV_WR_RDMA_WRITE), kForbidden},
    {"read from a queue pair without remote read",
     [](Plan& p) { p.responder_access = IBV_ACCESS_REMOTE_WRITE; }, plain(IBV_WR_RDMA_READ), kForbidden},
    {"atomic on a queue pair without remote atomic",
     [](Plan& p) { p.responder_access = IBV_ACCESS_REMOTE_WRITE; }, plain(IBV_WR_ATOMIC_FETCH_AND_ADD),
     kForbidden},
    {"read from a queue pair that answers no reads",
     [](Plan& p) { p.responder_reads = 0; },
     plain(IBV_WR_RDMA_READ),
     kInvalid,
     {},
     IBV_EVENT_QP_REQ_ERR},
    {"misaligned atomic", nothing,
     changed(IBV_WR_ATOMIC_FETCH_AND_ADD, [](Lane&, ibv_send_wr& wr) { wr.wr.atomic.remote_addr += 4; }),
     kMisaligned},
    // L_Key of the requester
    {"send, L_Key of nobody", nothing,
     changed(IBV_WR_SEND, [](Lane& lane, ibv_send_wr&) { lane.sge.lkey ^= 0x100; }), kProtection},
    {"send, behind the region", nothing,
     changed(IBV_WR_SEND, [](Lane& lane, ibv_send_wr&) { lane.sge.addr += kSize - 63; }), kProtection},
    {"send from a region of another protection domain", [](Plan& p) { p.source_elsewhere = true; },
     plain(IBV_WR_SEND), kProtection},
    {"read into a region without local write", [](Plan& p) { p.source_access = 0; }, plain(IBV_WR_RDMA_READ),
     kProtection},
    {"atomic into a region without local write", [](Plan& p) { p.source_access = 0; },
     plain(IBV_WR_ATOMIC_FETCH_AND_ADD), kProtection},
    // Receive requests
    {"message longer than the receive request",
     [](Plan& p) {
       p.change_receive = [](ibv_sge sge) {
         sge.length = 63;
         return sge;
       };
     },
     plain(IBV_WR_SEND), kInvalid, kLength},
    {"receive request with the L_Key of nobody",
     [](Plan& p) {
       p.change_receive = [](ibv_sge sge) {
         sge.lkey ^= 0x100;
         return sge;
       };
     },
     plain(IBV_WR_SEND), kOperation, kProtection},
    {"receive request behind its region",
     [](Plan& p) {
       p.change_receive = [](ibv_sge sge) {
         sge.addr += kSize - 63;
         return sge;
       };
     },
     plain(IBV_WR_SEND), kOperation, kProtection},
    {"receive request into a region without local write",
     [](Plan& p) { p.target_access = IBV_ACCESS_REMOTE_READ; }, plain(IBV_WR_SEND), kOperation, kProtection},
    {"receive request into a region of another protection domain", [](Plan& p) { p.target_elsewhere = true; },
     plain(IBV_WR_SEND), kOperation, kProtection},
    {"no receive request", [](Plan& p) { p.receives = 0; }, plain(IBV_WR_SEND), kRnr},
    {"no receive request for immediate data", [](Plan& p) { p.receives = 0; },
     plain(IBV_WR_RDMA_WRITE_WITH_IMM), kRnr},
    // Packets that are dropped
    {"P_Key of no partition", [](Plan& p) { p.requester_pkey = 1; }, plain(IBV_WR_SEND), kRetry},
    {"PSN ahead of what is expected", [](Plan& p) { p.psn_ahead = 5; }, plain(IBV_WR_SEND), kRetry},
    {"queue pair number of nobody", [](Plan& p) { p.wrong_qpn = 0x40; }, plain(IBV_WR_SEND), kRetry},
    {"LID of nobody", [](Plan& p) { p.wrong_lid = 0x1000; }, plain(IBV_WR_SEND), kRetry},
    {"responder of another transport", [](Plan& p) { p.responder_type = IBV_QPT_UC; }, plain(IBV_WR_SEND),
     kRetry},
    {"responder in INIT", [](Plan& p) { p.responder_state = IBV_QPS_INIT; }, plain(IBV_WR_SEND), kRetry},
    {"responder in RESET", [](Plan& p) { p.responder_state = IBV_QPS_RESET; }, plain(IBV_WR_SEND), kRetry},
    {"responder in ERR",
     [](Plan& p) { p.responder_state = IBV_QPS_ERR; },
     plain(IBV_WR_SEND),
     kRetry,
     {IBV_WC_WR_FLUSH_ERR}},
    {"MTU larger than the responder's",
     [](Plan& p) {
       p.requester_mtu = IBV_MTU_2048;
       p.responder_mtu = IBV_MTU_1024;
     },
     plain(IBV_WR_RDMA_WRITE, 4096),
     {IBV_WC_REM_INV_REQ_ERR, IBV_WC_RETRY_EXC_ERR}},
};

void run(const Case& test, Port& near, Port& far) {
  Plan plan;
  test.change(plan);
  Lane lane(near, far, plan);
  lane.connect();
  const ibv_send_wr wr = test.request(lane);
  expect(lane.post(wr) == 0, "the request itself is accepted");
  ibv_sge good{reinterpret_cast<std::uint64_t>(lane.source.memory.data()), 8, lane.source.mr->lkey};
  ibv_send_wr behind{};
  behind.wr_id = 2;
  behind.sg_list = &good;
  behind.num_sge = 1;
  behind.opcode = IBV_WR_SEND;  // unsignaled: flushed all the same
  expect(lane.post(behind) == 0, "the request behind it is accepted");
  const ibv_wc failed = Lane::next(lane.source.cq, "request");
  expect(failed.wr_id == 1, "wr_id of the request");
  Lane::expect_status(failed, test.requester, "request");
  const ibv_wc flushed = Lane::next(lane.source.cq, "the request behind it");
  expect(flushed.wr_id == 2, "wr_id of the request behind it");
  Lane::expect_status(flushed, {IBV_WC_WR_FLUSH_ERR}, "the request behind it");
  expect(Lane::state(lane.source.qp) == IBV_QPS_ERR, "the requester is in ERR");
  if (!test.responder.empty())
    Lane::expect_status(Lane::next(lane.target.cq, "receive request"), test.responder, "receive request");
  if (test.event)
    expect(lane.event_arrives(*test.event), std::string("no ") + ibv_event_type_str(*test.event));
  expect(lane.target_untouched(), "the responder's memory has changed");
  // Whoever sent a NAK of these kinds is in error too (9.9.3.1).
  const auto status = failed.status;
  if (status == IBV_WC_REM_ACCESS_ERR || status == IBV_WC_REM_OP_ERR || status == IBV_WC_REM_INV_REQ_ERR)
    expect(Lane::state(lane.target.qp) == IBV_QPS_ERR, "the responder is in ERR");
}

// ---- Transports that do not answer ----

void unreliable_write(Port& near, Port& far) {
  Plan plan;
  plan.type = IBV_QPT_UC;
  Lane lane(near, far, plan);
  lane.connect();
  ibv_send_wr wr = lane.request(IBV_WR_RDMA_WRITE);
  wr.wr.rdma.rkey ^= 0x100;
  expect(lane.post(wr) == 0, "post");
  Lane::expect_status(Lane::next(lane.source.cq, "write"), {IBV_WC_SUCCESS}, "nobody says that it failed");
  expect(lane.target_untouched(), "memory has changed");
  expect(lane.post(lane.request(IBV_WR_SEND)) == 0, "post");
  Lane::expect_status(Lane::next(lane.target.cq, "the next message"), {IBV_WC_SUCCESS},
                      "the next message arrives");
}

void datagram_qkey(Port& near, Port& far) {
  Plan plan;
  plan.type = IBV_QPT_UD;
  ibv_port_attr before{}, after{};
  Lane lane(near, far, plan);
  lane.connect();
  ibv_query_port(far.context, far.number, &before);
  ibv_send_wr wr = lane.request(IBV_WR_SEND);
  wr.wr.ud.remote_qkey = kQkey + 1;
  expect(lane.post(wr) == 0, "post");
  Lane::expect_status(Lane::next(lane.source.cq, "datagram"), {IBV_WC_SUCCESS}, "nobody says that it failed");
  wr = lane.request(IBV_WR_SEND);
  wr.wr_id = 2;
  expect(lane.post(wr) == 0, "post");
  Lane::expect_status(Lane::next(lane.target.cq, "the next datagram"), {IBV_WC_SUCCESS},
                      "the next one arrives");
  ibv_query_port(far.context, far.number, &after);
  expect(after.qkey_viol_cntr == before.qkey_viol_cntr + 1, "the violation is counted");
}

void datagram_too_long(Port& near, Port& far) {
  Plan plan;
  plan.type = IBV_QPT_UD;
  Lane lane(near, far, plan);
  lane.connect();
  expect(lane.post(lane.request(IBV_WR_SEND, (128u << near.attr.active_mtu) + 1)) == 0, "post");
  Lane::expect_status(Lane::next(lane.source.cq, "datagram"), kLength, "longer than the MTU");
  // A local error of a datagram queue pair stops its sending half only (10.3.1.6).
  expect(Lane::state(lane.source.qp) == IBV_QPS_SQE, "the sender is in SQE");
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RTS;
  expect(ibv_modify_qp(lane.source.qp, &attr, IBV_QP_STATE) == 0, "SQE to RTS");
  expect(lane.post(lane.request(IBV_WR_SEND)) == 0, "post");
  Lane::expect_status(Lane::next(lane.source.cq, "datagram"), {IBV_WC_SUCCESS}, "sends again");
}

void duplicate_psn(Port& near, Port& far) {
  Plan plan;
  plan.psn_ahead = -5;  // what the responder believes to have had
  Lane lane(near, far, plan);
  lane.connect();
  expect(lane.post(lane.request(IBV_WR_SEND)) == 0, "post");
  Lane::expect_status(Lane::next(lane.source.cq, "send"), {IBV_WC_SUCCESS}, "a duplicate is acknowledged");
  ibv_wc wc{};
  expect(ibv_poll_cq(lane.target.cq, 1, &wc) == 0 && lane.target_untouched(), "and not delivered");
}

// ---- What is refused at once ----

void posting(Port& near, Port& far) {
  Lane lane(near, far, {});
  const auto send_errno = [&](ibv_send_wr wr) { return lane.post(wr); };
  expect_errno(send_errno(lane.request(IBV_WR_SEND)), {EINVAL}, "send request in RESET");
  lane.connect();
  ibv_send_wr wr = lane.request(IBV_WR_SEND);
  std::vector<ibv_sge> many(64, lane.sge);
  wr.sg_list = many.data();
  wr.num_sge = 64;
  expect_errno(send_errno(wr), {EINVAL, ENOMEM}, "too many gather entries");
  wr = lane.request(IBV_WR_SEND);
  wr.send_flags |= IBV_SEND_INLINE;
  lane.sge.length = kSize;
  expect_errno(send_errno(wr), {EINVAL, ENOMEM}, "more inline data than the queue pair has room for");
  wr = lane.request(IBV_WR_SEND);
  wr.opcode = static_cast<ibv_wr_opcode>(77);
  expect_errno(send_errno(wr), {EINVAL, EOPNOTSUPP}, "unknown opcode");
  // The first one of a list that does not fit is named; those before it are posted.
  ibv_send_wr list[3] = {lane.request(IBV_WR_RDMA_WRITE), lane.request(IBV_WR_RDMA_WRITE),
                         lane.request(IBV_WR_SEND)};
  list[1].opcode = static_cast<ibv_wr_opcode>(77);
  list[0].next = &list[1];
  list[1].next = &list[2];
  ibv_send_wr* bad = nullptr;
  expect_errno(ibv_post_send(lane.source.qp, list, &bad), {EINVAL, EOPNOTSUPP}, "list");
  expect(bad == &list[1], "the bad one of a list");
  Lane::expect_status(Lane::next(lane.source.cq, "the one before it"), {IBV_WC_SUCCESS}, "the one before it");
}

void wrong_opcodes(Port& near, Port& far) {
  Plan plan;
  plan.type = IBV_QPT_UD;
  Lane datagram(near, far, plan);
  datagram.connect();
  for (const auto opcode : {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_FETCH_AND_ADD})
    expect_errno(datagram.post(datagram.request(opcode)), {EINVAL, EOPNOTSUPP}, "RDMA by datagram");
  plan.type = IBV_QPT_UC;
  Lane unreliable(near, far, plan);
  unreliable.connect();
  for (const auto opcode : {IBV_WR_RDMA_READ, IBV_WR_ATOMIC_CMP_AND_SWP})
    expect_errno(unreliable.post(unreliable.request(opcode)), {EINVAL, EOPNOTSUPP},
                 "answers of an unreliable peer");
}

void full_queues(Port& near, Port& far) {
  Plan plan;
  plan.receives = 0;
  Lane lane(near, far, plan);
  lane.connect();
  ibv_qp_attr attr{};
  ibv_qp_init_attr init{};
  ibv_query_qp(lane.target.qp, &attr, IBV_QP_CAP, &init);
  ibv_sge sge{reinterpret_cast<std::uint64_t>(lane.target.memory.data()), 8, lane.target.mr->lkey};
  ibv_recv_wr receive{};
  receive.sg_list = &sge;
  receive.num_sge = 1;
  ibv_recv_wr* bad = nullptr;
  for (std::uint32_t i = 0; i < init.cap.max_recv_wr; ++i)
    expect(ibv_post_recv(lane.target.qp, &receive, &bad) == 0, "as many receive requests as agreed");
  expect_errno(ibv_post_recv(lane.target.qp, &receive, &bad), {ENOMEM}, "one receive request more");
  expect(bad == &receive, "the bad one");
  ibv_srq_init_attr srq_init{};
  srq_init.attr = {.max_wr = kLimit, .max_sge = 1, .srq_limit = 0};
  ibv_srq* srq = ibv_create_srq(lane.target.pd, &srq_init);
  expect(srq != nullptr, "shared receive queue");
  for (std::uint32_t i = 0; i < srq_init.attr.max_wr; ++i)
    expect(ibv_post_srq_recv(srq, &receive, &bad) == 0, "as many shared receive requests as agreed");
  expect_errno(ibv_post_srq_recv(srq, &receive, &bad), {ENOMEM}, "one shared receive request more");
  ibv_srq_attr limit{.max_wr = 0, .max_sge = 0, .srq_limit = srq_init.attr.max_wr + 1};
  expect_errno(ibv_modify_srq(srq, &limit, IBV_SRQ_LIMIT), {EINVAL}, "a limit beyond the queue");
  expect(ibv_destroy_srq(srq) == 0, "destroy");
}

void creating(Port& near, Port&) {
  ibv_device_attr device{};
  expect(ibv_query_device(near.context, &device) == 0, "ibv_query_device");
  ibv_pd* pd = ibv_alloc_pd(near.context);
  std::vector<std::uint8_t> memory(4096);
  const auto refused = [](void* object, std::initializer_list<int> wanted, const std::string& what) {
    expect(object == nullptr, what + " was made");
    expect_errno(errno, wanted, what);
  };
  for (const int access : {IBV_ACCESS_REMOTE_WRITE, IBV_ACCESS_REMOTE_ATOMIC})
    refused(ibv_reg_mr(pd, memory.data(), memory.size(), access), {EINVAL}, "remote without local write");
  refused(ibv_create_cq(near.context, 0, nullptr, nullptr, 0), {EINVAL}, "completion queue of no entries");
  refused(ibv_create_cq(near.context, device.max_cqe + 1, nullptr, nullptr, 0), {EINVAL, ENOMEM},
          "too large a queue");
  ibv_cq* cq = ibv_create_cq(near.context, 16, nullptr, nullptr, 0);
  ibv_qp_init_attr good{};
  good.send_cq = good.recv_cq = cq;
  good.cap = {8, 8, 1, 1, 0};
  good.qp_type = IBV_QPT_RC;
  const auto refuse_qp = [&](const std::function<void(ibv_qp_init_attr&)>& change, const std::string& what) {
    ibv_qp_init_attr init = good;
    change(init);
    refused(ibv_create_qp(pd, &init), {EINVAL, ENOMEM, EOPNOTSUPP}, what);
  };
  const auto max_wr = static_cast<std::uint32_t>(device.max_qp_wr),
             max_sge = static_cast<std::uint32_t>(device.max_sge);
  refuse_qp([&](ibv_qp_init_attr& init) { init.cap.max_send_wr = max_wr + 1; }, "too many send requests");
  refuse_qp([&](ibv_qp_init_attr& init) { init.cap.max_recv_wr = max_wr + 1; }, "too many receive requests");
  refuse_qp([&](ibv_qp_init_attr& init) { init.cap.max_send_sge = max_sge + 1; }, "too many gather entries");
  refuse_qp([&](ibv_qp_init_attr& init) { init.cap.max_recv_sge = max_sge + 1; }, "too many scatter entries");
  refuse_qp([&](ibv_qp_init_attr& init) { init.cap.max_inline_data = 1 << 20; }, "too much inline data");
  refuse_qp([&](ibv_qp_init_attr& init) { init.qp_type = static_cast<ibv_qp_type>(99); },
            "unknown transport");
  ibv_qp* qp = ibv_create_qp(pd, &good);
  expect(qp != nullptr, "a good queue pair");
  expect_errno(ibv_destroy_cq(cq), {EBUSY}, "completion queue in use");
  expect_errno(ibv_dealloc_pd(pd), {EBUSY}, "protection domain in use");
  ibv_gid unicast{};
  unicast.raw[0] = 0xFE;
  expect_errno(ibv_attach_mcast(qp, &unicast, 0xC000), {EINVAL}, "connected queue pair in a group");
  expect(ibv_destroy_qp(qp) == 0 && ibv_destroy_cq(cq) == 0, "destroy");
  good.qp_type = IBV_QPT_UD;
  good.send_cq = good.recv_cq = cq = ibv_create_cq(near.context, 16, nullptr, nullptr, 0);
  qp = ibv_create_qp(pd, &good);
  expect_errno(ibv_attach_mcast(qp, &unicast, 0xC000), {EINVAL}, "group with a unicast GID");
  unicast.raw[0] = 0xFF;
  expect_errno(ibv_detach_mcast(qp, &unicast, 0xC000), {EINVAL}, "detaching from a group that it is not in");
  expect(ibv_destroy_qp(qp) == 0 && ibv_destroy_cq(cq) == 0 && ibv_dealloc_pd(pd) == 0, "destroy");
}

void attributes(Port& near, Port& far) {
  Lane lane(near, far, {});
  struct Bad {
    const char* what;
    int mask;
    void (*change)(ibv_qp_attr&);
  };
  constexpr int kInit = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
  for (const Bad& bad :
       {Bad{"port 0", kInit, [](ibv_qp_attr& a) { a.port_num = 0; }},
        Bad{"port 200", kInit, [](ibv_qp_attr& a) { a.port_num = 200; }},
        Bad{"P_Key index beyond the table", kInit, [](ibv_qp_attr& a) { a.pkey_index = 60'000; }},
        Bad{"no port", kInit & ~IBV_QP_PORT, [](ibv_qp_attr&) {}},
        Bad{"Q_Key of a connected queue pair", kInit | IBV_QP_QKEY, [](ibv_qp_attr&) {}}}) {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_INIT;
    attr.port_num = near.number;
    bad.change(attr);
    expect_errno(ibv_modify_qp(lane.source.qp, &attr, bad.mask), {EINVAL}, bad.what);
    expect(Lane::state(lane.source.qp) == IBV_QPS_RESET, "the state stays");
  }
  expect(Lane::to_init(near, lane.source.qp, IBV_QPT_RC, 0, 0) == 0, "to INIT");
  constexpr int kRtr = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                       IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  for (const Bad& bad :
       {Bad{"MTU 0", kRtr, [](ibv_qp_attr& a) { a.path_mtu = static_cast<ibv_mtu>(0); }},
        Bad{"MTU 6", kRtr, [](ibv_qp_attr& a) { a.path_mtu = static_cast<ibv_mtu>(6); }},
        Bad{"queue pair number of 25 bits", kRtr, [](ibv_qp_attr& a) { a.dest_qp_num = 1 << 24; }},
        Bad{"200 reads at once", kRtr, [](ibv_qp_attr& a) { a.max_dest_rd_atomic = 200; }},
        Bad{"RNR timer 32", kRtr, [](ibv_qp_attr& a) { a.min_rnr_timer = 32; }},
        Bad{"no way", kRtr & ~IBV_QP_AV, [](ibv_qp_attr&) {}}}) {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_RTR;
    attr.path_mtu = IBV_MTU_1024;
    attr.max_dest_rd_atomic = 1;
    attr.ah_attr = way_to(far.address, near.number);
    bad.change(attr);
    expect_errno(ibv_modify_qp(lane.source.qp, &attr, bad.mask), {EINVAL}, bad.what);
    expect(Lane::state(lane.source.qp) == IBV_QPS_INIT, "the state stays");
  }
}

// 10.3.1: every state against every state.
void transitions(Port& near, Port& far) {
  constexpr ibv_qp_state kStates[] = {IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTR,
                                      IBV_QPS_RTS,   IBV_QPS_SQD,  IBV_QPS_ERR};
  for (const auto type : {IBV_QPT_RC, IBV_QPT_UC, IBV_QPT_UD}) {
    Plan plan;
    plan.type = type;
    Lane lane(near, far, plan);
    ibv_qp* qp = lane.source.qp;
    const auto to = [&](ibv_qp_state state) {
      if (state == IBV_QPS_INIT) return Lane::to_init(near, qp, type, 0, 0);
      if (state == IBV_QPS_RTR) return Lane::to_rtr(near, qp, type, 5, far.address, 0, 0, 1);
      ibv_qp_attr attr{};
      attr.qp_state = state;
      if (state == IBV_QPS_RTS && Lane::state(qp) == IBV_QPS_RTR) return Lane::to_rts(qp, type, 0);
      return ibv_modify_qp(qp, &attr, IBV_QP_STATE);
    };
    for (const auto from : kStates) {
      for (const auto next : kStates) {
        expect(to(IBV_QPS_RESET) == 0, "to RESET");
        for (const auto step : {IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_SQD})
          if (from != IBV_QPS_RESET && (from == IBV_QPS_ERR ? step == IBV_QPS_INIT : step <= from))
            expect(to(step) == 0, "on the way to a state");
        if (from == IBV_QPS_ERR) expect(to(IBV_QPS_ERR) == 0, "to ERR");
        const bool legal =
            next == IBV_QPS_RESET || (next == IBV_QPS_ERR && from != IBV_QPS_RESET) ||
            (from == IBV_QPS_RESET && next == IBV_QPS_INIT) ||
            (from == IBV_QPS_INIT && (next == IBV_QPS_INIT || next == IBV_QPS_RTR)) ||
            (from == IBV_QPS_RTR && next == IBV_QPS_RTS) ||
            ((from == IBV_QPS_RTS || from == IBV_QPS_SQD) && (next == IBV_QPS_RTS || next == IBV_QPS_SQD));
        const int error = to(next);
        const std::string what = "type " + std::to_string(type) + ", state " + std::to_string(from) + " to " +
                                 std::to_string(next);
        expect_errno(error, {legal ? 0 : EINVAL}, what);
        expect(Lane::state(qp) == (legal ? next : from), what + ": state afterwards");
      }
    }
  }
}

/// Packets do not say which queue pair they come from: with the right PSN they are taken, and the answer goes
/// to the queue pair that the responder is connected to.
void connected_to_another(Port& near, Port& far) {
  for (const auto opcode : {IBV_WR_SEND, IBV_WR_RDMA_WRITE}) {
    Plan plan;
    plan.wrong_peer = 1;
    Lane lane(near, far, plan);
    lane.connect();
    expect(lane.post(lane.request(opcode)) == 0, "post");
    Lane::expect_status(Lane::next(lane.source.cq, "request"), kRetry, "nobody answers the requester");
    if (opcode == IBV_WR_SEND)
      Lane::expect_status(Lane::next(lane.target.cq, "receive request"), {IBV_WC_SUCCESS}, "but it arrives");
    expect(!lane.target_untouched(), "the data is there");
    expect(Lane::state(lane.target.qp) == IBV_QPS_RTS, "the responder goes on");
  }
}

struct Named {
  const char* name;
  void (*run)(Port&, Port&);
};
constexpr Named kOthers[] = {
    {"unreliable write with a wrong R_Key", unreliable_write},
    {"datagram with a wrong Q_Key", datagram_qkey},
    {"datagram longer than the MTU", datagram_too_long},
    {"PSN that was there before", duplicate_psn},
    {"responder is connected to somebody else", connected_to_another},
    {"requests that are refused", posting},
    {"operations that a transport does not have", wrong_opcodes},
    {"full queues", full_queues},
    {"objects that are refused", creating},
    {"attributes that are refused", attributes},
    {"transitions", transitions},
};

}  // namespace

int main(int argc, char** argv) {
  std::string only;
  std::vector<std::string> names, except;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--only" && i + 1 < argc)
      only = argv[++i];
    else if (std::string(argv[i]) == "--except" && i + 1 < argc)
      except.emplace_back(argv[++i]);
    else
      names.emplace_back(argv[i]);
  }
  if (names.size() != 2) {
    std::fprintf(stderr, "usage: verbs_failures [--only TEXT] [--except TEXT]... DEVICE/PORT DEVICE/PORT\n");
    return 2;
  }
  int failures = 0;
  try {
    Port near(names[0]), far(names[1]);
    const auto attempt = [&](const std::string& name, const std::function<void()>& body) {
      if (!is_wanted(name, only, except)) return;
      try {
        body();
        std::printf("ok      %s\n", name.c_str());
      } catch (const Failure& failure) {
        std::printf("FAILED  %s: %s\n", name.c_str(), failure.what());
        ++failures;
      } catch (const LeftOut& why) {
        std::printf("-       %s: %s\n", name.c_str(), why.what());
      }
      std::fflush(stdout);
    };
    for (const Case& test : kCases) attempt(test.name, [&] { run(test, near, far); });
    for (const Named& test : kOthers) attempt(test.name, [&] { test.run(near, far); });
    ibv_close_device(near.context);
    ibv_close_device(far.context);
  } catch (const Failure& failure) {
    std::printf("FAILED  %s\n", failure.what());
    return 1;
  }
  return failures == 0 ? 0 : 1;
}
