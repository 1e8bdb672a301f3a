#include "verbs/softhca/registered_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <vector>

#include "verbs/softhca/verbs_memory.hpp"

namespace fabric::softhca {
namespace {

constexpr std::uint64_t kAddressSpace = std::uint64_t{1} << 47;

/// One line of /proc/self/maps, cut to the range that was asked for.
struct Mapping {
  PageRange range;
  bool readable, writable, shared;
  std::uint64_t inode;
  bool special;  ///< [stack], [vdso]...; [heap] is not
};

/// What the range consists of; false if a part of it is not mapped.
bool mappings_of(PageRange range, std::vector<Mapping>& mappings) {
  mappings.clear();
  std::FILE* file = std::fopen("/proc/self/maps", "re");
  if (file == nullptr) return false;
  char line[512];
  std::uint64_t reached = range.begin;
  while (std::fgets(line, sizeof line, file) != nullptr) {
    std::uint64_t begin = 0, end = 0, inode = 0;
    char permissions[5] = {};
    int name = 0;
    if (std::sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*x %*x:%*x %" SCNu64 " %n", &begin, &end, permissions,
                    &inode, &name) < 4)
      continue;
    if (end <= range.begin) continue;
    if (begin >= range.end) break;
    if (begin > reached) break;
    reached = end;
    const char* path = line + name;
    mappings.push_back(
        {{std::max(begin, range.begin), std::min(end, range.end)},
         permissions[0] == 'r',
         permissions[1] == 'w',
         permissions[3] == 's',
         inode,
         path[0] == '[' && std::strncmp(path, "[heap]", 6) != 0 && std::strncmp(path, "[anon", 5) != 0});
  }
  std::fclose(file);
  return reached >= range.end;
}

/// Copies the pages of a private mapping that exist to the file; what was never touched is zero in both.
bool copy_present(int descriptor, PageRange range) {
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  std::vector<std::uint64_t> entries(1024);
  bool done = true;
  for (std::uint64_t at = range.begin; at < range.end && done;) {
    const std::size_t pages = std::min<std::size_t>(entries.size(), (range.end - at) / kPage);
    const ssize_t bytes = static_cast<ssize_t>(pages * sizeof(std::uint64_t));
    if (pagemap < 0 || pread(pagemap, entries.data(), static_cast<std::size_t>(bytes),
                             static_cast<off_t>(at / kPage * sizeof(std::uint64_t))) != bytes)
      std::fill(entries.begin(), entries.end(), ~std::uint64_t{0});
    for (std::size_t page = 0; page < pages && done;) {
      std::size_t run = page;
      while (run < pages && (entries[run] >> 62) != 0) ++run;  // present or swapped
      for (std::uint64_t from = at + page * kPage, to = at + run * kPage; from < to && done;) {
        // The system call itself: sanitizers would have an opinion on memory that the program has not filled.
        const long written = syscall(SYS_pwrite64, descriptor, from, to - from, static_cast<off_t>(from));
        done = written > 0;
        from += done ? static_cast<std::uint64_t>(written) : 0;
      }
      page = run;
      while (page < pages && (entries[page] >> 62) == 0) ++page;
    }
    at += pages * kPage;
  }
  if (pagemap >= 0) close(pagemap);
  return done;
}

}  // namespace

RegisteredMemory::~RegisteredMemory() {
  if (descriptor_ >= 0) close(descriptor_);
}

bool RegisteredMemory::open_file() {
  if (descriptor_ >= 0) return true;
  const int made = memfd_create("softhca", MFD_CLOEXEC);
  if (made < 0) return false;
  struct stat status {};
  if (ftruncate(made, static_cast<off_t>(kAddressSpace)) != 0 || fstat(made, &status) != 0) {
    close(made);
    return false;
  }
  inode_ = status.st_ino;
  descriptor_ = made;
  return true;
}

PageRange RegisteredMemory::share(std::uint64_t address, std::uint64_t length) {
  const PageRange range{(address + kPage - 1) / kPage * kPage, (address + length) / kPage * kPage};
  if (range.empty() || range.end > kAddressSpace) return {};
  std::vector<Mapping> mappings;
  if (!open_file() || !mappings_of(range, mappings)) return {};
  const auto is_ours = [&](const Mapping& m) { return m.shared && m.inode == inode_; };
  for (const Mapping& mapping : mappings)
    if (!is_ours(mapping) &&
        (mapping.shared || mapping.inode != 0 || mapping.special || !mapping.readable || !mapping.writable))
      return {};
  for (const Mapping& mapping : mappings)
    if (!is_ours(mapping) && !move_in(mapping.range)) return {};
  return range;
}

bool RegisteredMemory::move_in(PageRange range) {
  const auto offset = static_cast<off_t>(range.begin);
  auto* address = reinterpret_cast<void*>(range.begin);
  const std::size_t length = range.end - range.begin;
  return copy_present(descriptor_, range) &&
         mmap(address, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, descriptor_,
              offset) == address;
}

void RegisteredMemory::unshare(PageRange range) {
  // The program may have unmapped it, or mapped something else there, before it deregistered.
  std::vector<Mapping> mappings;
  mappings_of(range, mappings);
  for (const Mapping& mapping : mappings)
    if (mapping.shared && mapping.inode == inode_) move_back(mapping.range);
  fallocate(descriptor_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(range.begin),
            static_cast<off_t>(range.end - range.begin));
}

void RegisteredMemory::move_back(PageRange range) {
  const std::size_t length = range.end - range.begin;
  void* copy = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (copy == MAP_FAILED) return;  // it stays where it is
  bool done = true;
  for (std::size_t at = 0; at < length && done;) {
    const long got = syscall(SYS_pread64, descriptor_, static_cast<std::byte*>(copy) + at, length - at,
                             static_cast<off_t>(range.begin + at));
    done = got > 0;
    at += done ? static_cast<std::size_t>(got) : 0;
  }
  if (!done || mremap(copy, length, length, MREMAP_MAYMOVE | MREMAP_FIXED,
                      reinterpret_cast<void*>(range.begin)) == MAP_FAILED)
    munmap(copy, length);
}

}  // namespace fabric::softhca
