// Does an adapter behave as the InfiniBand Architecture Specification and libibverbs' manual pages say?
//
//   verbs_conformance [options] DEVICE/PORT DEVICE/PORT
//
// Runs on any two ports that can reach each other, over InfiniBand or RoCE, real or not: of each check one
// process (side a) uses the first, another one (side b) the second. They meet at barriers and exchange what
// they need over a socket pair. Prints one line per check, exits 0 if all hold.
//
//   --host-b NAME   side b's $SOFTHCA_HOST (software HCA only: hosts are chosen by the environment)
//   --cut CMD, --mend CMD   shell commands that cut and mend the cable between the ports; without them the
//                   checks that need a cut are left out
//   --only NAME     run only the checks whose name contains NAME
//   --except NAME   and not those whose name contains this one; can be repeated
//   --seed N        of the cut checks
#include <infiniband/verbs.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "verbs_programs.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void expect(bool condition, const std::string& what) {
  if (!condition) throw Failure(what);
}
template <class A, class B>
void expect_equal(A got, B wanted, const std::string& what) {
  if (got != static_cast<A>(wanted))
    throw Failure(what + ": got " + std::to_string(got) + ", wanted " +
                  std::to_string(static_cast<A>(wanted)));
}
void expect_status(const ibv_wc& wc, std::vector<ibv_wc_status> allowed, const std::string& what) {
  if (std::find(allowed.begin(), allowed.end(), wc.status) == allowed.end())
    throw Failure(what + ": completed with \"" + ibv_wc_status_str(wc.status) + "\"");
}

struct Options {
  std::string device[2];
  int port[2] = {1, 1};
  std::string host_b, cut, mend, only;
  std::vector<std::string> except;
  unsigned seed = 1;
};

/// The other side of the check.
class Peer {
 public:
  explicit Peer(int socket) : socket_(socket) {}
  template <class T>
  T exchange(const T& mine) {
    T theirs{};
    if (send(socket_, &mine, sizeof mine, MSG_NOSIGNAL) != sizeof mine ||
        recv(socket_, &theirs, sizeof theirs, MSG_WAITALL) != sizeof theirs)
      throw Failure("the other side is gone");
    return theirs;
  }
  void meet() { exchange('x'); }

 private:
  int socket_;
};

/// An opened port with what every check needs.
struct Port {
  ibv_context* context = nullptr;
  int number = 1;
  ibv_pd* pd = nullptr;
  ibv_port_attr attr{};
  PortAddress address;

  Port(const std::string& device, int number_) : number(number_) {
    int count = 0;
    ibv_device** list = ibv_get_device_list(&count);
    for (int i = 0; list != nullptr && list[i] != nullptr; ++i)
      if (device == ibv_get_device_name(list[i])) context = ibv_open_device(list[i]);
    if (list != nullptr) ibv_free_device_list(list);
    if (context == nullptr) throw Failure("no device " + device);
    expect(ibv_query_port(context, static_cast<std::uint8_t>(number), &attr) == 0, "ibv_query_port");
    expect(attr.state == IBV_PORT_ACTIVE, device + " port " + std::to_string(number) + " is not Active");
    address = address_of(context, static_cast<std::uint8_t>(number), attr);
    pd = ibv_alloc_pd(context);
    expect(pd != nullptr, "ibv_alloc_pd");
  }
};

struct Buffer {
  std::vector<std::uint8_t> bytes;
  ibv_mr* mr = nullptr;
  Buffer(ibv_pd* pd, std::size_t size,
         int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                      IBV_ACCESS_REMOTE_ATOMIC)
      : bytes(size) {
    mr = ibv_reg_mr(pd, bytes.data(), size, access);
    expect(mr != nullptr, "ibv_reg_mr");
  }
  ~Buffer() {
    if (mr != nullptr) ibv_dereg_mr(mr);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  [[nodiscard]] ibv_sge sge(std::size_t offset, std::size_t length) const {
    return {reinterpret_cast<std::uint64_t>(bytes.data() + offset), static_cast<std::uint32_t>(length),
            mr->lkey};
  }
};

struct Setup {
  ibv_qp_type type = IBV_QPT_RC;
  std::uint32_t send_wr = 64, recv_wr = 64, sges = 4, inline_data = 0;
  int cqe = 256;
  int sig_all = 0;
  unsigned access = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
  std::uint8_t timeout = 10, retries = 3, rnr_retries = 7, rnr_timer = 1;
  ibv_comp_channel* channel = nullptr;
  ibv_srq* srq = nullptr;
};

/// What each side tells the other.
struct Address {
  std::uint32_t qpn, psn, rkey;
  std::uint64_t memory;
  PortAddress port;
};

/// A queue pair with its completion queues.
struct Pair {
  Port& port;
  Setup setup;
  ibv_cq* send_cq = nullptr;
  ibv_cq* recv_cq = nullptr;
  ibv_qp* qp = nullptr;
  Address theirs{};
  std::uint32_t psn;

  Pair(Port& port_, const Setup& setup_) : port(port_), setup(setup_) {
    send_cq = ibv_create_cq(port.context, setup.cqe, nullptr, nullptr, 0);
    recv_cq = ibv_create_cq(port.context, setup.cqe, nullptr, setup.channel, 0);
    expect(send_cq != nullptr && recv_cq != nullptr, "ibv_create_cq");
    ibv_qp_init_attr init{};
    init.send_cq = send_cq;
    init.recv_cq = recv_cq;
    init.srq = setup.srq;
    init.cap = {setup.send_wr, setup.recv_wr, setup.sges, setup.sges, setup.inline_data};
    init.qp_type = setup.type;
    init.sq_sig_all = setup.sig_all;
    qp = ibv_create_qp(port.pd, &init);
    expect(qp != nullptr, "ibv_create_qp");
    psn = static_cast<std::uint32_t>(std::random_device{}()) & 0xFFFFFF;
  }
  ~Pair() {
    if (qp != nullptr) ibv_destroy_qp(qp);
    if (send_cq != nullptr) ibv_destroy_cq(send_cq);
    if (recv_cq != nullptr) ibv_destroy_cq(recv_cq);
  }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;

  int to_init() {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_INIT;
    attr.port_num = static_cast<std::uint8_t>(port.number);
    attr.qp_access_flags = setup.access;
    attr.qkey = 0x11111111;
    return ibv_modify_qp(qp, &attr,
                         IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
                             (setup.type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS));
  }
  int to_rtr() {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_RTR;
    if (setup.type == IBV_QPT_UD) return ibv_modify_qp(qp, &attr, IBV_QP_STATE);
    attr.path_mtu = port.attr.active_mtu;
    attr.dest_qp_num = theirs.qpn;
    attr.rq_psn = theirs.psn;
    attr.max_dest_rd_atomic = 1;
    attr.min_rnr_timer = setup.rnr_timer;
    attr.ah_attr = way_to(theirs.port, static_cast<std::uint8_t>(port.number));
    return ibv_modify_qp(
        qp, &attr,
        IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
            (setup.type == IBV_QPT_RC ? IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER : 0));
  }
  int to_rts() {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_RTS;
    attr.sq_psn = psn;
    attr.timeout = setup.timeout;
    attr.retry_cnt = setup.retries;
    attr.rnr_retry = setup.rnr_retries;
    attr.max_rd_atomic = 1;
    return ibv_modify_qp(qp, &attr,
                         IBV_QP_STATE | IBV_QP_SQ_PSN |
                             (setup.type == IBV_QPT_RC ? IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                                                             IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC
                                                       : 0));
  }
  int to_state(ibv_qp_state state) {
    ibv_qp_attr attr{};
    attr.qp_state = state;
    return ibv_modify_qp(qp, &attr, IBV_QP_STATE);
  }
  /// To RTS, towards the other side's queue pair. `memory`: what the other side may reach.
  void connect(Peer& peer, const Buffer* memory = nullptr) {
    Address mine{};
    mine.qpn = qp->qp_num;
    mine.psn = psn;
    mine.port = port.address;
    if (memory != nullptr) {
      mine.rkey = memory->mr->rkey;
      mine.memory = reinterpret_cast<std::uint64_t>(memory->bytes.data());
    }
    theirs = peer.exchange(mine);
    expect_equal(to_init(), 0, "RESET to INIT");
    expect_equal(to_rtr(), 0, "INIT to RTR");
    expect_equal(to_rts(), 0, "RTR to RTS");
    peer.meet();
  }

  int post_receive(std::uint64_t id, std::vector<ibv_sge> sges) {
    ibv_recv_wr wr{};
    wr.wr_id = id;
    wr.sg_list = sges.data();
    wr.num_sge = static_cast<int>(sges.size());
    ibv_recv_wr* bad = nullptr;
    return ibv_post_recv(qp, &wr, &bad);
  }
  ibv_send_wr request(ibv_wr_opcode opcode, std::uint64_t id, std::vector<ibv_sge>& sges) {
    ibv_send_wr wr{};
    wr.wr_id = id;
    wr.opcode = opcode;
    wr.sg_list = sges.data();
    wr.num_sge = static_cast<int>(sges.size());
    wr.send_flags = IBV_SEND_SIGNALED;
    wr.wr.rdma.remote_addr = theirs.memory;
    wr.wr.rdma.rkey = theirs.rkey;
    return wr;
  }
  int post(ibv_send_wr wr) {
    ibv_send_wr* bad = nullptr;
    return ibv_post_send(qp, &wr, &bad);
  }
  int post(ibv_wr_opcode opcode, std::uint64_t id, std::vector<ibv_sge> sges,
           unsigned flags = IBV_SEND_SIGNALED) {
    ibv_send_wr wr = request(opcode, id, sges);
    wr.send_flags = flags;
    return post(wr);
  }
};

bool poll_for(ibv_cq* cq, ibv_wc& wc, std::chrono::milliseconds patience = 20s) {
  const auto deadline = Clock::now() + patience;
  do {
    const int got = ibv_poll_cq(cq, 1, &wc);
    expect(got >= 0, "ibv_poll_cq");
    if (got == 1) return true;
  } while (Clock::now() < deadline);
  return false;
}
ibv_wc next_completion(ibv_cq* cq, const std::string& what) {
  ibv_wc wc{};
  expect(poll_for(cq, wc), what + ": no completion");
  return wc;
}
ibv_wc expect_success(ibv_cq* cq, const std::string& what) {
  const ibv_wc wc = next_completion(cq, what);
  expect_status(wc, {IBV_WC_SUCCESS}, what);
  return wc;
}
void expect_nothing(ibv_cq* cq, const std::string& what) {
  ibv_wc wc{};
  expect(ibv_poll_cq(cq, 1, &wc) == 0, what + ": unexpected completion");
}

bool next_event(ibv_context* context, ibv_event_type wanted, std::chrono::milliseconds patience = 20s) {
  const auto deadline = Clock::now() + patience;
  while (Clock::now() < deadline) {
    pollfd descriptor{context->async_fd, POLLIN, 0};
    if (poll(&descriptor, 1, 50) <= 0) continue;
    ibv_async_event event{};
    if (ibv_get_async_event(context, &event) != 0) return false;
    ibv_ack_async_event(&event);
    if (event.event_type == wanted) return true;
  }
  return false;
}
/// Events that earlier checks have left.
void drain_events(ibv_context* context) {
  for (;;) {
    pollfd descriptor{context->async_fd, POLLIN, 0};
    if (poll(&descriptor, 1, 0) <= 0) return;
    ibv_async_event event{};
    if (ibv_get_async_event(context, &event) != 0) return;
    ibv_ack_async_event(&event);
  }
}

void fill(std::vector<std::uint8_t>& bytes, unsigned seed) {
  std::minstd_rand random(seed);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random() >> 8);
}

struct Check {
  const Options& options;
  Port& port;
  Peer& peer;
  bool active;  ///< side a
};

// ---- The checks ----

void states(Check& check) {
  Setup setup;
  Buffer buffer(check.port.pd, 64);
  Pair pair(check.port, setup);
  pair.theirs = {pair.qp->qp_num, 0, 0, 0, check.port.address};
  expect(pair.post_receive(1, {buffer.sge(0, 64)}) != 0, "receive request accepted in RESET");
  expect(pair.post(IBV_WR_SEND, 1, {buffer.sge(0, 8)}) != 0, "send request accepted in RESET");
  expect_equal(pair.to_rtr(), EINVAL, "RESET to RTR");
  expect_equal(pair.to_rts(), EINVAL, "RESET to RTS");
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_INIT;
  attr.port_num = static_cast<std::uint8_t>(check.port.number);
  expect_equal(ibv_modify_qp(pair.qp, &attr, IBV_QP_STATE | IBV_QP_PORT), EINVAL,
               "to INIT without access flags and P_Key");
  expect_equal(pair.to_init(), 0, "RESET to INIT");
  expect(pair.post(IBV_WR_SEND, 1, {buffer.sge(0, 8)}) != 0, "send request accepted in INIT");
  expect_equal(pair.post_receive(1, {buffer.sge(0, 64)}), 0, "receive request in INIT");
  expect_equal(pair.to_rts(), EINVAL, "INIT to RTS");
  attr = {};
  attr.qp_state = IBV_QPS_RTR;
  expect_equal(ibv_modify_qp(pair.qp, &attr, IBV_QP_STATE), EINVAL, "to RTR without attributes");
  expect_equal(pair.to_rtr(), 0, "INIT to RTR");
  expect_equal(pair.to_init(), EINVAL, "RTR to INIT");
  expect_equal(pair.to_rts(), 0, "RTR to RTS");
  attr = {};
  attr.qp_state = IBV_QPS_RTS;
  attr.cur_qp_state = IBV_QPS_INIT;
  expect(ibv_modify_qp(pair.qp, &attr, IBV_QP_STATE | IBV_QP_CUR_STATE) != 0, "wrong current state accepted");
  ibv_qp_attr got{};
  ibv_qp_init_attr init{};
  expect_equal(ibv_query_qp(pair.qp, &got, IBV_QP_STATE | IBV_QP_PORT | IBV_QP_TIMEOUT, &init), 0,
               "ibv_query_qp");
  expect_equal(static_cast<int>(got.qp_state), static_cast<int>(IBV_QPS_RTS), "queried state");
  expect_equal(static_cast<int>(got.timeout), static_cast<int>(setup.timeout), "queried timeout");
  expect_equal(pair.to_state(IBV_QPS_ERR), 0, "RTS to ERR");
  expect_status(next_completion(pair.recv_cq, "flushed"), {IBV_WC_WR_FLUSH_ERR}, "receive request at ERR");
  expect_equal(pair.to_state(IBV_QPS_RTS), EINVAL, "ERR to RTS");
  expect_equal(pair.to_state(IBV_QPS_RESET), 0, "ERR to RESET");
}

void limits(Check& check) {
  Setup setup;
  setup.send_wr = 8;
  setup.recv_wr = 8;
  setup.sges = 2;
  Buffer buffer(check.port.pd, 64);
  ibv_pd* pd = ibv_alloc_pd(check.port.context);
  ibv_mr* mr = ibv_reg_mr(pd, buffer.bytes.data(), 64, IBV_ACCESS_LOCAL_WRITE);
  expect_equal(ibv_dealloc_pd(pd), EBUSY, "protection domain with a region");
  ibv_dereg_mr(mr);
  expect_equal(ibv_dealloc_pd(pd), 0, "empty protection domain");
  expect(ibv_reg_mr(check.port.pd, buffer.bytes.data(), 64, IBV_ACCESS_REMOTE_WRITE) == nullptr,
         "remote write without local write accepted");
  Pair pair(check.port, setup);
  expect_equal(ibv_destroy_cq(pair.send_cq), EBUSY, "completion queue with a queue pair");
  expect_equal(pair.to_init(), 0, "INIT");
  ibv_qp_attr attr{};
  ibv_qp_init_attr init{};
  ibv_query_qp(pair.qp, &attr, IBV_QP_CAP, &init);
  std::uint32_t accepted = 0;
  while (accepted < 100'000 && pair.post_receive(accepted, {buffer.sge(0, 8)}) == 0) ++accepted;
  expect_equal(accepted, init.cap.max_recv_wr, "receive requests accepted");
  std::vector<ibv_sge> many(init.cap.max_recv_sge + 1, buffer.sge(0, 1));
  expect(pair.post_receive(1, many) != 0, "too many scatter entries accepted");
}

void send_receive(Check& check) {
  const std::vector<std::size_t> sizes = {0, 1, 7, 256, 4095, 4096, 4097, 65536, 1 << 20};
  Setup setup;
  Buffer buffer(check.port.pd, 2 << 20);
  Pair pair(check.port, setup);
  pair.connect(check.peer);
  unsigned seed = 1;
  for (const std::size_t size : sizes) {
    ++seed;
    if (check.active) {
      check.peer.meet();
      fill(buffer.bytes, seed);
      // In two pieces, the second one first in memory.
      const std::size_t half = size / 2;
      ibv_send_wr wr{};
      std::vector<ibv_sge> sges = {buffer.sge(half, size - half), buffer.sge(0, half)};
      wr = pair.request(IBV_WR_SEND_WITH_IMM, seed, sges);
      wr.imm_data = htobe32(seed);
      expect_equal(pair.post(wr), 0, "ibv_post_send");
      const ibv_wc wc = expect_success(pair.send_cq, "send");
      expect_equal(wc.wr_id, seed, "wr_id of the send");
      expect_equal(static_cast<int>(wc.opcode), static_cast<int>(IBV_WC_SEND), "opcode of the send");
      check.peer.meet();
    } else {
      std::fill(buffer.bytes.begin(), buffer.bytes.end(), std::uint8_t{0xEE});
      expect_equal(pair.post_receive(seed, {buffer.sge(0, 100), buffer.sge(100, (1 << 20) - 100)}), 0,
                   "post");
      check.peer.meet();
      const ibv_wc wc = expect_success(pair.recv_cq, "receive");
      expect_equal(wc.byte_len, size, "length");
      expect_equal(wc.imm_data, htobe32(seed), "immediate data");
      expect((wc.wc_flags & IBV_WC_WITH_IMM) != 0, "flag of immediate data");
      expect_equal(static_cast<int>(wc.opcode), static_cast<int>(IBV_WC_RECV), "opcode of the receive");
      expect_equal(wc.qp_num, pair.qp->qp_num, "queue pair of the receive");
      std::vector<std::uint8_t> sent(2 << 20);
      fill(sent, seed);
      const std::size_t half = size / 2;
      std::rotate(sent.begin(), sent.begin() + static_cast<std::ptrdiff_t>(half),
                  sent.begin() + static_cast<std::ptrdiff_t>(size));
      expect(std::equal(sent.begin(), sent.begin() + static_cast<std::ptrdiff_t>(size), buffer.bytes.begin()),
             "content of " + std::to_string(size) + " bytes");
      expect_equal(static_cast<int>(buffer.bytes[size]), 0xEE, "byte behind the message");
      check.peer.meet();
    }
  }
}

void rdma(Check& check) {
  Setup setup;
  setup.inline_data = 64;
  Buffer local(check.port.pd, 1 << 20), shared(check.port.pd, 1 << 20);
  Pair pair(check.port, setup);
  pair.connect(check.peer, &shared);
  if (check.active) {
    check.peer.meet();
    fill(local.bytes, 5);
    expect_equal(pair.post(IBV_WR_RDMA_WRITE, 1, {local.sge(0, 1 << 20)}), 0, "write");
    expect_equal(static_cast<int>(expect_success(pair.send_cq, "write").opcode),
                 static_cast<int>(IBV_WC_RDMA_WRITE), "opcode");
    std::fill(local.bytes.begin(), local.bytes.end(), std::uint8_t{0});
    expect_equal(pair.post(IBV_WR_RDMA_READ, 2, {local.sge(0, 1000), local.sge(1000, (1 << 20) - 1000)}), 0,
                 "read");
    expect_equal(static_cast<int>(expect_success(pair.send_cq, "read").opcode),
                 static_cast<int>(IBV_WC_RDMA_READ), "opcode");
    std::vector<std::uint8_t> wanted(1 << 20);
    fill(wanted, 5);
    expect(wanted == local.bytes, "what was written and read back");
    // Inline data may be changed as soon as ibv_post_send has returned, and needs no L_Key.
    std::uint64_t value = 0x0123456789ABCDEF;
    expect_equal(pair.post(IBV_WR_RDMA_WRITE, 3, {{reinterpret_cast<std::uint64_t>(&value), 8, 0}},
                           IBV_SEND_SIGNALED | IBV_SEND_INLINE),
                 0, "inline write");
    value = 0;
    expect_success(pair.send_cq, "inline write");
    std::vector<ibv_sge> result = {local.sge(0, 8)};
    ibv_send_wr wr = pair.request(IBV_WR_ATOMIC_FETCH_AND_ADD, 4, result);
    wr.wr.atomic.remote_addr = pair.theirs.memory;
    wr.wr.atomic.rkey = pair.theirs.rkey;
    wr.wr.atomic.compare_add = 1;
    expect_equal(pair.post(wr), 0, "fetch and add");
    expect_success(pair.send_cq, "fetch and add");
    std::memcpy(&value, local.bytes.data(), 8);
    expect_equal(value, 0x0123456789ABCDEFULL, "value before");
    wr.opcode = IBV_WR_ATOMIC_CMP_AND_SWP;
    wr.wr.atomic.compare_add = 0x0123456789ABCDF0;
    wr.wr.atomic.swap = 42;
    expect_equal(pair.post(wr), 0, "compare and swap");
    expect_success(pair.send_cq, "compare and swap");
    std::memcpy(&value, local.bytes.data(), 8);
    expect_equal(value, 0x0123456789ABCDF0ULL, "value after the addition");
    expect_equal(pair.post(wr), 0, "compare and swap that fails");
    expect_success(pair.send_cq, "compare and swap that fails");
    std::memcpy(&value, local.bytes.data(), 8);
    expect_equal(value, 42ULL, "value after the swap");
    // Zero bytes: the R_Key is not looked at.
    wr = pair.request(IBV_WR_RDMA_WRITE, 5, result);
    wr.num_sge = 0;
    wr.wr.rdma.rkey = 0;
    expect_equal(pair.post(wr), 0, "empty write");
    expect_success(pair.send_cq, "empty write");
    result = {local.sge(0, 16)};
    wr = pair.request(IBV_WR_RDMA_WRITE_WITH_IMM, 6, result);
    wr.imm_data = htobe32(77);
    expect_equal(pair.post(wr), 0, "write with immediate");
    expect_success(pair.send_cq, "write with immediate");
    check.peer.meet();
  } else {
    expect_equal(pair.post_receive(9, {}), 0, "post");
    check.peer.meet();
    const ibv_wc wc = expect_success(pair.recv_cq, "write with immediate");
    expect_equal(static_cast<int>(wc.opcode), static_cast<int>(IBV_WC_RECV_RDMA_WITH_IMM), "opcode");
    expect_equal(wc.imm_data, htobe32(77), "immediate data");
    expect_equal(wc.byte_len, 16, "length");
    expect_nothing(pair.recv_cq, "plain writes");
    check.peer.meet();
  }
}

/// One request that must fail at side a in one of these ways; afterwards the queue pair is in error.
void failing(Check& check, Setup setup, const std::vector<ibv_wc_status>& at_sender,
             const std::vector<ibv_wc_status>& at_receiver,
             const std::function<void(Pair&, Buffer&)>& prepare_receiver,
             const std::function<ibv_send_wr(Pair&, Buffer&, std::vector<ibv_sge>&)>& request,
             int receiver_access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
                                   IBV_ACCESS_REMOTE_READ) {
  Buffer buffer(check.port.pd, 4096, check.active ? IBV_ACCESS_LOCAL_WRITE : receiver_access);
  Pair pair(check.port, setup);
  if (!check.active) {
    expect_equal(pair.to_init(), 0, "INIT");
    prepare_receiver(pair, buffer);
  }
  pair.connect(check.peer, &buffer);
  if (check.active) {
    std::vector<ibv_sge> sges = {buffer.sge(0, 64)};
    const ibv_send_wr wr = request(pair, buffer, sges);
    expect_equal(pair.post(wr), 0, "the request itself is accepted");
    // One behind it, unsignaled: it must be flushed all the same.
    expect_equal(pair.post(IBV_WR_SEND, 99, {buffer.sge(0, 8)}, 0), 0, "the next request");
    const ibv_wc wc = next_completion(pair.send_cq, "failing request");
    expect_equal(wc.wr_id, wr.wr_id, "wr_id");
    expect_status(wc, at_sender, "failing request");
    const ibv_wc next = next_completion(pair.send_cq, "the request behind it");
    expect_equal(next.wr_id, 99, "wr_id");
    expect_status(next, {IBV_WC_WR_FLUSH_ERR}, "the request behind it");
    ibv_qp_attr attr{};
    ibv_qp_init_attr init{};
    ibv_query_qp(pair.qp, &attr, IBV_QP_STATE, &init);
    expect_equal(static_cast<int>(attr.qp_state), static_cast<int>(IBV_QPS_ERR), "state of the queue pair");
    expect_equal(pair.post(IBV_WR_SEND, 100, {buffer.sge(0, 8)}), 0, "request in ERR");
    expect_status(next_completion(pair.send_cq, "request in ERR"), {IBV_WC_WR_FLUSH_ERR}, "request in ERR");
    check.peer.meet();
  } else {
    if (!at_receiver.empty())
      expect_status(next_completion(pair.recv_cq, "receiver"), at_receiver, "receiver");
    check.peer.meet();
  }
}

void wrong_rkey(Check& check) {
  failing(
      check, {}, {IBV_WC_REM_ACCESS_ERR}, {}, [](Pair&, Buffer&) {},
      [](Pair& pair, Buffer&, std::vector<ibv_sge>& sges) {
        ibv_send_wr wr = pair.request(IBV_WR_RDMA_WRITE, 1, sges);
        wr.wr.rdma.rkey ^= 0xFF;
        return wr;
      });
}
void out_of_bounds(Check& check) {
  failing(
      check, {}, {IBV_WC_REM_ACCESS_ERR}, {}, [](Pair&, Buffer&) {},
      [](Pair& pair, Buffer&, std::vector<ibv_sge>& sges) {
        ibv_send_wr wr = pair.request(IBV_WR_RDMA_READ, 1, sges);
        wr.wr.rdma.remote_addr += 4096 - 63;
        return wr;
      });
}
void no_remote_write(Check& check) {
  failing(
      check, {}, {IBV_WC_REM_ACCESS_ERR}, {}, [](Pair&, Buffer&) {},
      [](Pair& pair, Buffer&, std::vector<ibv_sge>& sges) {
        return pair.request(IBV_WR_RDMA_WRITE, 1, sges);
      },
      IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
}
void queue_pair_without_access(Check& check) {
  Setup setup;
  setup.access = 0;
  failing(
      check, setup, {IBV_WC_REM_INV_REQ_ERR, IBV_WC_REM_ACCESS_ERR}, {}, [](Pair&, Buffer&) {},
      [](Pair& pair, Buffer&, std::vector<ibv_sge>& sges) {
        return pair.request(IBV_WR_RDMA_WRITE, 1, sges);
      });
}
void message_too_long(Check& check) {
  failing(
      check, {}, {IBV_WC_REM_INV_REQ_ERR}, {IBV_WC_LOC_LEN_ERR},
      [](Pair& pair, Buffer& buffer) { pair.post_receive(1, {buffer.sge(0, 63)}); },
      [](Pair& pair, Buffer&, std::vector<ibv_sge>& sges) { return pair.request(IBV_WR_SEND, 1, sges); });
}
void receiver_with_wrong_lkey(Check& check) {
  failing(
      check, {}, {IBV_WC_REM_OP_ERR}, {IBV_WC_LOC_PROT_ERR},
      [](Pair& pair, Buffer& buffer) {
        ibv_sge sge = buffer.sge(0, 100);
        sge.lkey ^= 0xFF;
        pair.post_receive(1, {sge});
      },
      [](Pair& pair, Buffer&, std::vector<ibv_sge>& sges) { return pair.request(IBV_WR_SEND, 1, sges); });
}
void sender_with_wrong_lkey(Check& check) {
  failing(
      check, {}, {IBV_WC_LOC_PROT_ERR}, {}, [](Pair&, Buffer&) {},
      [](Pair& pair, Buffer&, std::vector<ibv_sge>& sges) {
        sges[0].lkey ^= 0xFF;
        return pair.request(IBV_WR_SEND, 1, sges);
      });
}
void read_into_read_only(Check& check) {
  Buffer read_only(check.port.pd, 4096, 0);
  failing(
      check, {}, {IBV_WC_LOC_PROT_ERR}, {}, [](Pair&, Buffer&) {},
      [&](Pair& pair, Buffer&, std::vector<ibv_sge>& sges) {
        sges = {read_only.sge(0, 64)};
        return pair.request(IBV_WR_RDMA_READ, 1, sges);
      });
}
void misaligned_atomic(Check& check) {
  failing(
      check, {}, {IBV_WC_REM_INV_REQ_ERR, IBV_WC_REM_ACCESS_ERR, IBV_WC_REM_OP_ERR}, {},
      [](Pair&, Buffer&) {},
      [](Pair& pair, Buffer& buffer, std::vector<ibv_sge>& sges) {
        sges = {buffer.sge(0, 8)};
        ibv_send_wr wr = pair.request(IBV_WR_ATOMIC_FETCH_AND_ADD, 1, sges);
        wr.wr.atomic.remote_addr = pair.theirs.memory + 4;
        wr.wr.atomic.rkey = pair.theirs.rkey;
        return wr;
      },
      IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_ATOMIC);
}
void not_ready(Check& check) {
  Setup setup;
  setup.rnr_retries = 1;
  failing(
      check, setup, {IBV_WC_RNR_RETRY_EXC_ERR}, {}, [](Pair&, Buffer&) {},
      [](Pair& pair, Buffer&, std::vector<ibv_sge>& sges) { return pair.request(IBV_WR_SEND, 1, sges); });
}

void late_receiver(Check& check) {
  Setup setup;
  setup.rnr_retries = 7;  // for ever
  Buffer buffer(check.port.pd, 4096);
  Pair pair(check.port, setup);
  pair.connect(check.peer);
  if (check.active) {
    for (std::uint64_t id = 0; id < 5; ++id)
      expect_equal(pair.post(IBV_WR_SEND, id, {buffer.sge(id * 8, 8)}), 0, "send");
    expect_nothing(pair.send_cq, "sends without a receiver");
    check.peer.meet();
    for (std::uint64_t id = 0; id < 5; ++id)
      expect_equal(expect_success(pair.send_cq, "send").wr_id, id, "order");
  } else {
    check.peer.meet();
    for (std::uint64_t id = 0; id < 5; ++id) pair.post_receive(id, {buffer.sge(0, 100)});
    for (std::uint64_t id = 0; id < 5; ++id)
      expect_equal(expect_success(pair.recv_cq, "receive").wr_id, id, "order");
    expect_nothing(pair.recv_cq, "more than was sent");
  }
  check.peer.meet();
}

void retry_exceeded(Check& check) {
  Setup setup;
  setup.timeout = 12;  // 16.8 ms
  setup.retries = 2;
  Buffer buffer(check.port.pd, 4096);
  Pair pair(check.port, setup);
  pair.connect(check.peer);
  if (!check.active) expect_equal(pair.to_state(IBV_QPS_RESET), 0, "RESET");
  check.peer.meet();
  if (check.active) {
    const auto start = Clock::now();
    expect_equal(pair.post(IBV_WR_SEND, 1, {buffer.sge(0, 8)}), 0, "send");
    expect_status(next_completion(pair.send_cq, "send to nobody"), {IBV_WC_RETRY_EXC_ERR}, "send to nobody");
    // Each wait is between T and 4 T (9.7.6.1.3), and here are retries + 1 of them.
    const auto took = Clock::now() - start;
    expect(took > 50ms, "gave up before its retries had run out");
    expect(took < 10s, "took too long to give up");
  }
  check.peer.meet();
}

void flush(Check& check) {
  Setup setup;
  Buffer buffer(check.port.pd, 4096);
  Pair pair(check.port, setup);
  pair.connect(check.peer);
  for (std::uint64_t id = 0; id < 5; ++id) pair.post_receive(id, {buffer.sge(0, 8)});
  expect_equal(pair.to_state(IBV_QPS_ERR), 0, "ERR");
  for (std::uint64_t id = 0; id < 5; ++id) {
    const ibv_wc wc = next_completion(pair.recv_cq, "flushed");
    expect_status(wc, {IBV_WC_WR_FLUSH_ERR}, "flushed");
    expect_equal(wc.wr_id, id, "order");
  }
  pair.post_receive(7, {buffer.sge(0, 8)});
  expect_equal(next_completion(pair.recv_cq, "posted in ERR").wr_id, 7, "wr_id");
  pair.post(IBV_WR_SEND, 8, {buffer.sge(0, 8)}, 0);
  expect_status(next_completion(pair.send_cq, "posted in ERR"), {IBV_WC_WR_FLUSH_ERR}, "posted in ERR");
  check.peer.meet();
}

void selective_signaling(Check& check) {
  Setup setup;
  setup.send_wr = 8;
  setup.recv_wr = 512;
  setup.cqe = 1024;
  Buffer buffer(check.port.pd, 4096);
  Pair pair(check.port, setup);
  pair.connect(check.peer);
  ibv_qp_attr attr{};
  ibv_qp_init_attr init{};
  ibv_query_qp(pair.qp, &attr, IBV_QP_CAP, &init);
  const std::uint32_t room = init.cap.max_send_wr;
  if (room >= 500) return;
  if (!check.active) {
    for (std::uint64_t id = 0; id < 512; ++id) pair.post_receive(id, {buffer.sge(0, 8)});
    check.peer.meet();
    check.peer.meet();
    return;
  }
  check.peer.meet();
  for (std::uint32_t i = 0; i + 1 < room; ++i)
    expect_equal(pair.post(IBV_WR_SEND, i, {buffer.sge(0, 8)}, 0), 0, "unsignaled send");
  expect_equal(pair.post(IBV_WR_SEND, 1000, {buffer.sge(0, 8)}), 0, "signaled send");
  expect(pair.post(IBV_WR_SEND, 2000, {buffer.sge(0, 8)}) != 0, "more than the send queue holds");
  expect_equal(expect_success(pair.send_cq, "signaled send").wr_id, 1000, "the only completion");
  expect_nothing(pair.send_cq, "unsignaled sends");
  for (std::uint32_t i = 0; i < room; ++i)
    expect_equal(pair.post(IBV_WR_SEND, i, {buffer.sge(0, 8)}), 0, "all slots are free again");
  check.peer.meet();
}

void completion_queue_overrun(Check& check) {
  drain_events(check.port.context);
  Setup setup;
  setup.cqe = 4;
  Buffer buffer(check.port.pd, 4096);
  Pair pair(check.port, setup);
  pair.connect(check.peer);
  if (!check.active) {
    for (std::uint64_t id = 0; id < 64; ++id) pair.post_receive(id, {buffer.sge(0, 8)});
    check.peer.meet();
    expect(next_event(check.port.context, IBV_EVENT_CQ_ERR), "no IBV_EVENT_CQ_ERR");
  } else {
    check.peer.meet();
    for (int i = 0; i < 32; ++i) pair.post(IBV_WR_SEND, 1, {buffer.sge(0, 8)}, 0);
  }
  check.peer.meet();
}

void completion_events(Check& check) {
  ibv_comp_channel* channel = ibv_create_comp_channel(check.port.context);
  expect(channel != nullptr, "ibv_create_comp_channel");
  {
    Setup setup;
    setup.channel = channel;
    Buffer buffer(check.port.pd, 4096);
    Pair pair(check.port, setup);
    pair.connect(check.peer);
    const auto readable = [&](int milliseconds) {
      pollfd descriptor{channel->fd, POLLIN, 0};
      return poll(&descriptor, 1, milliseconds) == 1;
    };
    const auto take_event = [&] {
      ibv_cq* cq = nullptr;
      void* context = nullptr;
      expect(readable(20000), "no completion event");
      expect_equal(ibv_get_cq_event(channel, &cq, &context), 0, "ibv_get_cq_event");
      expect(cq == pair.recv_cq, "event of another queue");
      ibv_ack_cq_events(cq, 1);
    };
    for (std::uint64_t id = 0; id < 10; ++id) pair.post_receive(id, {buffer.sge(0, 8)});
    if (check.active) {
      check.peer.meet();
      pair.post(IBV_WR_SEND, 1, {buffer.sge(0, 8)});  // not armed
      expect_success(pair.send_cq, "send");
      check.peer.meet();
      check.peer.meet();
      pair.post(IBV_WR_SEND, 2, {buffer.sge(0, 8)});  // armed
      expect_success(pair.send_cq, "send");
      check.peer.meet();
      check.peer.meet();
      pair.post(IBV_WR_SEND, 3, {buffer.sge(0, 8)});  // armed for solicited ones
      expect_success(pair.send_cq, "send");
      check.peer.meet();
      check.peer.meet();
      pair.post(IBV_WR_SEND, 4, {buffer.sge(0, 8)}, IBV_SEND_SIGNALED | IBV_SEND_SOLICITED);
      expect_success(pair.send_cq, "send");
      check.peer.meet();
    } else {
      check.peer.meet();
      check.peer.meet();
      expect_success(pair.recv_cq, "receive");
      expect(!readable(0), "event though the queue was not armed");
      ibv_req_notify_cq(pair.recv_cq, 0);
      check.peer.meet();
      take_event();
      check.peer.meet();
      expect_success(pair.recv_cq, "receive");
      ibv_req_notify_cq(pair.recv_cq, 1);
      check.peer.meet();
      check.peer.meet();
      expect_success(pair.recv_cq, "receive");
      expect(!readable(0), "event for an unsolicited message");
      check.peer.meet();
      take_event();
      check.peer.meet();
      expect_success(pair.recv_cq, "receive");
    }
  }
  expect_equal(ibv_destroy_comp_channel(channel), 0, "ibv_destroy_comp_channel");
  check.peer.meet();
}

void datagrams(Check& check) {
  Setup setup;
  setup.type = IBV_QPT_UD;
  Buffer buffer(check.port.pd, 8192 + 40);
  Pair pair(check.port, setup);
  pair.connect(check.peer);
  const bool ethernet = pair.theirs.port.ethernet;
  ibv_ah_attr attr = way_to(pair.theirs.port, static_cast<std::uint8_t>(check.port.number));
  ibv_ah* plain = ibv_create_ah(check.port.pd, &attr);
  attr.is_global = 1;
  attr.grh.dgid = pair.theirs.port.gid;
  attr.grh.hop_limit = 64;
  attr.grh.traffic_class = 3;
  attr.grh.flow_label = 0x12345;
  ibv_ah* global = ibv_create_ah(check.port.pd, &attr);
  expect(plain != nullptr && global != nullptr, "ibv_create_ah");
  const auto send = [&](std::uint64_t id, ibv_ah* ah, std::size_t length, std::uint32_t qkey) {
    std::vector<ibv_sge> sges = {buffer.sge(0, length)};
    ibv_send_wr wr = pair.request(IBV_WR_SEND_WITH_IMM, id, sges);
    wr.imm_data = htobe32(static_cast<std::uint32_t>(id));
    wr.wr.ud = {ah, pair.theirs.qpn, qkey};
    return pair.post(wr);
  };
  const std::size_t mtu = 128U << check.port.attr.active_mtu;
  if (check.active) {
    fill(buffer.bytes, 3);
    check.peer.meet();
    expect_equal(send(1, plain, 100, 0x22222222), 0, "wrong Q_Key");
    expect_equal(send(2, plain, 100, 0x11111111), 0, "plain");
    expect_equal(send(3, global, mtu, 0x11111111), 0, "with a global route");
    for (int i = 0; i < 3; ++i) expect_success(pair.send_cq, "datagram");
    check.peer.meet();
    expect_equal(send(4, plain, mtu + 1, 0x11111111), 0, "longer than the MTU");
    expect_status(next_completion(pair.send_cq, "longer than the MTU"), {IBV_WC_LOC_LEN_ERR},
                  "longer than the MTU");
  } else {
    std::fill(buffer.bytes.begin(), buffer.bytes.end(), std::uint8_t{0xEE});
    pair.post_receive(1, {buffer.sge(0, 140)});
    pair.post_receive(2, {buffer.sge(0, 40), buffer.sge(40, mtu)});
    check.peer.meet();
    std::vector<std::uint8_t> sent(8192 + 40);
    fill(sent, 3);
    ibv_wc wc = expect_success(pair.recv_cq, "datagram");
    expect_equal(wc.imm_data, htobe32(2), "the one with the wrong Q_Key is not delivered");
    expect_equal(wc.byte_len, 140, "length with the place of the GRH");
    expect_equal(wc.src_qp, pair.theirs.qpn, "source queue pair");
    if (!ethernet) expect_equal(wc.slid, pair.theirs.port.lid, "source LID");
    expect(((wc.wc_flags & IBV_WC_GRH) != 0) == ethernet, "GRH flag without a GRH");
    wc = expect_success(pair.recv_cq, "datagram with a global route");
    expect((wc.wc_flags & IBV_WC_GRH) != 0, "GRH flag");
    expect_equal(wc.byte_len, mtu + 40, "length");
    ibv_grh grh;
    std::memcpy(&grh, buffer.bytes.data(), 40);
    expect_equal(be32toh(grh.version_tclass_flow), 6U << 28 | 3U << 20 | 0x12345U,
                 "version, class, flow label");
    expect(std::memcmp(&grh.sgid, &pair.theirs.port.gid, 16) == 0, "source GID");
    expect(
        std::equal(sent.begin(), sent.begin() + static_cast<std::ptrdiff_t>(mtu), buffer.bytes.begin() + 40),
        "content");
    ibv_ah_attr back{};
    expect_equal(ibv_init_ah_from_wc(check.port.context, static_cast<std::uint8_t>(check.port.number), &wc,
                                     &grh, &back),
                 0, "ibv_init_ah_from_wc");
    expect(back.is_global == 1 && (ethernet || back.dlid == pair.theirs.port.lid) &&
               back.grh.flow_label == 0x12345,
           "way back");
    expect_nothing(pair.recv_cq, "datagrams");
    check.peer.meet();
  }
  check.peer.meet();
  ibv_destroy_ah(plain);
  ibv_destroy_ah(global);
}

void multicast(Check& check) {
  Setup setup;
  setup.type = IBV_QPT_UD;
  Buffer buffer(check.port.pd, 4096);
  Pair pair(check.port, setup);
  pair.connect(check.peer);
  ibv_gid group{};
  const std::uint8_t raw[16] = {0xFF, 0x12, 0xA0, 0x1B, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4};
  std::memcpy(group.raw, raw, 16);
  expect_equal(ibv_attach_mcast(pair.qp, &group, 0xC001), 0, "ibv_attach_mcast");
  for (std::uint64_t id = 0; id < 4; ++id) pair.post_receive(id, {buffer.sge(0, 140)});
  check.peer.meet();
  if (check.active) {
    ibv_ah_attr attr{};
    attr.dlid = 0xC001;
    attr.port_num = static_cast<std::uint8_t>(check.port.number);
    attr.is_global = 1;
    attr.grh.dgid = group;
    ibv_ah* ah = ibv_create_ah(check.port.pd, &attr);
    expect(ah != nullptr, "ibv_create_ah");
    std::vector<ibv_sge> sges = {buffer.sge(1000, 100)};
    ibv_send_wr wr = pair.request(IBV_WR_SEND, 1, sges);
    wr.wr.ud = {ah, 0xFFFFFF, 0x11111111};
    expect_equal(pair.post(wr), 0, "multicast");
    expect_success(pair.send_cq, "multicast");
    check.peer.meet();
    ibv_destroy_ah(ah);
  } else {
    const ibv_wc wc = expect_success(pair.recv_cq, "multicast");
    expect((wc.wc_flags & IBV_WC_GRH) != 0, "GRH flag");
    expect_equal(wc.byte_len, 140, "length");
    expect(std::memcmp(buffer.bytes.data() + 24, raw, 16) == 0, "destination GID");
    check.peer.meet();
  }
  expect_equal(ibv_detach_mcast(pair.qp, &group, 0xC001), 0, "ibv_detach_mcast");
  check.peer.meet();
}

void shared_receive_queue(Check& check) {
  drain_events(check.port.context);
  Buffer buffer(check.port.pd, 4096);
  ibv_srq_init_attr init{};
  init.attr = {.max_wr = 16, .max_sge = 1, .srq_limit = 0};
  ibv_srq* srq = check.active ? nullptr : ibv_create_srq(check.port.pd, &init);
  expect(check.active || srq != nullptr, "ibv_create_srq");
  {
    Setup setup;
    setup.srq = srq;
    Pair one(check.port, setup), two(check.port, setup);
    one.connect(check.peer);
    two.connect(check.peer);
    if (check.active) {
      check.peer.meet();
      for (int i = 0; i < 3; ++i)
        for (Pair* pair : {&one, &two}) {
          expect_equal(pair->post(IBV_WR_SEND, 1, {buffer.sge(0, 8)}), 0, "send");
          expect_success(pair->send_cq, "send");
        }
      check.peer.meet();
    } else {
      for (std::uint64_t id = 0; id < 8; ++id) {
        ibv_sge sge = buffer.sge(id * 8, 8);
        ibv_recv_wr wr{};
        wr.wr_id = id;
        wr.sg_list = &sge;
        wr.num_sge = 1;
        ibv_recv_wr* bad = nullptr;
        expect_equal(ibv_post_srq_recv(srq, &wr, &bad), 0, "ibv_post_srq_recv");
      }
      ibv_srq_attr attr{};
      attr.srq_limit = 4;
      expect_equal(ibv_modify_srq(srq, &attr, IBV_SRQ_LIMIT), 0, "ibv_modify_srq");
      check.peer.meet();
      for (std::uint64_t i = 0; i < 3; ++i) {
        expect_equal(expect_success(one.recv_cq, "receive").wr_id, 2 * i, "request in turn");
        expect_equal(expect_success(two.recv_cq, "receive").wr_id, 2 * i + 1, "request in turn");
      }
      expect(next_event(check.port.context, IBV_EVENT_SRQ_LIMIT_REACHED), "no IBV_EVENT_SRQ_LIMIT_REACHED");
      expect_equal(ibv_query_srq(srq, &attr), 0, "ibv_query_srq");
      expect_equal(attr.srq_limit, 0, "the limit is disarmed");
      expect_equal(one.to_state(IBV_QPS_ERR), 0, "ERR");
      expect(next_event(check.port.context, IBV_EVENT_QP_LAST_WQE_REACHED),
             "no IBV_EVENT_QP_LAST_WQE_REACHED");
      check.peer.meet();
    }
  }
  if (srq != nullptr) expect_equal(ibv_destroy_srq(srq), 0, "ibv_destroy_srq");
  check.peer.meet();
}

void stale_key(Check& check) {
  Setup setup;
  Buffer local(check.port.pd, 4096);
  auto shared = std::make_unique<Buffer>(check.port.pd, 4096);
  Pair pair(check.port, setup);
  pair.connect(check.peer, shared.get());
  shared.reset();
  Buffer another(check.port.pd, 4096);
  check.peer.meet();
  if (check.active) {
    pair.post(IBV_WR_RDMA_WRITE, 1, {local.sge(0, 8)});
    expect_status(next_completion(pair.send_cq, "write"), {IBV_WC_REM_ACCESS_ERR}, "write with a stale key");
  }
  check.peer.meet();
}

void access_error_event(Check& check) {
  drain_events(check.port.context);
  Setup setup;
  Buffer buffer(check.port.pd, 4096);
  Pair pair(check.port, setup);
  pair.connect(check.peer, &buffer);
  if (check.active) {
    pair.theirs.rkey ^= 0x55;
    pair.post(IBV_WR_RDMA_WRITE, 1, {buffer.sge(0, 8)});
    expect_status(next_completion(pair.send_cq, "write"), {IBV_WC_REM_ACCESS_ERR}, "write");
  } else {
    expect(next_event(check.port.context, IBV_EVENT_QP_ACCESS_ERR), "no IBV_EVENT_QP_ACCESS_ERR");
  }
  check.peer.meet();
}

void resize(Check& check) {
  Setup setup;
  setup.cqe = 8;
  Buffer buffer(check.port.pd, 4096);
  Pair pair(check.port, setup);
  pair.connect(check.peer);
  if (check.active) {
    for (int round = 0; round < 2; ++round) {
      check.peer.meet();
      for (int i = 0; i < 6; ++i) {
        pair.post(IBV_WR_SEND, 1, {buffer.sge(0, 8)});
        expect_success(pair.send_cq, "send");
      }
      check.peer.meet();
    }
  } else {
    for (std::uint64_t id = 0; id < 12; ++id) pair.post_receive(id, {buffer.sge(0, 8)});
    check.peer.meet();
    check.peer.meet();
    const int error = ibv_resize_cq(pair.recv_cq, 64);
    expect_equal(error, 0, "ibv_resize_cq");
    expect(pair.recv_cq->cqe >= 64, "new size");
    check.peer.meet();
    check.peer.meet();
    for (std::uint64_t id = 0; id < 12; ++id)
      expect_equal(expect_success(pair.recv_cq, "receive").wr_id, id, "order over the resize");
  }
  check.peer.meet();
}

void extended_interfaces(Check& check) {
  ibv_cq_init_attr_ex cq_attr{};
  cq_attr.cqe = 64;
  cq_attr.wc_flags = IBV_WC_EX_WITH_BYTE_LEN | IBV_WC_EX_WITH_IMM | IBV_WC_EX_WITH_QP_NUM;
  ibv_cq_ex* cq = ibv_create_cq_ex(check.port.context, &cq_attr);
  expect(cq != nullptr, "ibv_create_cq_ex");
  ibv_qp_init_attr_ex attr{};
  attr.send_cq = attr.recv_cq = ibv_cq_ex_to_cq(cq);
  attr.cap = {16, 16, 2, 2, 32};
  attr.qp_type = IBV_QPT_RC;
  attr.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
  attr.pd = check.port.pd;
  attr.send_ops_flags = IBV_QP_EX_WITH_SEND_WITH_IMM | IBV_QP_EX_WITH_RDMA_WRITE;
  {
    Buffer buffer(check.port.pd, 4096);
    Pair pair(check.port, Setup{});
    ibv_destroy_qp(pair.qp);
    pair.qp = ibv_create_qp_ex(check.port.context, &attr);
    expect(pair.qp != nullptr, "ibv_create_qp_ex");
    ibv_qp_ex* qp = ibv_qp_to_qp_ex(pair.qp);
    expect(qp != nullptr, "ibv_qp_to_qp_ex");
    pair.connect(check.peer, &buffer);
    ibv_poll_cq_attr poll_attr{};
    const auto started = [&] {
      const auto deadline = Clock::now() + 20s;
      while (ibv_start_poll(cq, &poll_attr) != 0) expect(Clock::now() < deadline, "no completion");
    };
    if (check.active) {
      check.peer.meet();
      const char* words = "written inline";
      ibv_wr_start(qp);
      qp->wr_id = 1;
      qp->wr_flags = 0;
      ibv_wr_rdma_write(qp, pair.theirs.rkey, pair.theirs.memory + 100);
      ibv_wr_set_inline_data(qp, const_cast<char*>(words), 15);
      qp->wr_id = 2;
      qp->wr_flags = IBV_SEND_SIGNALED;
      ibv_wr_send_imm(qp, htobe32(5));
      ibv_wr_set_sge(qp, buffer.mr->lkey, reinterpret_cast<std::uint64_t>(buffer.bytes.data()), 64);
      expect_equal(ibv_wr_complete(qp), 0, "ibv_wr_complete");
      started();
      expect(cq->status == IBV_WC_SUCCESS, ibv_wc_status_str(cq->status));
      expect_equal(cq->wr_id, 2, "the signaled one");
      expect_equal(ibv_next_poll(cq), ENOENT, "the unsignaled one");
      ibv_end_poll(cq);
      // What was aborted is not posted.
      ibv_wr_start(qp);
      ibv_wr_send_imm(qp, 0);
      ibv_wr_abort(qp);
      expect_equal(ibv_start_poll(cq, &poll_attr), ENOENT, "aborted");
      check.peer.meet();
    } else {
      expect_equal(pair.post_receive(7, {buffer.sge(1000, 64)}), 0, "post");
      check.peer.meet();
      started();
      expect_equal(cq->wr_id, 7, "wr_id");
      expect_equal(static_cast<int>(ibv_wc_read_opcode(cq)), static_cast<int>(IBV_WC_RECV), "opcode");
      expect_equal(ibv_wc_read_byte_len(cq), 64, "length");
      expect_equal(ibv_wc_read_imm_data(cq), htobe32(5), "immediate data");
      expect_equal(ibv_wc_read_qp_num(cq), pair.qp->qp_num, "queue pair");
      ibv_end_poll(cq);
      expect(std::strcmp(reinterpret_cast<char*>(buffer.bytes.data() + 100), "written inline") == 0,
             "content");
      check.peer.meet();
    }
  }
  expect_equal(ibv_destroy_cq(ibv_cq_ex_to_cq(cq)), 0, "ibv_destroy_cq");
  check.peer.meet();
}

/// The device does not have what the check is about.
bool lacks(Check& check, unsigned capability) {
  ibv_device_attr attr{};
  expect_equal(ibv_query_device(check.port.context, &attr), 0, "ibv_query_device");
  const bool here = (attr.device_cap_flags & capability) == 0;
  return check.peer.exchange(here) || here;
}

ibv_wc_status remote_request(Pair& pair, ibv_wr_opcode opcode, const ibv_sge& sge, std::uint64_t address,
                             std::uint32_t rkey) {
  std::vector<ibv_sge> sges = {sge};
  ibv_send_wr wr = pair.request(opcode, 1, sges);
  wr.wr.rdma = {address, rkey};
  expect_equal(pair.post(wr), 0, "request");
  return next_completion(pair.send_cq, "request").status;
}

constexpr int kEverything = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                            IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_MW_BIND;

/// Type 1: bound by ibv_bind_mw to the second half of a region, to the first half, and to nothing.
void windows_of_type_1(Check& check) {
  if (lacks(check, IBV_DEVICE_MEM_WINDOW)) return;
  Buffer buffer(check.port.pd, 8192, kEverything);
  ibv_mw* window = check.active ? nullptr : ibv_alloc_mw(check.port.pd, IBV_MW_TYPE_1);
  expect(check.active || window != nullptr, "ibv_alloc_mw");
  for (const std::size_t offset : {4096U, 0U}) {
    Pair pair(check.port, Setup{});
    pair.connect(check.peer, &buffer);
    std::uint32_t key = 0;
    if (!check.active) {
      const std::uint32_t before = window->rkey;
      ibv_mw_bind bind{};
      bind.wr_id = 3;
      bind.send_flags = IBV_SEND_SIGNALED;
      bind.bind_info = {buffer.mr, reinterpret_cast<std::uint64_t>(buffer.bytes.data()) + offset, 4096,
                        IBV_ACCESS_REMOTE_WRITE};
      expect_equal(ibv_bind_mw(pair.qp, window, &bind), 0, "ibv_bind_mw");
      const ibv_wc wc = expect_success(pair.send_cq, "binding");
      expect_equal(static_cast<int>(wc.opcode), static_cast<int>(IBV_WC_BIND_MW), "opcode");
      expect_equal(wc.wr_id, 3, "wr_id");
      expect(window->rkey != before, "a binding has a key of its own");
      expect_equal(ibv_dereg_mr(buffer.mr), EBUSY, "region with a window");
      key = window->rkey;
    }
    key = check.peer.exchange(key);
    if (check.active) {
      const std::uint64_t base = pair.theirs.memory + offset;
      buffer.bytes[0] = 77;
      expect_equal(remote_request(pair, IBV_WR_RDMA_WRITE, buffer.sge(0, 8), base + 100, key), IBV_WC_SUCCESS,
                   "write into the window");
      expect_equal(remote_request(pair, IBV_WR_RDMA_WRITE, buffer.sge(0, 8), base + 4096 - 7, key),
                   IBV_WC_REM_ACCESS_ERR, "write beyond the window");
    }
    check.peer.meet();
    if (!check.active) expect_equal(static_cast<int>(buffer.bytes[offset + 100]), 77, "content");
    check.peer.meet();
  }
  if (window != nullptr) expect_equal(ibv_dealloc_mw(window), 0, "ibv_dealloc_mw");
  check.peer.meet();
}

/// Type 2: bound in the send queue, invalidated by the owner and by the other side.
void windows_of_type_2(Check& check) {
  if (lacks(check, IBV_DEVICE_MEM_WINDOW_TYPE_2B)) return;
  Buffer buffer(check.port.pd, 4096, kEverything);
  ibv_mw* window = check.active ? nullptr : ibv_alloc_mw(check.port.pd, IBV_MW_TYPE_2);
  expect(check.active || window != nullptr, "ibv_alloc_mw");
  const auto manage = [&](Pair& pair, ibv_wr_opcode opcode, std::uint32_t key, ibv_wc_status wanted,
                          const std::string& what) {
    ibv_send_wr wr{};
    wr.wr_id = 5;
    wr.opcode = opcode;
    wr.send_flags = IBV_SEND_SIGNALED;
    if (opcode == IBV_WR_BIND_MW)
      wr.bind_mw = {window,
                    key,
                    {buffer.mr, reinterpret_cast<std::uint64_t>(buffer.bytes.data()), 4096,
                     IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE}};
    else
      wr.invalidate_rkey = key;
    expect_equal(pair.post(wr), 0, what);
    expect_status(next_completion(pair.send_cq, what), {wanted}, what);
  };
  {
    Pair one(check.port, Setup{}), two(check.port, Setup{});
    one.connect(check.peer, &buffer);
    two.connect(check.peer, &buffer);
    std::uint32_t key = 0;
    if (!check.active) {
      key = ibv_inc_rkey(window->rkey);
      manage(one, IBV_WR_BIND_MW, key, IBV_WC_SUCCESS, "binding");
      expect_equal(one.post_receive(8, {buffer.sge(0, 64)}), 0, "post");
    }
    const std::uint32_t theirs = check.peer.exchange(key);
    if (check.active) {
      key = theirs;
      expect_equal(remote_request(one, IBV_WR_RDMA_READ, buffer.sge(0, 8), one.theirs.memory, key),
                   IBV_WC_SUCCESS, "read through the window");
      expect_equal(remote_request(two, IBV_WR_RDMA_READ, buffer.sge(0, 8), one.theirs.memory, key),
                   IBV_WC_REM_ACCESS_ERR, "through another queue pair");
      std::vector<ibv_sge> sges = {buffer.sge(0, 16)};
      ibv_send_wr wr = one.request(IBV_WR_SEND_WITH_INV, 6, sges);
      wr.invalidate_rkey = key;
      expect_equal(one.post(wr), 0, "send with invalidate");
      expect_success(one.send_cq, "send with invalidate");
      check.peer.meet();
      check.peer.meet();
      expect_equal(remote_request(one, IBV_WR_RDMA_READ, buffer.sge(0, 8), one.theirs.memory, key),
                   IBV_WC_REM_ACCESS_ERR, "invalidated window");
    } else {
      check.peer.meet();
      const ibv_wc wc = expect_success(one.recv_cq, "send with invalidate");
      expect((wc.wc_flags & IBV_WC_WITH_INV) != 0, "flag of the invalidation");
      expect_equal(wc.invalidated_rkey, key, "key that was invalidated");
      // It can be bound again, once; the owner invalidates it, once.
      key = ibv_inc_rkey(key);
      manage(one, IBV_WR_BIND_MW, key, IBV_WC_SUCCESS, "binding again");
      manage(one, IBV_WR_LOCAL_INV, key, IBV_WC_SUCCESS, "local invalidation");
      check.peer.meet();
    }
    check.peer.meet();
  }
  for (const bool bound : {true, false}) {
    Pair pair(check.port, Setup{});
    pair.connect(check.peer, &buffer);
    if (!check.active) {
      const std::uint32_t key = ibv_inc_rkey(ibv_inc_rkey(window->rkey)) + (bound ? 1 : 2);
      if (bound) manage(pair, IBV_WR_BIND_MW, key, IBV_WC_SUCCESS, "binding");
      manage(pair, bound ? IBV_WR_BIND_MW : IBV_WR_LOCAL_INV, key + 1, IBV_WC_MW_BIND_ERR,
             bound ? "a second binding" : "invalidation of a key that names nothing");
    }
    check.peer.meet();
  }
  if (window != nullptr) expect_equal(ibv_dealloc_mw(window), 0, "ibv_dealloc_mw");
  check.peer.meet();
}

/// A region with a small part of it in another place, with other rights.
void changed_region(Check& check) {
  std::vector<std::uint8_t> other(std::size_t{3} * 4096);
  Buffer buffer(check.port.pd, 4096);
  Pair pair(check.port, Setup{});
  if (!check.active) {
    expect_equal(
        ibv_rereg_mr(buffer.mr, IBV_REREG_MR_CHANGE_ACCESS, nullptr, nullptr, 0, IBV_ACCESS_REMOTE_WRITE),
        IBV_REREG_MR_ERR_INPUT, "remote without local writing");
    expect_equal(
        ibv_rereg_mr(buffer.mr, IBV_REREG_MR_CHANGE_TRANSLATION, nullptr, other.data(), other.size(), 0), 0,
        "ibv_rereg_mr");
    expect_equal(buffer.mr->length, other.size(), "length");
  }
  pair.connect(check.peer, &buffer);
  std::uint64_t address = check.peer.exchange(reinterpret_cast<std::uint64_t>(other.data()));
  if (check.active) {
    buffer.bytes[0] = 99;
    expect_equal(remote_request(pair, IBV_WR_RDMA_WRITE, buffer.sge(0, 1), address + 8000, pair.theirs.rkey),
                 IBV_WC_SUCCESS, "write to the new place");
  }
  check.peer.meet();
  if (!check.active) {
    expect_equal(static_cast<int>(other[8000]), 99, "content");
    expect_equal(
        ibv_rereg_mr(buffer.mr, IBV_REREG_MR_CHANGE_ACCESS, nullptr, nullptr, 0, IBV_ACCESS_LOCAL_WRITE), 0,
        "ibv_rereg_mr");
  }
  const std::uint32_t key = check.peer.exchange(buffer.mr->rkey);
  if (check.active)
    expect_equal(remote_request(pair, IBV_WR_RDMA_WRITE, buffer.sge(0, 1), address + 8000, key),
                 IBV_WC_REM_ACCESS_ERR, "write without the right to");
  check.peer.meet();
}

/// ibv_reg_mr_iova: requests use other addresses than the program.
void chosen_addresses(Check& check) {
  constexpr std::uint64_t kBase = 0x100000000000;
  std::vector<std::uint8_t> bytes(8192);
  ibv_mr* mr = ibv_reg_mr_iova(check.port.pd, bytes.data(), bytes.size(), kBase,
                               IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
  expect(mr != nullptr, "ibv_reg_mr_iova");
  {
    Pair pair(check.port, Setup{});
    pair.connect(check.peer);
    const std::uint32_t key = check.peer.exchange(mr->rkey);
    if (check.active) {
      bytes[17] = 55;
      expect_equal(remote_request(pair, IBV_WR_RDMA_WRITE, {kBase + 17, 1, mr->lkey}, kBase + 8191, key),
                   IBV_WC_SUCCESS, "write");
    }
    check.peer.meet();
    if (!check.active) expect_equal(static_cast<int>(bytes[8191]), 55, "content");
  }
  expect_equal(ibv_dereg_mr(mr), 0, "ibv_dereg_mr");
  check.peer.meet();
}

/// A stream of numbered messages over a cable that is cut in the middle.
void cut(Check& check, bool mend_in_time) {
  constexpr std::uint32_t kMessages = 4000;
  Setup setup;
  setup.timeout = mend_in_time ? 19 : 12;  // 2.1 s, 17 ms
  setup.retries = 7;
  if (!mend_in_time) setup.retries = 1;
  setup.recv_wr = kMessages + 1;
  setup.cqe = 8192;
  Buffer buffer(check.port.pd, 8 * (kMessages + 1));
  Pair pair(check.port, setup);
  if (!check.active) {
    expect_equal(pair.to_init(), 0, "INIT");
    for (std::uint64_t id = 0; id < kMessages; ++id) pair.post_receive(id, {buffer.sge(8 * id, 8)});
  } else {
    for (std::uint64_t id = 0; id < kMessages; ++id) std::memcpy(buffer.bytes.data() + 8 * id, &id, 8);
  }
  pair.connect(check.peer);
  std::uint64_t acknowledged = 0, delivered = 0, failed = 0;
  if (check.active) {
    std::mt19937 random(check.options.seed);
    const std::uint64_t cut_at = 500 + random() % 2000;
    std::uint64_t posted = 0;
    const auto take = [&](const ibv_wc& wc) {
      if (wc.status == IBV_WC_SUCCESS) {
        expect_equal(wc.wr_id, acknowledged, "order of completions");
        expect_equal(failed, 0, "success after a failure");
        ++acknowledged;
      } else {
        expect_status(wc, {failed == 0 ? IBV_WC_RETRY_EXC_ERR : IBV_WC_WR_FLUSH_ERR}, "failure");
        expect_equal(wc.wr_id, acknowledged + failed, "order of failures");
        ++failed;
      }
    };
    bool was_cut = false;
    while (posted < kMessages && (!was_cut || posted < cut_at + 200)) {
      if (posted == cut_at && !was_cut) {
        expect_equal(std::system(check.options.cut.c_str()), 0, "cut");
        was_cut = true;
      }
      if (pair.post(IBV_WR_SEND, posted, {buffer.sge(8 * posted, 8)}) == 0) {
        ++posted;
      } else if (was_cut) {
        break;  // the send queue is full, and nothing is acknowledged any more
      }
      ibv_wc wc{};
      if (random() % 8 == 0)
        while (ibv_poll_cq(pair.send_cq, 1, &wc) == 1) take(wc);
    }
    if (mend_in_time) expect_equal(std::system(check.options.mend.c_str()), 0, "mend");
    while (acknowledged + failed < posted) take(next_completion(pair.send_cq, "completion"));
    if (mend_in_time) {
      expect_equal(failed, 0, "failures though the cable came back in time");
    } else {
      expect(failed > 0, "nothing was lost");
    }
    check.peer.meet();
    delivered = check.peer.exchange(posted);
    expect(delivered >= acknowledged, "acknowledged more than was delivered");
    expect(delivered <= posted, "delivered more than was posted");
    if (mend_in_time) expect_equal(delivered, posted, "everything arrives after all");
    std::printf("  %llu posted, %llu delivered, %llu acknowledged\n", static_cast<unsigned long long>(posted),
                static_cast<unsigned long long>(delivered), static_cast<unsigned long long>(acknowledged));
    if (!mend_in_time) expect_equal(std::system(check.options.mend.c_str()), 0, "mend");
  } else {
    check.peer.meet();
    ibv_wc wc{};
    for (; poll_for(pair.recv_cq, wc, 100ms); ++delivered) {
      expect_status(wc, {IBV_WC_SUCCESS}, "receive");
      expect_equal(wc.wr_id, delivered, "each receive request once, in order");
      std::uint64_t content = 0;
      std::memcpy(&content, buffer.bytes.data() + 8 * delivered, 8);
      expect_equal(content, delivered, "each message once, in order");
    }
    check.peer.exchange(delivered);
  }
  check.peer.meet();
}

struct Named {
  const char* name;
  void (*run)(Check&);
  bool needs_cut = false;
};
void cut_for_good(Check& check) {
  cut(check, false);
}
void cut_and_mended(Check& check) {
  cut(check, true);
}

const std::vector<Named> kChecks = {
    {"states and transitions", states},
    {"limits", limits},
    {"send and receive", send_receive},
    {"RDMA and atomics", rdma},
    {"wrong R_Key", wrong_rkey},
    {"out of bounds", out_of_bounds},
    {"region without remote write", no_remote_write},
    {"queue pair without access", queue_pair_without_access},
    {"message longer than the receive request", message_too_long},
    {"receive request with a wrong L_Key", receiver_with_wrong_lkey},
    {"send request with a wrong L_Key", sender_with_wrong_lkey},
    {"read into memory that is not writable", read_into_read_only},
    {"misaligned atomic", misaligned_atomic},
    {"receiver not ready, retries run out", not_ready},
    {"receiver late", late_receiver},
    {"retry exceeded", retry_exceeded},
    {"flush", flush},
    {"selective signaling", selective_signaling},
    {"completion queue overrun", completion_queue_overrun},
    {"completion events", completion_events},
    {"datagrams", datagrams},
    {"multicast", multicast},
    {"shared receive queue", shared_receive_queue},
    {"stale R_Key", stale_key},
    {"access error event", access_error_event},
    {"resized completion queue", resize},
    {"extended interfaces", extended_interfaces},
    {"memory windows of type 1", windows_of_type_1},
    {"memory windows of type 2", windows_of_type_2},
    {"region registered again", changed_region},
    {"region at addresses of its own", chosen_addresses},
    {"cable cut for good", cut_for_good, true},
    {"cable cut and mended", cut_and_mended, true},
};

/// One side of a check; what is wrong, or nothing.
std::string run_side(const Options& options, const Named& named, int side, int socket) {
  Peer peer(socket);
  try {
    Port port(options.device[side], options.port[side]);
    peer.meet();
    Check check{options, port, peer, side == 0};
    named.run(check);
    ibv_dealloc_pd(port.pd);
    ibv_close_device(port.context);
  } catch (const Failure& failure) {
    return failure.what();
  }
  return {};
}

/// In two processes of its own, so that one that fails leaves nothing to the next one.
bool run(const Options& options, const Named& named) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0) return false;
  pid_t sides[2];
  for (int side = 0; side < 2; ++side) {
    sides[side] = fork();
    if (sides[side] != 0) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(sockets[1 - side]);
    if (side == 1 && !options.host_b.empty()) setenv("SOFTHCA_HOST", options.host_b.c_str(), 1);
    const std::string problem = run_side(options, named, side, sockets[side]);
    if (!problem.empty()) std::printf("FAILED  %s, side %c: %s\n", named.name, "ab"[side], problem.c_str());
    std::fflush(stdout);
    _exit(problem.empty() ? 0 : 1);
  }
  close(sockets[0]);
  close(sockets[1]);
  bool good = true;
  for (const pid_t side : sides) {
    int status = 0;
    waitpid(side, &status, 0);
    if (WIFSIGNALED(status)) std::printf("FAILED  %s: %s\n", named.name, strsignal(WTERMSIG(status)));
    good = good && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  if (good) std::printf("ok      %s\n", named.name);
  std::fflush(stdout);
  return good;
}

bool parse_port(const std::string& text, std::string& device, int& port) {
  const auto slash = text.find('/');
  device = text.substr(0, slash);
  port = slash == std::string::npos ? 1 : std::atoi(text.c_str() + slash + 1);
  return !device.empty() && port > 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  std::vector<std::string> ports;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&] { return i + 1 < argc ? std::string(argv[++i]) : std::string(); };
    if (argument == "--host-b")
      options.host_b = value();
    else if (argument == "--cut")
      options.cut = value();
    else if (argument == "--mend")
      options.mend = value();
    else if (argument == "--only")
      options.only = value();
    else if (argument == "--except")
      options.except.push_back(value());
    else if (argument == "--seed")
      options.seed = static_cast<unsigned>(std::stoul(value()));
    else
      ports.push_back(argument);
  }
  if (ports.size() != 2 || !parse_port(ports[0], options.device[0], options.port[0]) ||
      !parse_port(ports[1], options.device[1], options.port[1])) {
    std::fprintf(stderr, "usage: verbs_conformance [options] DEVICE/PORT DEVICE/PORT\n");
    return 2;
  }
  bool good = true;
  for (const Named& named : kChecks) {
    if (named.needs_cut && options.cut.empty()) continue;
    if (!is_wanted(named.name, options.only, options.except)) continue;
    good = run(options, named) && good;
  }
  return good ? 0 : 1;
}
