// libibverbs ABI: protection domains, memory regions and windows, address handles.
#include <infiniband/verbs.h>
#undef ibv_reg_mr
#undef ibv_reg_mr_iova

#include <endian.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <vector>

#include "verbs/softhca/objects.hpp"
#include "verbs/softhca/real_library.hpp"

namespace fabric::softhca {
namespace {

constexpr std::uint16_t kFirstMulticastLid = 0xC000;

ProtectionDomain& object_of(ibv_pd* pd) {
  return *reinterpret_cast<ProtectionDomain*>(pd);
}

}  // namespace

/// Remote access happens under the lock of one of this process's queue pairs. A peer that is stopped in the
/// middle is waited for one second.
void quiesce(Process& process) {
  const std::uint32_t count = process.arena.header.qps.load(std::memory_order_acquire);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  for (std::uint32_t i = 0; i < count; ++i) {
    const SharedQp& qp = process.arena.qps[i];
    const std::uint32_t owner = qp.lock.owner();
    while (owner != 0 && qp.lock.owner() == owner && std::chrono::steady_clock::now() < deadline)
      sched_yield();
  }
}

namespace {

/// Under Process::mutex. The memory is registered all the same where it cannot be shared.
PageRange share_pages(Process& process, std::uint64_t address, std::uint64_t length) {
  const bool first = process.memory.descriptor() < 0;
  const PageRange pages = process.memory.share(address, length);
  if (first && process.memory.descriptor() >= 0) {
    try {
      process.session.publish(kMemoryFile, process.memory.descriptor());
    } catch (const std::system_error&) {
      return {};  // the hardware is gone
    }
  }
  return pages;
}

/// Under Process::mutex: moves those pages of a region back that no other region has.
void unshare_pages(Process& process, SharedMr& gone) {
  PageRange rest{gone.shared_begin, gone.shared_end};
  gone.shared_begin = gone.shared_end = 0;
  if (rest.empty()) return;
  std::vector<PageRange> others;
  const std::uint32_t count = process.arena.header.mrs.load(std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < count; ++i) {
    const SharedMr& mr = process.arena.mrs[i];
    if (mr.window_type == 0 && mr.shared_begin < rest.end && mr.shared_end > rest.begin)
      others.push_back({mr.shared_begin, mr.shared_end});
  }
  std::sort(others.begin(), others.end(), [](PageRange a, PageRange b) { return a.begin < b.begin; });
  for (const PageRange& other : others) {
    if (other.begin > rest.begin) process.memory.unshare({rest.begin, other.begin});
    rest.begin = std::max(rest.begin, other.end);
    if (rest.empty()) return;
  }
  process.memory.unshare(rest);
}

/// 0, or errno: whether memory may be registered with these flags. Remote writing and atomics need local
/// writing (10.6.3.1).
int check_region(const void* address, std::size_t length, std::uint64_t iova, unsigned access) {
  constexpr unsigned kWriting = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;
  constexpr unsigned kKnown = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                              IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_MW_BIND | IBV_ACCESS_ZERO_BASED |
                              IBV_ACCESS_HUGETLB | IBV_ACCESS_OPTIONAL_RANGE;
  if ((access & kWriting) != 0 && (access & IBV_ACCESS_LOCAL_WRITE) == 0) return EINVAL;
  if ((access & ~kKnown) != 0) return EOPNOTSUPP;  // on-demand paging
  if (reinterpret_cast<std::uint64_t>(address) + length < length || iova + length < iova) return EINVAL;
  return 0;
}

/// Under Process::mutex: what `mr` describes can be used from now on, with the key that is returned.
std::uint32_t open_region(Process& process, std::uint32_t index, const ibv_mr& mr, std::uint64_t iova,
                          unsigned access) {
  SharedMr& shared = process.arena.mrs[index];
  shared.pd = mr.pd->handle;
  shared.access = access & 0xFF;
  shared.qp_num = 0;
  shared.iova = (access & IBV_ACCESS_ZERO_BASED) != 0 ? 0 : iova;
  shared.length = mr.length;
  shared.address = reinterpret_cast<std::uint64_t>(mr.addr);
  const PageRange pages = share_pages(process, shared.address, mr.length);
  shared.shared_begin = pages.begin;
  shared.shared_end = pages.end;
  shared.window_type = 0;
  if (process.arena.header.mrs < index + 1) process.arena.header.mrs = index + 1;
  const std::uint32_t key = memory_key(process.seat, index, ++shared.variant);
  shared.key.store(key, std::memory_order_release);
  return key;
}

/// A region must outlive the windows that are bound to it.
bool has_windows(const Process& process, std::uint32_t region) {
  const std::uint32_t count = process.arena.header.mrs.load(std::memory_order_relaxed);
  return std::any_of(process.arena.mrs.begin(), process.arena.mrs.begin() + count, [&](const SharedMr& mr) {
    return mr.window_type != 0 && mr.region == region && mr.key.load(std::memory_order_acquire) != 0;
  });
}

ibv_mr* register_memory(ibv_pd* pd, void* address, std::size_t length, std::uint64_t iova, unsigned access) {
  if (is_gone(pd->context)) return nullptr;
  if (const int error = check_region(address, length, iova, access)) {
    errno = error;
    return nullptr;
  }
  Process& process = Process::get();
  std::lock_guard lock(process.mutex);
  const auto index = process.mr_numbers.take();
  if (!index) {
    errno = ENOMEM;
    return nullptr;
  }
  auto* mr = new MemoryRegion;
  mr->index = *index;
  mr->ibv = {.context = pd->context, .pd = pd, .addr = address, .length = length, .handle = *index};
  mr->ibv.lkey = mr->ibv.rkey = open_region(process, *index, mr->ibv, iova, access);
  mr->iova = iova;
  mr->access = access;
  object_of(pd).users.fetch_add(1);
  return &mr->ibv;
}

// ---- Windows ----

ibv_mw* alloc_mw(ibv_pd* pd, ibv_mw_type type) {
  if (is_gone(pd->context)) return nullptr;
  if (type != IBV_MW_TYPE_1 && type != IBV_MW_TYPE_2) {
    errno = EINVAL;
    return nullptr;
  }
  Process& process = Process::get();
  std::lock_guard lock(process.mutex);
  const auto index = process.mr_numbers.take();
  if (!index) {
    errno = ENOMEM;
    return nullptr;
  }
  SharedMr& shared = process.arena.mrs[*index];
  shared.pd = pd->handle;
  shared.window_type = type;
  shared.shared_begin = shared.shared_end = 0;
  if (process.arena.header.mrs < *index + 1) process.arena.header.mrs = *index + 1;
  auto* window = new MemoryWindow;
  window->index = *index;
  window->ibv = {.context = pd->context,
                 .pd = pd,
                 .rkey = memory_key(process.seat, *index, ++shared.variant),
                 .handle = *index,
                 .type = type};
  object_of(pd).users.fetch_add(1);
  return &window->ibv;
}

int dealloc_mw(ibv_mw* mw) {
  if (keeps_objects(mw->context)) return EIO;
  Process& process = Process::get();
  auto* window = reinterpret_cast<MemoryWindow*>(mw);
  SharedMr& shared = process.arena.mrs[window->index];
  shared.key.store(0, std::memory_order_seq_cst);
  quiesce(process);
  object_of(mw->pd).users.fetch_sub(1);
  std::lock_guard lock(process.mutex);
  shared.variant = mw->rkey & 0xFF;  // whoever gets the entry next begins with a key that nobody has had
  shared.window_type = 0;
  process.mr_numbers.give(window->index);
  delete window;
  return 0;
}

/// Type 1: the key changes with each binding.
int bind_mw(ibv_qp* qp, ibv_mw* mw, ibv_mw_bind* bind) {
  ibv_send_wr wr{}, *bad = nullptr;
  wr.wr_id = bind->wr_id;
  wr.send_flags = bind->send_flags;
  wr.opcode = IBV_WR_BIND_MW;
  wr.bind_mw = {.mw = mw, .rkey = ibv_inc_rkey(mw->rkey), .bind_info = bind->bind_info};
  const int error = reinterpret_cast<QueuePair*>(qp)->post_send(&wr, &bad);
  if (error == 0) mw->rkey = wr.bind_mw.rkey;
  return error;
}

}  // namespace

void install_memory_operations(verbs_context& verbs) {
  verbs.context.ops.alloc_mw = alloc_mw;
  verbs.context.ops.dealloc_mw = dealloc_mw;
  verbs.context.ops.bind_mw = bind_mw;
}

}  // namespace fabric::softhca

using namespace fabric::softhca;

extern "C" {

ibv_pd* ibv_alloc_pd(ibv_context* context) {
  PASS_ON(ibv_alloc_pd, context);
  if (is_gone(context)) return nullptr;
  Process& process = Process::get();
  auto* pd = new ProtectionDomain;
  pd->ibv.context = context;
  std::lock_guard lock(process.mutex);
  pd->ibv.handle = process.next_pd++;
  return &pd->ibv;
}

int ibv_dealloc_pd(ibv_pd* pd) {
  PASS_ON(ibv_dealloc_pd, pd);
  if (keeps_objects(pd->context)) return EIO;
  if (reinterpret_cast<ProtectionDomain*>(pd)->users.load() != 0) return EBUSY;
  delete reinterpret_cast<ProtectionDomain*>(pd);
  return 0;
}

ibv_mr* ibv_reg_mr(ibv_pd* pd, void* address, std::size_t length, int access) {
  PASS_ON(ibv_reg_mr, pd, address, length, access);
  return register_memory(pd, address, length, reinterpret_cast<std::uint64_t>(address),
                         static_cast<unsigned>(access));
}

ibv_mr* ibv_reg_mr_iova(ibv_pd* pd, void* address, std::size_t length, std::uint64_t iova, int access) {
  PASS_ON(ibv_reg_mr_iova, pd, address, length, iova, access);
  return register_memory(pd, address, length, iova, static_cast<unsigned>(access));
}

ibv_mr* ibv_reg_mr_iova2(ibv_pd* pd, void* address, std::size_t length, std::uint64_t iova, unsigned access) {
  PASS_ON(ibv_reg_mr_iova2, pd, address, length, iova, access);
  return register_memory(pd, address, length, iova, access);
}

int ibv_dereg_mr(ibv_mr* mr) {
  PASS_ON(ibv_dereg_mr, mr);
  if (keeps_objects(mr->context)) return EIO;
  Process& process = Process::get();
  auto* object = reinterpret_cast<MemoryRegion*>(mr);
  if (has_windows(process, object->index)) return EBUSY;
  process.arena.mrs[object->index].key.store(0, std::memory_order_seq_cst);
  quiesce(process);
  reinterpret_cast<ProtectionDomain*>(mr->pd)->users.fetch_sub(1);
  {
    std::lock_guard lock(process.mutex);
    unshare_pages(process, process.arena.mrs[object->index]);
    process.mr_numbers.give(object->index);
  }
  delete object;
  return 0;
}

int ibv_rereg_mr(ibv_mr* mr, int flags, ibv_pd* pd, void* address, std::size_t length, int access) {
  PASS_ON(ibv_rereg_mr, mr, flags, pd, address, length, access);
  constexpr int kKnown =
      IBV_REREG_MR_CHANGE_TRANSLATION | IBV_REREG_MR_CHANGE_PD | IBV_REREG_MR_CHANGE_ACCESS;
  auto* object = reinterpret_cast<MemoryRegion*>(mr);
  const bool moves = (flags & IBV_REREG_MR_CHANGE_TRANSLATION) != 0;
  const bool changes_pd = (flags & IBV_REREG_MR_CHANGE_PD) != 0;
  const unsigned flags_then =
      (flags & IBV_REREG_MR_CHANGE_ACCESS) != 0 ? static_cast<unsigned>(access) : object->access;
  ibv_mr then = *mr;
  std::uint64_t iova = object->iova;
  if (moves) {
    then.addr = address;
    then.length = length;
    iova = reinterpret_cast<std::uint64_t>(address);
  }
  if (changes_pd) then.pd = pd;
  Process& process = Process::get();
  if (is_gone(mr->context)) return IBV_REREG_MR_ERR_CMD;
  errno = flags == 0 || (flags & ~kKnown) != 0 || then.pd == nullptr || (moves && address == nullptr)
              ? EINVAL
              : check_region(then.addr, then.length, iova, flags_then);
  if (errno == 0 && has_windows(process, object->index)) errno = EBUSY;
  if (errno != 0) return IBV_REREG_MR_ERR_INPUT;  // the region is as it was
  process.arena.mrs[object->index].key.store(0, std::memory_order_seq_cst);
  quiesce(process);
  std::lock_guard lock(process.mutex);
  unshare_pages(process, process.arena.mrs[object->index]);
  object_of(mr->pd).users.fetch_sub(1);
  object_of(then.pd).users.fetch_add(1);
  then.lkey = then.rkey = open_region(process, object->index, then, iova, flags_then);
  object->ibv = then;
  object->iova = iova;
  object->access = flags_then;
  return 0;
}

ibv_mr* ibv_reg_dmabuf_mr(ibv_pd* pd, std::uint64_t offset, std::size_t length, std::uint64_t iova,
                          int descriptor, int access) {
  PASS_ON(ibv_reg_dmabuf_mr, pd, offset, length, iova, descriptor, access);
  errno = EOPNOTSUPP;
  return nullptr;
}

ibv_pd* ibv_import_pd(ibv_context* context, std::uint32_t handle) {
  PASS_ON(ibv_import_pd, context, handle);
  errno = EOPNOTSUPP;
  return nullptr;
}

void ibv_unimport_pd(ibv_pd* pd) {
  PASS_ON(ibv_unimport_pd, pd);
}

ibv_mr* ibv_import_mr(ibv_pd* pd, std::uint32_t handle) {
  PASS_ON(ibv_import_mr, pd, handle);
  errno = EOPNOTSUPP;
  return nullptr;
}

void ibv_unimport_mr(ibv_mr* mr) {
  PASS_ON(ibv_unimport_mr, mr);
}

ibv_dm* ibv_import_dm(ibv_context* context, std::uint32_t handle) {
  PASS_ON(ibv_import_dm, context, handle);
  errno = EOPNOTSUPP;
  return nullptr;
}

void ibv_unimport_dm(ibv_dm* dm) {
  PASS_ON(ibv_unimport_dm, dm);
}

ibv_ah* ibv_create_ah(ibv_pd* pd, ibv_ah_attr* attr) {
  PASS_ON(ibv_create_ah, pd, attr);
  if (is_gone(pd->context)) return nullptr;
  const SharedPort* port = context_of(pd->context).port(attr->port_num);
  if (port == nullptr || attr->dlid == 0 || attr->sl > 15 ||
      (attr->is_global != 0 && attr->grh.sgid_index >= kMaxGids)) {
    errno = EINVAL;
    return nullptr;
  }
  auto* ah = new AddressHandle;
  ah->ibv.context = pd->context;
  ah->ibv.pd = pd;
  ah->port = attr->port_num;
  const std::uint32_t lmc_mask = (1U << port->lmc.load(std::memory_order_relaxed)) - 1;
  ah->route.dlid = attr->dlid;
  ah->route.sl = attr->sl;
  ah->route.path_bits = static_cast<std::uint8_t>(attr->src_path_bits & lmc_mask);
  // Multicast carries a GRH always (9.8.3).
  ah->route.global = attr->is_global != 0 || (attr->dlid >= kFirstMulticastLid && attr->dlid != 0xFFFF);
  ah->route.sgid_index = attr->grh.sgid_index;
  ah->route.hop_limit = attr->grh.hop_limit;
  ah->route.traffic_class = attr->grh.traffic_class;
  ah->route.flow_label = attr->grh.flow_label;
  std::memcpy(ah->route.dgid.data(), attr->grh.dgid.raw, 16);
  reinterpret_cast<ProtectionDomain*>(pd)->users.fetch_add(1);
  return &ah->ibv;
}

int ibv_destroy_ah(ibv_ah* ah) {
  PASS_ON(ibv_destroy_ah, ah);
  reinterpret_cast<ProtectionDomain*>(ah->pd)->users.fetch_sub(1);
  delete reinterpret_cast<AddressHandle*>(ah);
  return 0;
}

int ibv_init_ah_from_wc(ibv_context* context, std::uint8_t port, ibv_wc* wc, ibv_grh* grh,
                        ibv_ah_attr* attr) {
  PASS_ON(ibv_init_ah_from_wc, context, port, wc, grh, attr);
  *attr = {};
  attr->dlid = wc->slid;
  attr->sl = wc->sl;
  attr->src_path_bits = wc->dlid_path_bits;
  attr->port_num = port;
  if ((wc->wc_flags & IBV_WC_GRH) == 0) return 0;
  attr->is_global = 1;
  attr->grh.dgid = grh->sgid;
  attr->grh.hop_limit = 0xFF;
  const std::uint32_t word = be32toh(grh->version_tclass_flow);
  attr->grh.flow_label = word & 0xFFFFF;
  attr->grh.traffic_class = static_cast<std::uint8_t>(word >> 20 & 0xFF);
  for (int index = 0; index < static_cast<int>(kMaxGids); ++index) {
    ibv_gid gid;
    if (ibv_query_gid(context, port, index, &gid) == 0 && std::memcmp(&gid, &grh->dgid, 16) == 0) {
      attr->grh.sgid_index = static_cast<std::uint8_t>(index);
      return 0;
    }
  }
  // A multicast address is nobody's own; the first GID speaks for the port.
  if (grh->dgid.raw[0] == 0xFF) return 0;
  errno = EINVAL;
  return -1;
}

ibv_ah* ibv_create_ah_from_wc(ibv_pd* pd, ibv_wc* wc, ibv_grh* grh, std::uint8_t port) {
  PASS_ON(ibv_create_ah_from_wc, pd, wc, grh, port);
  ibv_ah_attr attr;
  if (ibv_init_ah_from_wc(pd->context, port, wc, grh, &attr) != 0) return nullptr;
  return ibv_create_ah(pd, &attr);
}

}  // extern "C"
