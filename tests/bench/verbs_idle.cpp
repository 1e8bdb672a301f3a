// verbs_idle DEVICE: what many programs are most of the time. Opens the adapter, registers a buffer, makes a
// queue pair with receive requests, and sleeps on its completion channel until it is killed.
#include <infiniband/verbs.h>
#include <sys/prctl.h>

#include <csignal>
#include <cstdint>
#include <cstring>
#include <vector>

int main(int argc, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  ibv_context* context = nullptr;
  ibv_device** devices = ibv_get_device_list(nullptr);
  for (int i = 0; argc == 2 && devices != nullptr && devices[i] != nullptr; ++i)
    if (std::strcmp(ibv_get_device_name(devices[i]), argv[1]) == 0) context = ibv_open_device(devices[i]);
  if (context == nullptr) return 1;
  ibv_pd* pd = ibv_alloc_pd(context);
  ibv_comp_channel* channel = ibv_create_comp_channel(context);
  ibv_cq* cq = ibv_create_cq(context, 512, nullptr, channel, 0);
  std::vector<std::uint8_t> buffer(1 << 20);
  ibv_mr* mr = ibv_reg_mr(pd, buffer.data(), buffer.size(), IBV_ACCESS_LOCAL_WRITE);
  if (cq == nullptr || mr == nullptr) return 1;
  ibv_qp_init_attr init{};
  init.send_cq = init.recv_cq = cq;
  init.cap = {128, 256, 1, 1, 64};
  init.qp_type = IBV_QPT_RC;
  ibv_qp* qp = ibv_create_qp(pd, &init);
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_INIT;
  attr.port_num = 1;
  if (qp == nullptr ||
      ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) != 0)
    return 1;
  for (std::uint64_t id = 0; id < 256; ++id) {
    ibv_sge sge{reinterpret_cast<std::uint64_t>(buffer.data()) + id * 4096, 4096, mr->lkey};
    ibv_recv_wr wr{}, *bad = nullptr;
    wr.wr_id = id;
    wr.sg_list = &sge;
    wr.num_sge = 1;
    if (ibv_post_recv(qp, &wr, &bad) != 0) return 1;
  }
  ibv_req_notify_cq(cq, 0);
  void* user = nullptr;
  return ibv_get_cq_event(channel, &cq, &user);
}
