#include "tools/lab/process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "tools/lab/error.hpp"

namespace fabric::tools::lab {

namespace fs = std::filesystem;

namespace {

/// What a process says of itself; nothing if it has gone, which may be while it is read.
std::string read_all(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return std::move(text).str();
}

int open_pidfd(const ProcessId& process) {
  // The descriptor is opened first and the start time compared after: from then on it means this process.
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, process.pid, 0));
  if (fd < 0) return -1;
  if (alive(process)) return fd;
  close(fd);
  return -1;
}

/// Becomes the program, or throws.
[[noreturn]] void become(const Command& command) {
  if (command.enter) command.enter();
  for (const auto& [name, value] : command.environment) setenv(name.c_str(), value.c_str(), 1);
  std::vector<char*> arguments;
  for (const std::string& argument : command.arguments)
    arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  execvp(arguments[0], arguments.data());
  throw_system_error("cannot run " + command.arguments[0]);
}

}  // namespace

std::optional<ProcessId> find_process(pid_t pid) {
  const std::string stat = read_all("/proc/" + std::to_string(pid) + "/stat");
  // "pid (name) state ppid ... starttime": the name may hold spaces and brackets, so count from its end.
  const auto bracket = stat.rfind(") ");
  if (bracket == std::string::npos) return std::nullopt;
  std::istringstream rest(stat.substr(bracket + 2));
  const std::vector<std::string> fields(std::istream_iterator<std::string>(rest), {});
  const auto field = [&](std::size_t number) { return fields.at(number - 3); };  // as proc(5) counts
  if (fields.size() < 20) return std::nullopt;
  const auto threads = std::stoul(field(20));
  // The first thread of a killed process may be gone before the others, which hold its sockets until they
  // end.
  if ((field(3) == "Z" && threads <= 1) || field(3) == "X") return std::nullopt;
  return ProcessId{pid, std::stoull(field(22))};
}

bool alive(const ProcessId& process) {
  const auto now = find_process(process.pid);
  return now && now->start == process.start;
}

std::optional<ProcessId> read_pid_file(const fs::path& file) {
  std::ifstream in(file);
  ProcessId process;
  if (!(in >> process.pid >> process.start)) return std::nullopt;
  return process;
}

void write_pid_file(const fs::path& file, const ProcessId& process) {
  std::ofstream(file) << process.pid << ' ' << process.start << '\n';
}

ProcessId spawn(const Command& command) {
  // The child reports a failure over a pipe that a successful exec closes.
  int report[2];
  if (pipe2(report, O_CLOEXEC) != 0) throw_system_error("pipe");
  const pid_t child = fork();
  if (child < 0) throw_system_error("fork");
  if (child == 0) {
    try {
      setsid();
      const int null = open("/dev/null", O_RDONLY);
      const int log = open(command.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
      if (null < 0 || log < 0) throw_system_error("cannot open " + command.log.string());
      dup2(null, STDIN_FILENO);
      dup2(log, STDOUT_FILENO);
      dup2(log, STDERR_FILENO);
      // Everything else this process has open (the lock above all) stays with it.
      dup3(report[1], 3, O_CLOEXEC);
      syscall(SYS_close_range, 4, ~0u, 0);
      report[1] = 3;
      become(command);
    } catch (const std::exception& error) {
      const std::string text = error.what();
      (void)!write(report[1], text.data(), text.size());
    }
    _exit(127);
  }
  close(report[1]);
  std::string failure;
  char buffer[512];
  for (ssize_t got; (got = read(report[0], buffer, sizeof buffer)) > 0;)
    failure.append(buffer, static_cast<std::size_t>(got));
  close(report[0]);
  if (!failure.empty()) {
    waitpid(child, nullptr, 0);
    throw Error(failure);
  }
  // Gone already: its zombie is this process's child and keeps the number from being used again.
  return find_process(child).value_or(ProcessId{child, 0});
}

void execute(const Command& command) {
  become(command);
}

std::vector<ProcessId> find_members(const std::string& lab, const std::optional<std::string>& host,
                                    const std::vector<ino_t>& namespaces) {
  const std::string mark = std::string(kMark) + "=" + lab + "/" + host.value_or("");
  std::vector<ProcessId> found;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ec != std::errc{}) continue;
    if (pid == getpid()) continue;
    const auto process = find_process(pid);
    if (!process) continue;
    struct stat net {};
    bool member = stat((entry.path() / "ns/net").c_str(), &net) == 0 &&
                  std::find(namespaces.begin(), namespaces.end(), net.st_ino) != namespaces.end();
    if (!member) {
      const std::string environment = '\0' + read_all(entry.path() / "environ");
      const auto at = environment.find('\0' + mark);
      member = at != std::string::npos && (!host || environment[at + 1 + mark.size()] == '\0');
    }
    if (member) found.push_back(*process);
  }
  return found;
}

void send_signal(const ProcessId& process, int signal) {
  const int fd = open_pidfd(process);
  if (fd < 0) return;
  syscall(SYS_pidfd_send_signal, fd, signal, nullptr, 0);
  close(fd);
}

bool wait_for_end(const std::vector<ProcessId>& processes, std::chrono::milliseconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  for (const ProcessId& process : processes) {
    const int fd = open_pidfd(process);
    if (fd < 0) continue;
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    pollfd ready{fd, POLLIN, 0};
    const int got = poll(&ready, 1, static_cast<int>(std::max<long long>(left.count(), 0)));
    close(fd);
    if (got == 0) return false;
    waitpid(process.pid, nullptr, WNOHANG);  // if it was ours
  }
  return true;
}

}  // namespace fabric::tools::lab
