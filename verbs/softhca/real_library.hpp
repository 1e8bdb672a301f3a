// Where this library is preloaded but no lab is named ($SOFTHCA_SOCKET), every call goes to the library that
// it stands in front of. In a lab that shows the machine's own devices too ($SOFTHCA_REAL_DEVICES), every
// call about one of them does.
#pragma once

#include <dlfcn.h>
#include <infiniband/verbs.h>

#include <cerrno>
#include <cstdlib>
#include <type_traits>

namespace fabric::softhca {

/// $SOFTHCA_REAL_DEVICES is set: programs of a lab see the machine's devices behind the lab's.
inline bool real_devices_shown() {
  static const bool set = [] {
    const char* value = std::getenv("SOFTHCA_REAL_DEVICES");
    return value != nullptr && *value != '\0';
  }();
  return set;
}

/// What our devices have in a member that libibverbs and its providers never use.
inline void mark_as_ours(ibv_context* /*context*/) {}

template <class First, class... Others>
bool is_real(First first, const Others&... /*others*/);

/// Whether what a function of the ABI was called with (a device, or an object of one, comes first) is the
/// real library's.
inline bool is_real() {
  return false;
}
inline bool is_real(const ibv_async_event* event) {
  switch (event->event_type) {
    case IBV_EVENT_CQ_ERR:
      return is_real(event->element.cq);
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_SRQ_LIMIT_REACHED:
      return is_real(event->element.srq);
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
      return is_real(event->element.qp);
    default:
      return false;  // of a port or a device: nothing counts them
  }
}
template <class First, class... Others>
bool is_real(First first, const Others&... /*others*/) {
  if constexpr (requires { first->_ops; })
    return first->_ops._dummy2 != mark_as_ours;
  else if constexpr (requires { first->device; })
    return is_real(first->device);
  else if constexpr (requires { first->context; })
    return is_real(first->context);
  else if constexpr (requires { first->event_type; })
    return is_real(static_cast<const ibv_async_event*>(first));
  else
    return false;
}

/// Calls the real function of that name. Without one: ENOSYS, as an error value or as errno with a null
/// pointer.
template <class Function, class... Arguments>
auto call_real(const char* name, Function*, Arguments... arguments) {
  using Result = std::invoke_result_t<Function*, Arguments...>;
  auto* real = reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
  if constexpr (std::is_void_v<Result>) {
    if (real != nullptr) real(arguments...);
  } else {
    if (real != nullptr) return real(arguments...);
    errno = ENOSYS;
    if constexpr (std::is_pointer_v<Result>)
      return static_cast<Result>(nullptr);
    else
      return static_cast<Result>(ENOSYS);
  }
}

}  // namespace fabric::softhca

/// In a function of the ABI: hands the call on if no lab is named, or if it is about a real device.
#define PASS_ON(function, ...)                                                           \
  if (!::fabric::softhca::Process::enabled() || ::fabric::softhca::is_real(__VA_ARGS__)) \
  return ::fabric::softhca::call_real(#function, &::function, ##__VA_ARGS__)
