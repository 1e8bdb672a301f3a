#include "tools/lab/host_namespace.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "tools/lab/error.hpp"

namespace fabric::tools::lab {

namespace {

std::string path_of(const std::string& name) {
  return "/run/netns/" + name;
}

/// Runs ip(8); throws Error with its exit status if it fails (it has then said why on standard error).
void ip(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "ip");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child < 0) throw_system_error("fork");
  if (child == 0) {
    execvp("ip", argv.data());
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (status == 0) return;
  std::string line;
  for (const std::string& argument : arguments) line += (line.empty() ? "" : " ") + argument;
  throw Error(
      "'" + line + "' failed" +
      (WIFEXITED(status) && WEXITSTATUS(status) == 127 ? ": there is no ip(8), install iproute2" : ""));
}

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) throw_system_error("cannot open " + path);
  }
  ~Descriptor() { close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

void HostNamespace::make() const {
  ip({"netns", "add", name_});
  ip({"-n", name_, "link", "set", "lo", "up"});
}

void HostNamespace::remove() const {
  if (access(path_of(name_).c_str(), F_OK) == 0) ip({"netns", "del", name_});
}

std::optional<ino_t> HostNamespace::inode() const {
  struct stat found {};
  if (stat(path_of(name_).c_str(), &found) != 0) return std::nullopt;
  return found.st_ino;
}

void HostNamespace::enter(const std::string& hostname, const std::filesystem::path& hosts_file) const {
  const Descriptor net(path_of(name_));
  if (setns(net.get(), CLONE_NEWNET) != 0) throw_system_error("cannot enter network namespace " + name_);
  if (unshare(CLONE_NEWNS | CLONE_NEWUTS) != 0) throw_system_error("unshare");
  // Mounts of the machine still arrive here; ours stay here.
  if (mount("", "/", "none", MS_SLAVE | MS_REC, nullptr) != 0) throw_system_error("cannot change mounts");
  if (sethostname(hostname.data(), hostname.size()) != 0) throw_system_error("sethostname");
  umount2("/sys", MNT_DETACH);
  if (mount(name_.c_str(), "/sys", "sysfs", 0, nullptr) != 0) throw_system_error("cannot mount /sys");
  if (mount(hosts_file.c_str(), "/etc/hosts", "none", MS_BIND, nullptr) != 0)
    throw_system_error("cannot put " + hosts_file.string() + " in the place of /etc/hosts");
}

void HostNamespace::visit(const std::function<void()>& function) const {
  const Descriptor home("/proc/thread-self/ns/net");
  const Descriptor net(path_of(name_));
  if (setns(net.get(), CLONE_NEWNET) != 0) throw_system_error("cannot enter network namespace " + name_);
  struct Return {
    int fd;
    ~Return() { setns(fd, CLONE_NEWNET); }
  } back{home.get()};
  function();
}

}  // namespace fabric::tools::lab
