// Processes of a lab: starting them inside a host, finding them again, killing them for certain.
//
// A process belongs to a lab if its environment carries the lab's mark (inherited by all its children), or if
// it lives in the network namespace of one of the lab's hosts. That is found out from /proc each time, so
// that it also holds after everything that started them was killed. Signals go through pidfds, after a second
// look at who it is: a recycled process id is never hit.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace fabric::tools::lab {

/// A process for ever: a process id and when it started, in clock ticks since boot.
struct ProcessId {
  pid_t pid = 0;
  unsigned long long start = 0;
};

/// Nothing where there is no such process, or only its zombie.
std::optional<ProcessId> find_process(pid_t pid);
bool alive(const ProcessId& process);

/// A pid file: "PID START". Nothing where it is missing or holds something else.
std::optional<ProcessId> read_pid_file(const std::filesystem::path& file);
void write_pid_file(const std::filesystem::path& file, const ProcessId& process);

/// Name of the environment variable with the mark; the value is LAB/HOST, or LAB/ for what is of no host.
inline constexpr const char* kMark = "FABRIC_LAB_MEMBER";

struct Command {
  std::vector<std::string> arguments;              ///< [0] is the program, sought in PATH
  std::map<std::string, std::string> environment;  ///< on top of this process's own
  std::filesystem::path log;                       ///< where standard output and error are appended to
  std::function<void()> enter;  ///< called in the child before exec: changes namespaces; may throw
};

/// Starts a daemon in a session of its own. Returns when the program itself runs; throws Error if it cannot.
ProcessId spawn(const Command& command);
/// Replaces this process. Returns only by throwing Error (errno is ENOENT where there is no such program).
[[noreturn]] void execute(const Command& command);

/// All living processes of the lab but this one, or of one host of it. `namespaces` are the inodes of the
/// network namespaces to look for.
std::vector<ProcessId> find_members(const std::string& lab, const std::optional<std::string>& host,
                                    const std::vector<ino_t>& namespaces);

/// Sends the signal if the process still is that process.
void send_signal(const ProcessId& process, int signal);
/// True when all have ended, false at the deadline.
bool wait_for_end(const std::vector<ProcessId>& processes, std::chrono::milliseconds deadline);

}  // namespace fabric::tools::lab
