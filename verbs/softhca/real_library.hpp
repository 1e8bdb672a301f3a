// Where this library is preloaded but no lab is named ($SOFTHCA_SOCKET), every call goes to the library that
// it stands in front of.
#pragma once

#include <dlfcn.h>

#include <cerrno>
#include <type_traits>

namespace fabric::softhca {

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

/// In a function of the ABI: hands the call on if no lab is named.
#define PASS_ON(function, ...)                \
  if (!::fabric::softhca::Process::enabled()) \
  return ::fabric::softhca::call_real(#function, &::function, ##__VA_ARGS__)
