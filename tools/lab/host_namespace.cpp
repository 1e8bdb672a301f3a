#include "tools/lab/host_namespace.hpp"

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "tools/lab/error.hpp"

namespace fabric::tools::lab {

namespace {

std::string path_of(const std::string& name) {
  return "/run/netns/" + name;
}

/// Runs ip(8) or bridge(8), with `input` as standard input and standard output going to `output`; throws
/// Error with its exit status if it fails (it has then said why on standard error).
void run(std::vector<std::string> arguments, const std::string& input = "", int output = STDOUT_FILENO) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const int in = memfd_create("input", MFD_CLOEXEC);
  if (in < 0 || pwrite(in, input.data(), input.size(), 0) != static_cast<ssize_t>(input.size()))
    throw_system_error("memfd");
  const pid_t child = fork();
  if (child < 0) throw_system_error("fork");
  if (child == 0) {
    dup2(in, STDIN_FILENO);
    dup2(output, STDOUT_FILENO);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  close(in);
  int status = 0;
  waitpid(child, &status, 0);
  if (status == 0) return;
  std::string line;
  for (const std::string& argument : arguments) line += (line.empty() ? "" : " ") + argument;
  throw Error("'" + line + "' failed" + (input.empty() ? "" : ":\n" + input) +
              (WIFEXITED(status) && WEXITSTATUS(status) == 127
                   ? ": there is no " + arguments[0] + "(8), install iproute2"
                   : ""));
}

void ip(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "ip");
  run(std::move(arguments));
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
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

void HostNamespace::ip_batch(const std::vector<std::string>& lines) const {
  run({"ip", "-n", name_, "-batch", "-"}, joined(lines));
}

void HostNamespace::bridge_batch(const std::vector<std::string>& lines) const {
  run({"bridge", "-n", name_, "-batch", "-"}, joined(lines));
}

std::string HostNamespace::bridge_ports() const {
  const int out = memfd_create("output", MFD_CLOEXEC);
  if (out < 0) throw_system_error("memfd");
  run({"bridge", "-n", name_, "-j", "-d", "link", "show"}, "", out);
  std::string text(static_cast<std::size_t>(lseek(out, 0, SEEK_END)), '\0');
  const ssize_t got = pread(out, text.data(), text.size(), 0);
  close(out);
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  return text;
}

bool HostNamespace::has_interface(const std::string& interface) const {
  bool found = false;
  visit([&] { found = if_nametoindex(interface.c_str()) != 0; });
  return found;
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
