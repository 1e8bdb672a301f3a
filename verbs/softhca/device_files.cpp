// Files that programs open by name, through whichever function of the C library they were compiled to use:
//
//   /dev/infiniband/issmN      while it is open, the port's capability mask has IsSM (issm.hpp)
//   /sys/class/infiniband/...  what the kernel shows of an adapter (sysfs.hpp). With $SOFTHCA_REAL_DEVICES,
//   what
//                              is not there is looked for in the real one
//
// Everything else goes on to the C library. Functions that reach files inside the C library (fopen, glob) are
// covered as far as programs for adapters use them.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "verbs/softhca/issm.hpp"
#include "verbs/softhca/real_library.hpp"
#include "verbs/softhca/sysfs.hpp"

namespace {

using fabric::softhca::kIssmPath;
using fabric::softhca::kSysfs;

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

// --- issm ---

// N of .../issmN, or -1 where the path is something else.
int issm_number(const char* path) {
  constexpr std::size_t kPrefix = sizeof kIssmPath - 1;
  if (path == nullptr || std::strncmp(path, kIssmPath, kPrefix) != 0) return -1;
  char* end = nullptr;
  const long number = std::strtol(path + kPrefix, &end, 10);
  return end != path + kPrefix && *end == '\0' && number >= 0 && number < 100000 ? static_cast<int>(number)
                                                                                 : -1;
}

// --- sysfs ---

// Where the hardware keeps the directories of this host; empty outside a lab.
const std::string& tree() {
  static const std::string* root = [] {
    const char* socket = std::getenv("SOFTHCA_SOCKET");
    const char* host = std::getenv("SOFTHCA_HOST");
    return socket == nullptr || host == nullptr ? new std::string
                                                : new std::string(std::string(socket) + ".sys/" + host);
  }();
  return *root;
}

bool begins(const char* path, const char* prefix, std::size_t size) {
  return std::strncmp(path, prefix, size) == 0 && (path[size] == '/' || path[size] == '\0');
}

// Whether the working directory may be inside the tree: a program has gone there, or was started there.
std::atomic<int> inside_tree{-1};  // -1: not looked yet

bool works_inside() {
  if (inside_tree < 0) {
    char directory[PATH_MAX];
    inside_tree = ::getcwd(directory, sizeof directory) != nullptr && !tree().empty() &&
                  begins(directory, tree().c_str(), tree().size());
  }
  return inside_tree != 0;
}

// The place in the tree that a path of /sys/class/infiniband means; the path itself where it is another.
struct Redirected {
  explicit Redirected(const char* path) : result(path) {
    if (path == nullptr || !begins(path, kSysfs.data(), kSysfs.size()) || tree().empty()) return;
    moved = tree() + (path + kSysfs.size());
    if (fabric::softhca::real_devices_shown() &&
        next<int (*)(const char*, int)>("access")(moved.c_str(), F_OK) != 0) {
      return;  // a real device's
    }
    result = moved.c_str();
  }
  operator const char*() const { return result; }

  std::string moved;
  const char* result;
};

// The part of a path behind /sys/class/infiniband; nullopt where it is another path.
std::optional<std::string> within_sysfs(const char* path) {
  if (path == nullptr) return std::nullopt;
  if (begins(path, kSysfs.data(), kSysfs.size())) return path + kSysfs.size();
  if (path[0] == '/' || !works_inside()) return std::nullopt;
  char directory[PATH_MAX];
  if (::getcwd(directory, sizeof directory) == nullptr || !begins(directory, tree().c_str(), tree().size())) {
    return std::nullopt;
  }
  return std::string(directory + tree().size()) + "/" + path;
}

// --- opening ---

// A descriptor for a path that is ours; -1 with errno where that fails; nullopt for everybody else's paths.
std::optional<int> open_ours(const char* path, int flags) {
  const int close_on_exec = (flags & O_CLOEXEC) != 0 ? FD_CLOEXEC : 0;
  if (const int number = issm_number(path); number >= 0) {
    const int descriptor = fabric::softhca::hold_issm(number);
    if (descriptor >= 0) ::fcntl(descriptor, F_SETFD, close_on_exec);
    return descriptor;
  }
  if (tree().empty() || (flags & O_DIRECTORY) != 0) return std::nullopt;
  const auto inner = within_sysfs(path);
  if (!inner) return std::nullopt;
  const auto contents = fabric::softhca::sysfs_contents(*inner);
  if (!contents) return std::nullopt;
  if ((flags & O_ACCMODE) != O_RDONLY) {
    errno = EACCES;
    return -1;
  }
  const int descriptor = ::memfd_create("sysfs", close_on_exec != 0 ? MFD_CLOEXEC : 0);
  if (descriptor >= 0 && ::pwrite(descriptor, contents->data(), contents->size(), 0) < 0) {
    ::close(descriptor);
    return -1;
  }
  return descriptor;
}

bool has_mode(int flags) {
  return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
}

FILE* open_stream(const char* path, const char* mode, const char* function) {
  if (std::strchr(mode, 'r') != nullptr && std::strchr(mode, '+') == nullptr) {
    if (const auto ours = open_ours(path, O_RDONLY)) return *ours < 0 ? nullptr : ::fdopen(*ours, mode);
  }
  return next<FILE* (*)(const char*, const char*)>(function)(Redirected(path), mode);
}

}  // namespace

// The C library declares these functions with attributes, as inline functions or as macros, depending on how
// one compiles; so each is defined under another name and gets the real one in the symbol table only.
#define SOFTHCA_SYMBOL(name) asm(#name) __attribute__((visibility("default")))

#define SOFTHCA_OPEN(name)                                                              \
  extern "C" int softhca_##name(const char* path, int flags, ...) SOFTHCA_SYMBOL(name); \
  int softhca_##name(const char* path, int flags, ...) {                                \
    if (const auto ours = open_ours(path, flags)) return *ours;                         \
    static const auto real = next<int (*)(const char*, int, ...)>(#name);               \
    if (!has_mode(flags)) return real(Redirected(path), flags);                         \
    va_list arguments;                                                                  \
    va_start(arguments, flags);                                                         \
    const int mode = va_arg(arguments, int);                                            \
    va_end(arguments);                                                                  \
    return real(Redirected(path), flags, mode);                                         \
  }
SOFTHCA_OPEN(open)
SOFTHCA_OPEN(open64)

#define SOFTHCA_OPENAT(name)                                                                           \
  extern "C" int softhca_##name(int directory, const char* path, int flags, ...) SOFTHCA_SYMBOL(name); \
  int softhca_##name(int directory, const char* path, int flags, ...) {                                \
    if (path != nullptr && (path[0] == '/' || directory == AT_FDCWD)) {                                \
      if (const auto ours = open_ours(path, flags)) return *ours;                                      \
    }                                                                                                  \
    static const auto real = next<int (*)(int, const char*, int, ...)>(#name);                         \
    if (!has_mode(flags)) return real(directory, Redirected(path), flags);                             \
    va_list arguments;                                                                                 \
    va_start(arguments, flags);                                                                        \
    const int mode = va_arg(arguments, int);                                                           \
    va_end(arguments);                                                                                 \
    return real(directory, Redirected(path), flags, mode);                                             \
  }
SOFTHCA_OPENAT(openat)
SOFTHCA_OPENAT(openat64)

// What _FORTIFY_SOURCE makes of open() without a mode.
#define SOFTHCA_OPEN_2(name)                                                       \
  extern "C" int softhca_##name(const char* path, int flags) SOFTHCA_SYMBOL(name); \
  int softhca_##name(const char* path, int flags) {                                \
    if (const auto ours = open_ours(path, flags)) return *ours;                    \
    static const auto real = next<int (*)(const char*, int)>(#name);               \
    return real(Redirected(path), flags);                                          \
  }
SOFTHCA_OPEN_2(__open_2)
SOFTHCA_OPEN_2(__open64_2)

#define SOFTHCA_FOPEN(name)                                                                 \
  extern "C" FILE* softhca_##name(const char* path, const char* mode) SOFTHCA_SYMBOL(name); \
  FILE* softhca_##name(const char* path, const char* mode) {                                \
    return open_stream(path, mode, #name);                                                  \
  }
SOFTHCA_FOPEN(fopen)
SOFTHCA_FOPEN(fopen64)

// Everything else only has to find the directories.
#define SOFTHCA_PATH_1(result, name)                                       \
  extern "C" result softhca_##name(const char* path) SOFTHCA_SYMBOL(name); \
  result softhca_##name(const char* path) {                                \
    static const auto real = next<result (*)(const char*)>(#name);         \
    return real(Redirected(path));                                         \
  }
SOFTHCA_PATH_1(DIR*, opendir)

#define SOFTHCA_PATH_2(name, type)                                                   \
  extern "C" int softhca_##name(const char* path, type second) SOFTHCA_SYMBOL(name); \
  int softhca_##name(const char* path, type second) {                                \
    static const auto real = next<int (*)(const char*, type)>(#name);                \
    return real(Redirected(path), second);                                           \
  }
SOFTHCA_PATH_2(stat, void*)
SOFTHCA_PATH_2(stat64, void*)
SOFTHCA_PATH_2(lstat, void*)
SOFTHCA_PATH_2(lstat64, void*)
SOFTHCA_PATH_2(access, int)
SOFTHCA_PATH_2(eaccess, int)

#define SOFTHCA_AT(name, third, fourth)                                                                   \
  extern "C" int softhca_##name(int directory, const char* path, third c, fourth d) SOFTHCA_SYMBOL(name); \
  int softhca_##name(int directory, const char* path, third c, fourth d) {                                \
    static const auto real = next<int (*)(int, const char*, third, fourth)>(#name);                       \
    return real(directory, Redirected(path), c, d);                                                       \
  }
SOFTHCA_AT(fstatat, void*, int)
SOFTHCA_AT(fstatat64, void*, int)
SOFTHCA_AT(faccessat, int, int)

extern "C" int softhca_statx(int directory, const char* path, int flags, unsigned mask, void* result)
    SOFTHCA_SYMBOL(statx);
int softhca_statx(int directory, const char* path, int flags, unsigned mask, void* result) {
  static const auto real = next<int (*)(int, const char*, int, unsigned, void*)>("statx");
  return real(directory, Redirected(path), flags, mask, result);
}

extern "C" int softhca_chdir(const char* path) SOFTHCA_SYMBOL(chdir);
int softhca_chdir(const char* path) {
  static const auto real = next<int (*)(const char*)>("chdir");
  const int result = real(Redirected(path));
  if (result == 0) inside_tree = -1;
  return result;
}
