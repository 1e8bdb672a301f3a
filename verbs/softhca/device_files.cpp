// The device files that programs open by name: /dev/infiniband/issmN, through whichever form of open(2) the
// program was compiled to. Everything else goes on to the C library.
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdlib>
#include <cstring>

#include "verbs/softhca/issm.hpp"

namespace {

// N of .../issmN, or -1 where the path is something else.
int issm_number(const char* path) {
  constexpr std::size_t kPrefix = sizeof fabric::softhca::kIssmPath - 1;
  if (path == nullptr || std::strncmp(path, fabric::softhca::kIssmPath, kPrefix) != 0) return -1;
  char* end = nullptr;
  const long number = std::strtol(path + kPrefix, &end, 10);
  return end != path + kPrefix && *end == '\0' && number >= 0 && number < 100000 ? static_cast<int>(number)
                                                                                 : -1;
}

int open_issm(int number, int flags) {
  const int descriptor = fabric::softhca::hold_issm(number);
  if (descriptor >= 0 && (flags & O_CLOEXEC) == 0) ::fcntl(descriptor, F_SETFD, 0);
  return descriptor;
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

bool has_mode(int flags) {
  return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
}

}  // namespace

// The C library declares these with attributes and, under _FORTIFY_SOURCE, as inline functions; the names
// below are only linked, never called from here.
#define SOFTHCA_OPEN(name)                                                                  \
  extern "C" int softhca_##name(const char* path, int flags, ...) asm(#name);               \
  int softhca_##name(const char* path, int flags, ...) {                                    \
    if (const int number = issm_number(path); number >= 0) return open_issm(number, flags); \
    static const auto real = next<int (*)(const char*, int, ...)>(#name);                   \
    if (!has_mode(flags)) return real(path, flags);                                         \
    va_list arguments;                                                                      \
    va_start(arguments, flags);                                                             \
    const int mode = va_arg(arguments, int);                                                \
    va_end(arguments);                                                                      \
    return real(path, flags, mode);                                                         \
  }
SOFTHCA_OPEN(open)
SOFTHCA_OPEN(open64)

#define SOFTHCA_OPENAT(name)                                                                 \
  extern "C" int softhca_##name(int directory, const char* path, int flags, ...) asm(#name); \
  int softhca_##name(int directory, const char* path, int flags, ...) {                      \
    if (const int number = issm_number(path); number >= 0) return open_issm(number, flags);  \
    static const auto real = next<int (*)(int, const char*, int, ...)>(#name);               \
    if (!has_mode(flags)) return real(directory, path, flags);                               \
    va_list arguments;                                                                       \
    va_start(arguments, flags);                                                              \
    const int mode = va_arg(arguments, int);                                                 \
    va_end(arguments);                                                                       \
    return real(directory, path, flags, mode);                                               \
  }
SOFTHCA_OPENAT(openat)
SOFTHCA_OPENAT(openat64)

#define SOFTHCA_OPEN_2(name)                                                                \
  extern "C" int softhca_##name(const char* path, int flags) asm(#name);                    \
  int softhca_##name(const char* path, int flags) {                                         \
    if (const int number = issm_number(path); number >= 0) return open_issm(number, flags); \
    static const auto real = next<int (*)(const char*, int)>(#name);                        \
    return real(path, flags);                                                               \
  }
SOFTHCA_OPEN_2(__open_2)
SOFTHCA_OPEN_2(__open64_2)
