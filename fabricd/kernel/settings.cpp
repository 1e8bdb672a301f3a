#include "fabricd/kernel/settings.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace fabric::daemon {

namespace {
std::string path_of(const std::string& name) {
  return "/proc/sys/net/" + name;
}
}  // namespace

KernelSettings::~KernelSettings() {
  for (auto change = changes_.rbegin(); change != changes_.rend(); ++change)
    if (get(change->name) == change->value) std::ofstream(path_of(change->name)) << change->before;
}

std::string KernelSettings::get(const std::string& name) {
  std::string value;
  std::getline(std::ifstream(path_of(name)) >> std::ws, value);
  return value;
}

std::string KernelSettings::set(const std::string& name, const std::string& value) {
  const std::string before = get(name);
  if (before.empty() || before == value) return "";
  errno = 0;
  if (!(std::ofstream(path_of(name)) << value).flush())
    return fmt::format("cannot set net/{} to {}: {}", name, value, std::strerror(errno));
  changes_.push_back({name, before, value});
  return "";
}

}  // namespace fabric::daemon
