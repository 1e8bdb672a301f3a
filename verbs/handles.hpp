// Owners for what libibverbs hands out: a unique_ptr per kind, destroyed by the verb that belongs to it.
// Creation throws VerbsError, whose text says which verb failed on what, and why.
#pragma once

#include <infiniband/verbs.h>

#include <memory>
#include <string>
#include <system_error>

namespace fabric::verbs {

/// A verb that failed: errno with what was tried.
class VerbsError : public std::system_error {
 public:
  VerbsError(int error, const std::string& what) : std::system_error(error, std::generic_category(), what) {}
};

/// Throws VerbsError(errno, what) if `pointer` is null; passes it on otherwise.
template <class T>
T* checked(T* pointer, const std::string& what) {
  if (pointer == nullptr) throw VerbsError(errno, what);
  return pointer;
}
/// For verbs that return an errno value: throws VerbsError(result, what) unless it is 0.
inline void check(int result, const std::string& what) {
  if (result != 0) throw VerbsError(result, what);
}

template <auto destroy>
struct Destroyer {
  template <class T>
  void operator()(T* object) const noexcept {
    destroy(object);
  }
};

using Context = std::unique_ptr<ibv_context, Destroyer<ibv_close_device>>;
using ProtectionDomain = std::unique_ptr<ibv_pd, Destroyer<ibv_dealloc_pd>>;
using MemoryRegion = std::unique_ptr<ibv_mr, Destroyer<ibv_dereg_mr>>;
using CompletionChannel = std::unique_ptr<ibv_comp_channel, Destroyer<ibv_destroy_comp_channel>>;
using CompletionQueue = std::unique_ptr<ibv_cq, Destroyer<ibv_destroy_cq>>;
using QueuePair = std::unique_ptr<ibv_qp, Destroyer<ibv_destroy_qp>>;
using AddressHandle = std::unique_ptr<ibv_ah, Destroyer<ibv_destroy_ah>>;

/// Makes a file descriptor non-blocking. Throws VerbsError.
void set_nonblocking(int descriptor);

}  // namespace fabric::verbs
