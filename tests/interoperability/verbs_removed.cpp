// What is left of an adapter that is taken out while it is in use: the kernel's part of every verb ends with
// EIO, for good, what was posted stands still, and IBV_EVENT_DEVICE_FATAL is the last event. Runs on any
// InfiniBand adapter whose driver can be taken away from its users (mlx5).
//
//   verbs_removed DEVICE/PORT
//
// Says "ready" when it has a queue pair that is connected to itself over the port's loopback, and waits for a
// line: by then somebody has taken the adapter out, or taken it out and put it in again. Prints what is not
// as above, and "done". Objects are destroyed at the end; $RDMAV_ALLOW_DISASSOC_DESTROY says whether that is
// to succeed.
#include <infiniband/verbs.h>
#include <poll.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "verbs_programs.hpp"

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("wrong: %s (errno %d, %s)\n", what, errno, std::strerror(errno));
  ++failures;
}

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "verbs_removed: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

/// A verb that returns a pointer, and fails with errno.
template <class Verb>
void refused(const char* what, Verb verb) {
  errno = 0;
  expect(verb() == nullptr && errno == EIO, what);
}

/// One that returns errno.
void refused(const char* what, int result) {
  expect(result == EIO || (result == -1 && errno == EIO), what);
}

ibv_context* open(const std::string& name) {
  int count = 0;
  ibv_device** list = ibv_get_device_list(&count);
  ibv_context* context = nullptr;
  for (int i = 0; list != nullptr && i < count; ++i)
    if (name == ibv_get_device_name(list[i])) context = ibv_open_device(list[i]);
  if (list != nullptr) ibv_free_device_list(list);
  return context;
}

/// Not signaled to the other side in any way: the adapter is not there.
int post(ibv_qp* qp, ibv_mr* mr) {
  ibv_sge sge{reinterpret_cast<std::uint64_t>(mr->addr), 64, mr->lkey};
  ibv_send_wr wr{}, *bad = nullptr;
  wr.sg_list = &sge;
  wr.num_sge = 1;
  wr.opcode = IBV_WR_RDMA_WRITE;
  wr.send_flags = IBV_SEND_SIGNALED;
  wr.wr.rdma = {reinterpret_cast<std::uint64_t>(mr->addr) + 64, mr->rkey};
  return ibv_post_send(qp, &wr, &bad);
}

void connect_to_itself(ibv_context* context, std::uint8_t port, ibv_qp* qp) {
  ibv_port_attr facts{};
  require(ibv_query_port(context, port, &facts) == 0 && facts.state == IBV_PORT_ACTIVE, "an Active port");
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_INIT;
  attr.port_num = port;
  attr.qp_access_flags = IBV_ACCESS_REMOTE_WRITE;
  require(ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0,
          "INIT");
  attr = {};
  attr.qp_state = IBV_QPS_RTR;
  attr.path_mtu = IBV_MTU_1024;
  attr.dest_qp_num = qp->qp_num;
  attr.ah_attr = way_to(address_of(context, port, facts), port);
  require(ibv_modify_qp(qp, &attr,
                        IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                            IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) == 0,
          "RTR");
  attr = {};
  attr.qp_state = IBV_QPS_RTS;
  attr.timeout = 8;
  attr.retry_cnt = 1;
  require(ibv_modify_qp(qp, &attr,
                        IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                            IBV_QP_MAX_QP_RD_ATOMIC) == 0,
          "RTS");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc == 2 ? argv[1] : "";
  const std::size_t slash = name.find('/');
  if (slash == std::string::npos) {
    std::fprintf(stderr, "usage: verbs_removed DEVICE/PORT\n");
    return 2;
  }
  const auto port = static_cast<std::uint8_t>(std::atoi(name.c_str() + slash + 1));
  ibv_context* context = open(name.substr(0, slash));
  require(context != nullptr, "ibv_open_device");
  ibv_pd* pd = ibv_alloc_pd(context);
  require(pd != nullptr, "ibv_alloc_pd");
  std::array<char, 4096> memory{};
  ibv_mr* mr = ibv_reg_mr(pd, memory.data(), memory.size(), IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
  ibv_cq* cq = ibv_create_cq(context, 16, nullptr, nullptr, 0);
  require(mr != nullptr && cq != nullptr, "memory and completion queue");
  ibv_qp_init_attr initial{};
  initial.send_cq = initial.recv_cq = cq;
  initial.cap = {.max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1};
  initial.qp_type = IBV_QPT_RC;
  ibv_qp* qp = ibv_create_qp(pd, &initial);
  require(qp != nullptr, "ibv_create_qp");
  connect_to_itself(context, port, qp);
  ibv_wc completion{};
  require(post(qp, mr) == 0, "ibv_post_send");
  while (ibv_poll_cq(cq, 1, &completion) == 0) {
  }
  require(completion.status == IBV_WC_SUCCESS, "a write to itself");

  std::printf("ready\n");
  std::fflush(stdout);
  require(std::getchar() != EOF, "standard input");

  // Events of the port may come first.
  ibv_async_event event{};
  do {
    require(ibv_get_async_event(context, &event) == 0, "IBV_EVENT_DEVICE_FATAL");
    ibv_ack_async_event(&event);
  } while (event.event_type != IBV_EVENT_DEVICE_FATAL);
  pollfd readable{context->async_fd, POLLIN, 0};
  expect(poll(&readable, 1, -1) == 1 && readable.revents != 0, "poll tells that no event will come");
  expect(ibv_get_async_event(context, &event) == -1 && errno == EIO,
         "ibv_get_async_event after the last one");

  ibv_device_attr device{};
  ibv_port_attr facts{};
  ibv_gid gid{};
  __be16 pkey = 0;
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_ERR;
  refused("ibv_query_device", ibv_query_device(context, &device));
  refused("ibv_query_port", ibv_query_port(context, port, &facts));
  refused("ibv_query_gid", ibv_query_gid(context, port, 0, &gid));
  refused("ibv_query_pkey", ibv_query_pkey(context, port, 0, &pkey));
  refused("ibv_query_qp", ibv_query_qp(qp, &attr, IBV_QP_STATE, &initial));
  refused("ibv_modify_qp", ibv_modify_qp(qp, &attr, IBV_QP_STATE));
  refused("ibv_alloc_pd", [&] { return ibv_alloc_pd(context); });
  refused("ibv_reg_mr", [&] { return ibv_reg_mr(pd, memory.data(), 64, 0); });
  refused("ibv_create_cq", [&] { return ibv_create_cq(context, 16, nullptr, nullptr, 0); });
  refused("ibv_create_comp_channel", [&] { return ibv_create_comp_channel(context); });
  refused("ibv_create_qp", [&] { return ibv_create_qp(pd, &initial); });
  ibv_srq_init_attr shared{};
  shared.attr = {.max_wr = 8, .max_sge = 1};
  refused("ibv_create_srq", [&] { return ibv_create_srq(pd, &shared); });

  memory[0] = 1;
  expect(post(qp, mr) == 0, "ibv_post_send is not told");
  // Longer than the requester's retries take.
  poll(nullptr, 0, 50);
  expect(ibv_poll_cq(cq, 1, &completion) == 0, "no completion ever comes");
  expect(memory[64] == 0, "nothing is written");

  const bool lets_go = std::getenv("RDMAV_ALLOW_DISASSOC_DESTROY") != nullptr;
  expect(ibv_destroy_qp(qp) == (lets_go ? 0 : EIO), "ibv_destroy_qp");
  if (lets_go) {
    expect(ibv_destroy_cq(cq) == 0, "ibv_destroy_cq");
    expect(ibv_dereg_mr(mr) == 0, "ibv_dereg_mr");
    expect(ibv_dealloc_pd(pd) == 0, "ibv_dealloc_pd");
  }
  expect(ibv_close_device(context) == 0, "ibv_close_device");
  std::printf("done\n");
  return failures == 0 ? 0 : 1;
}
