// libibverbs ABI: devices, contexts, ports, GIDs, P_Keys, asynchronous events.
//
// A context whose adapter has been taken out, or has failed, is dead for good, also when the adapter is back:
// what the kernel would do ends with EIO, the queues stand still, and IBV_EVENT_DEVICE_FATAL was the last
// event. Objects can be destroyed where $RDMAV_ALLOW_DISASSOC_DESTROY is set, as with rdma-core.
#include <infiniband/verbs.h>
#undef ibv_query_port

#include <endian.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <system_error>

#include "verbs/softhca/objects.hpp"
#include "verbs/softhca/real_library.hpp"

namespace fabric::softhca {
namespace {

constexpr unsigned kMaxRdAtomic = 16;

/// Consistent reading of what the SMA has been told (a seqlock).
template <class Read>
void read_port(const SharedPort& port, Read read) {
  for (;;) {
    const std::uint32_t before = port.change.load(std::memory_order_acquire);
    if ((before & 1) == 0) {
      read();
      if (port.change.load(std::memory_order_acquire) == before) return;
    }
  }
}

void fill_device(const HcaDescription& hca, ibv_device_attr& attr) {
  attr = {};
  std::snprintf(attr.fw_ver, sizeof attr.fw_ver, "%s", hca.firmware.c_str());
  attr.node_guid = htobe64(hca.node_guid);
  attr.sys_image_guid = htobe64(hca.system_image_guid);
  attr.max_mr_size = std::uint64_t{1} << 46;
  attr.page_size_cap = ~std::uint64_t{0xFFF};
  attr.vendor_id = hca.vendor_id;
  attr.vendor_part_id = hca.part_id;
  attr.hw_ver = hca.hardware_version;
  attr.max_qp = kMaxQps;
  attr.max_qp_wr = 32768;
  attr.device_cap_flags = IBV_DEVICE_BAD_PKEY_CNTR | IBV_DEVICE_BAD_QKEY_CNTR | IBV_DEVICE_PORT_ACTIVE_EVENT |
                          IBV_DEVICE_SYS_IMAGE_GUID | IBV_DEVICE_RC_RNR_NAK_GEN |
                          IBV_DEVICE_CURR_QP_STATE_MOD | IBV_DEVICE_MEM_WINDOW |
                          IBV_DEVICE_MEM_WINDOW_TYPE_2B | IBV_DEVICE_MEM_MGT_EXTENSIONS;
  attr.max_sge = kMaxSge;
  attr.max_sge_rd = kMaxSge;
  attr.max_cq = kMaxCqs;
  attr.max_cqe = 1 << 18;
  attr.max_mr = attr.max_mw = kMaxMrs;
  attr.max_pd = 1 << 15;
  attr.max_qp_rd_atom = kMaxRdAtomic;
  attr.max_res_rd_atom = kMaxRdAtomic * kMaxQps;
  attr.max_qp_init_rd_atom = kMaxRdAtomic;
  attr.atomic_cap = IBV_ATOMIC_HCA;
  attr.max_mcast_grp = 8192;
  attr.max_mcast_qp_attach = kMaxQpMulticast;
  attr.max_total_mcast_qp_attach = 65536;
  attr.max_ah = 1 << 20;
  attr.max_srq = kMaxSrqs;
  attr.max_srq_wr = 32768;
  attr.max_srq_sge = kMaxSge;
  attr.max_pkeys = kMaxPkeys;
  attr.local_ca_ack_delay = 15;
  attr.phys_port_cnt = static_cast<std::uint8_t>(hca.ports.size());
}

int query_device_ex(ibv_context* context, const ibv_query_device_ex_input*, ibv_device_attr_ex* attr,
                    std::size_t size) {
  if (is_gone(context)) return EIO;
  ibv_device_attr_ex all{};
  fill_device(*context_of(context).hca, all.orig_attr);
  all.completion_timestamp_mask = ~std::uint64_t{0};
  all.hca_core_clock = 1'000'000;  // kHz: time stamps are nanoseconds
  all.device_cap_flags_ex = all.orig_attr.device_cap_flags;
  all.pci_atomic_caps = {};
  all.phys_port_cnt_ex = all.orig_attr.phys_port_cnt;
  std::memset(attr, 0, size);
  std::memcpy(attr, &all, std::min(size, sizeof all));
  return 0;
}

/// The clock that completions are stamped with.
int query_rt_values(ibv_context*, ibv_values_ex* values) {
  const std::uint32_t wanted = values->comp_mask;
  values->comp_mask = 0;
  if ((wanted & IBV_VALUES_MASK_RAW_CLOCK) == 0) return 0;
  values->comp_mask = IBV_VALUES_MASK_RAW_CLOCK;
  return clock_gettime(CLOCK_MONOTONIC, &values->raw_clock) == 0 ? 0 : errno;
}

int query_port(ibv_context* context, std::uint8_t number, ibv_port_attr* out, std::size_t size) {
  if (is_gone(context)) return EIO;
  const SharedPort* port = context_of(context).port(number);
  if (port == nullptr) return EINVAL;
  ibv_port_attr attr{};
  read_port(*port, [&] {
    attr.state = static_cast<ibv_port_state>(port->state.load(std::memory_order_relaxed));
    attr.max_mtu = static_cast<ibv_mtu>(port->max_mtu.load(std::memory_order_relaxed));
    attr.active_mtu = static_cast<ibv_mtu>(port->active_mtu.load(std::memory_order_relaxed));
    attr.port_cap_flags = port->cap_mask.load(std::memory_order_relaxed);
    attr.bad_pkey_cntr = port->pkey_violations.load(std::memory_order_relaxed);
    attr.qkey_viol_cntr = port->qkey_violations.load(std::memory_order_relaxed);
    attr.lid = static_cast<std::uint16_t>(port->lid.load(std::memory_order_relaxed));
    attr.sm_lid = static_cast<std::uint16_t>(port->sm_lid.load(std::memory_order_relaxed));
    attr.lmc = static_cast<std::uint8_t>(port->lmc.load(std::memory_order_relaxed));
    attr.max_vl_num = static_cast<std::uint8_t>(port->max_vls.load(std::memory_order_relaxed));
    attr.sm_sl = static_cast<std::uint8_t>(port->sm_sl.load(std::memory_order_relaxed));
    attr.subnet_timeout = static_cast<std::uint8_t>(port->subnet_timeout.load(std::memory_order_relaxed));
    attr.init_type_reply = static_cast<std::uint8_t>(port->init_type_reply.load(std::memory_order_relaxed));
    attr.active_width = static_cast<std::uint8_t>(port->active_width.load(std::memory_order_relaxed));
    attr.active_speed = static_cast<std::uint8_t>(port->active_speed.load(std::memory_order_relaxed));
    attr.phys_state = static_cast<std::uint8_t>(port->phys_state.load(std::memory_order_relaxed));
  });
  attr.gid_tbl_len = kMaxGids;
  attr.pkey_tbl_len = kMaxPkeys;
  attr.max_msg_sz = 1U << 30;
  attr.link_layer = IBV_LINK_LAYER_INFINIBAND;
  std::memset(out, 0, size);
  std::memcpy(out, &attr, std::min(size, sizeof attr));
  return 0;
}

bool read_gid(const SharedPort& port, unsigned index, ibv_gid& gid) {
  if (index >= kMaxGids) return false;
  read_port(port, [&] {
    const std::uint64_t id = port.guids[index].load(std::memory_order_relaxed);
    gid.global.interface_id = htobe64(id);
    gid.global.subnet_prefix = id == 0 ? 0 : htobe64(port.gid_prefix.load(std::memory_order_relaxed));
  });
  return true;
}

/// The object that an event is about, in this process and of this context; nullptr if it is gone.
template <class Object>
Object* object_at(std::vector<std::atomic<Object*>>& table, std::uint64_t index, ibv_context* context) {
  Object* object = index < table.size() ? table[index].load(std::memory_order_acquire) : nullptr;
  if (object == nullptr) return nullptr;
  if constexpr (requires { object->ibv.qp_base; })
    return object->ibv.qp_base.context == context ? object : nullptr;
  else
    return object->ibv.context == context ? object : nullptr;
}

/// Fills `event`, and counts it as fetched; false if its object is gone.
bool describe_event(ibv_context* context, const AsyncEvent& raised, ibv_async_event& event,
                    bool fetch = true) {
  Process& process = Process::get();
  event.event_type = static_cast<ibv_event_type>(raised.type);
  std::lock_guard lock(process.mutex);
  switch (event.event_type) {
    case IBV_EVENT_CQ_ERR: {
      auto* cq = object_at(process.cqs, raised.object, context);
      if (cq == nullptr) return false;
      event.element.cq = reinterpret_cast<ibv_cq*>(&cq->ibv);
      cq->async_fetched += fetch ? 1 : 0;
      return true;
    }
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_SRQ_LIMIT_REACHED: {
      auto* srq = object_at(process.srqs, raised.object, context);
      if (srq == nullptr) return false;
      event.element.srq = &srq->ibv;
      srq->async_fetched += fetch ? 1 : 0;
      return true;
    }
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED: {
      auto* qp = object_at(process.qps, qp_index(static_cast<std::uint32_t>(raised.object)), context);
      if (qp == nullptr || qp->number() != raised.object) return false;
      event.element.qp = &qp->ibv.qp_base;
      qp->async_fetched += fetch ? 1 : 0;
      return true;
    }
    default:
      event.element.port_num = static_cast<int>(raised.port);
      return true;
  }
}

}  // namespace

bool is_gone(ibv_context* context) {
  const Context& object = context_of(context);
  if (Process::get().session.insertion(*object.hca) == object.insertion) return false;
  errno = EIO;
  return true;
}

bool keeps_objects(ibv_context* context) {
  static const bool lets_go = std::getenv("RDMAV_ALLOW_DISASSOC_DESTROY") != nullptr;
  return !lets_go && is_gone(context);
}

bool discard_stale_events(Context& context) {
  const int descriptor = context.verbs.context.async_fd;
  AsyncEvent raised;
  ibv_async_event event;
  for (;;) {
    const ssize_t got = recv(descriptor, &raised, sizeof raised, MSG_PEEK | MSG_DONTWAIT);
    if (got != sizeof raised) {
      if (got >= 0) errno = EIO;
      return false;
    }
    if (describe_event(&context.verbs.context, raised, event, false)) return true;
    if (recv(descriptor, &raised, sizeof raised, MSG_DONTWAIT) < 0) return false;
  }
}

}  // namespace fabric::softhca

using namespace fabric::softhca;

extern "C" {

ibv_device** ibv_get_device_list(int* count) {
  PASS_ON(ibv_get_device_list, count);
  if (count != nullptr) *count = 0;
  try {
    Process& process = Process::get();
    int real_count = 0;
    ibv_device** real =
        real_devices_shown() ? call_real("ibv_get_device_list", &ibv_get_device_list, &real_count) : nullptr;
    if (real == nullptr) real_count = 0;
    // Behind its end, the real library's list, which holds its devices until it is freed.
    const std::size_t most = process.devices.size() + static_cast<std::size_t>(real_count) + 2;
    auto** list = static_cast<ibv_device**>(std::calloc(most, sizeof(ibv_device*)));
    if (list == nullptr) return nullptr;
    ibv_device** end = list;
    for (const auto& device : process.devices)
      if (process.session.insertion(*device->hca) != 0) *end++ = &device->ibv;
    end = std::copy_n(real, real_count, end);
    end[1] = reinterpret_cast<ibv_device*>(real);
    if (count != nullptr) *count = static_cast<int>(end - list);
    return list;
  } catch (const std::system_error& error) {
    std::fprintf(stderr, "softhca: %s\n", error.what());
    errno = error.code().value();
    return nullptr;
  }
}

void ibv_free_device_list(ibv_device** list) {
  PASS_ON(ibv_free_device_list, list);
  if (list == nullptr) return;
  ibv_device** end = list;
  while (*end != nullptr) ++end;
  if (end[1] != nullptr)
    call_real("ibv_free_device_list", &ibv_free_device_list, reinterpret_cast<ibv_device**>(end[1]));
  std::free(list);
}

const char* ibv_get_device_name(ibv_device* device) {
  PASS_ON(ibv_get_device_name, device);
  return device->name;
}

__be64 ibv_get_device_guid(ibv_device* device) {
  PASS_ON(ibv_get_device_guid, device);
  return htobe64(reinterpret_cast<Device*>(device)->hca->node_guid);
}

int ibv_get_device_index(ibv_device* device) {
  PASS_ON(ibv_get_device_index, device);
  return static_cast<int>(reinterpret_cast<Device*>(device)->hca->number);
}

ibv_context* ibv_open_device(ibv_device* device) {
  PASS_ON(ibv_open_device, device);
  auto* opened = new Context;
  opened->hca = reinterpret_cast<Device*>(device)->hca;
  opened->insertion = Process::get().session.insertion(*opened->hca);
  verbs_context& verbs = opened->verbs;
  verbs.sz = sizeof(verbs_context);
  verbs.query_port = query_port;
  verbs.query_device_ex = query_device_ex;
  verbs.query_rt_values = query_rt_values;
  install_memory_operations(verbs);
  install_completion_operations(verbs);
  install_queue_pair_operations(verbs);
  ibv_context& context = verbs.context;
  context.device = device;
  context.abi_compat = reinterpret_cast<void*>(UINTPTR_MAX);
  context.num_comp_vectors = 1;
  context.cmd_fd = -1;
  pthread_mutex_init(&context.mutex, nullptr);
  try {
    context.async_fd = Process::get().session.open_events(opened->hca->number);
  } catch (const std::system_error& error) {
    delete opened;
    errno = error.code().value();
    return nullptr;
  }
  return &context;
}

int ibv_close_device(ibv_context* context) {
  PASS_ON(ibv_close_device, context);
  close(context->async_fd);
  pthread_mutex_destroy(&context->mutex);
  delete &context_of(context);
  return 0;
}

int ibv_query_device(ibv_context* context, ibv_device_attr* attr) {
  PASS_ON(ibv_query_device, context, attr);
  if (is_gone(context)) return EIO;
  fill_device(*context_of(context).hca, *attr);
  return 0;
}

// The old symbol, of programs built before ibv_query_port became a macro: a shorter structure.
int ibv_query_port(ibv_context* context, std::uint8_t number, _compat_ibv_port_attr* attr) {
  PASS_ON(ibv_query_port, context, number, attr);
  return query_port(context, number, reinterpret_cast<ibv_port_attr*>(attr),
                    offsetof(ibv_port_attr, port_cap_flags2));
}

int ibv_query_gid(ibv_context* context, std::uint8_t number, int index, ibv_gid* gid) {
  PASS_ON(ibv_query_gid, context, number, index, gid);
  if (is_gone(context)) return -1;
  const SharedPort* port = context_of(context).port(number);
  if (port == nullptr || index < 0 || !read_gid(*port, static_cast<unsigned>(index), *gid)) {
    errno = EINVAL;
    return -1;
  }
  return 0;
}

int _ibv_query_gid_ex(ibv_context* context, std::uint32_t number, std::uint32_t index, ibv_gid_entry* entry,
                      std::uint32_t flags, std::size_t size) {
  PASS_ON(_ibv_query_gid_ex, context, number, index, entry, flags, size);
  if (is_gone(context)) return EIO;
  const SharedPort* port = context_of(context).port(number);
  ibv_gid_entry all{};
  if (flags != 0) return EOPNOTSUPP;
  if (port == nullptr || !read_gid(*port, index, all.gid)) return EINVAL;
  if (all.gid.global.interface_id == 0) return ENODATA;
  all.gid_index = index;
  all.port_num = number;
  all.gid_type = IBV_GID_TYPE_IB;
  std::memset(entry, 0, size);
  std::memcpy(entry, &all, std::min(size, sizeof all));
  return 0;
}

ssize_t _ibv_query_gid_table(ibv_context* context, ibv_gid_entry* entries, std::size_t max,
                             std::uint32_t flags, std::size_t size) {
  PASS_ON(_ibv_query_gid_table, context, entries, max, flags, size);
  if (is_gone(context)) return -EIO;
  if (flags != 0) return -EOPNOTSUPP;
  std::size_t found = 0;
  const auto ports = static_cast<std::uint32_t>(context_of(context).hca->ports.size());
  for (std::uint32_t number = 1; number <= ports; ++number) {
    for (std::uint32_t index = 0; index < kMaxGids && found < max; ++index) {
      auto* entry = reinterpret_cast<ibv_gid_entry*>(reinterpret_cast<std::byte*>(entries) + found * size);
      if (_ibv_query_gid_ex(context, number, index, entry, 0, size) == 0) ++found;
    }
  }
  return static_cast<ssize_t>(found);
}

// Private to rdma-core, used by its own tools: 0 is "IB or RoCE version 1".
int ibv_query_gid_type(ibv_context* context, std::uint8_t number, unsigned index, int* type) {
  PASS_ON(ibv_query_gid_type, context, number, index, type);
  if (is_gone(context)) return -1;
  if (context_of(context).port(number) == nullptr || index >= kMaxGids) {
    errno = EINVAL;
    return -1;
  }
  *type = 0;
  return 0;
}

int ibv_query_pkey(ibv_context* context, std::uint8_t number, int index, __be16* pkey) {
  PASS_ON(ibv_query_pkey, context, number, index, pkey);
  if (is_gone(context)) return -1;
  const SharedPort* port = context_of(context).port(number);
  if (port == nullptr || index < 0 || index >= static_cast<int>(kMaxPkeys)) {
    errno = EINVAL;
    return -1;
  }
  *pkey = htobe16(port->pkeys[static_cast<unsigned>(index)].load(std::memory_order_relaxed));
  return 0;
}

int ibv_get_pkey_index(ibv_context* context, std::uint8_t number, __be16 pkey) {
  PASS_ON(ibv_get_pkey_index, context, number, pkey);
  for (int index = 0; index < static_cast<int>(kMaxPkeys); ++index) {
    __be16 found = 0;
    if (ibv_query_pkey(context, number, index, &found) != 0) return -1;
    if (found == pkey) return index;
  }
  errno = EINVAL;
  return -1;
}

int ibv_read_sysfs_file(const char* directory, const char* file, char* buffer, std::size_t size) {
  if (Process::enabled() && std::strcmp(file, "board_id") == 0) {
    for (const HcaDescription& hca : Process::get().session.hcas())
      if (std::string(directory) == "/sys/class/infiniband/" + hca.name)
        return std::snprintf(buffer, size, "%s", hca.board_id.c_str());
  }
  return call_real("ibv_read_sysfs_file", &ibv_read_sysfs_file, directory, file, buffer, size);
}

int ibv_get_async_event(ibv_context* context, ibv_async_event* event) {
  PASS_ON(ibv_get_async_event, context, event);
  Context& object = context_of(context);
  for (;;) {
    {
      std::lock_guard lock(object.events);
      if (discard_stale_events(object)) {
        AsyncEvent raised;
        if (recv(context->async_fd, &raised, sizeof raised, MSG_DONTWAIT) != sizeof raised) {
          errno = EIO;
          return -1;
        }
        if (!describe_event(context, raised, *event)) continue;
        discard_stale_events(object);
        return 0;
      }
      if (errno != EAGAIN) {
        errno = EIO;  // the hardware is gone
        return -1;
      }
    }
    if ((fcntl(context->async_fd, F_GETFL) & O_NONBLOCK) != 0) {
      errno = EAGAIN;
      return -1;
    }
    pollfd readable{context->async_fd, POLLIN, 0};
    if (poll(&readable, 1, -1) < 0) return -1;
  }
}

void ibv_ack_async_event(ibv_async_event* event) {
  PASS_ON(ibv_ack_async_event, event);
  const auto acknowledge = [](auto* object, std::uint32_t& completed) {
    pthread_mutex_lock(&object->mutex);
    ++completed;
    pthread_cond_signal(&object->cond);
    pthread_mutex_unlock(&object->mutex);
  };
  switch (event->event_type) {
    case IBV_EVENT_CQ_ERR:
      acknowledge(event->element.cq, event->element.cq->async_events_completed);
      break;
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_SRQ_LIMIT_REACHED:
      acknowledge(event->element.srq, event->element.srq->events_completed);
      break;
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
      acknowledge(event->element.qp, event->element.qp->events_completed);
      break;
    default:
      break;
  }
}

// What the software HCA does not have.

ibv_context* ibv_import_device(int descriptor) {
  PASS_ON(ibv_import_device, descriptor);
  errno = EOPNOTSUPP;
  return nullptr;
}

int ibv_resolve_eth_l2_from_gid(ibv_context* context, ibv_ah_attr* attr, std::uint8_t mac[ETHERNET_LL_SIZE],
                                std::uint16_t* vid) {
  PASS_ON(ibv_resolve_eth_l2_from_gid, context, attr, mac, vid);
  return EOPNOTSUPP;
}

int ibv_fork_init() {
  PASS_ON(ibv_fork_init);
  return 0;  // registered memory stays usable in the parent whatever its children do
}

ibv_fork_status ibv_is_fork_initialized() {
  PASS_ON(ibv_is_fork_initialized);
  return IBV_FORK_UNNEEDED;
}

}  // extern "C"
