// The thread for what cannot be done inside ibv_post_send: retry and RNR timers, delayed and rate-limited
// cables. It is started when first needed and sleeps when nothing is due.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <thread>

namespace fabric::softhca {

/// Something the engine calls when its time has come.
class Task {
 public:
  virtual ~Task() = default;
  /// On the engine's thread, without any lock of the engine.
  virtual void due() = 0;
};

class Engine {
 public:
  using Time = std::chrono::steady_clock::time_point;

  /// Calls task.due() once at `when`; replaces an earlier appointment of the task.
  void schedule(Task& task, Time when);
  /// Forgets the task, and waits until a call that is under way has returned.
  void cancel(Task& task);

 private:
  void run();
  void remove(Task& task);
  std::mutex mutex_;
  std::condition_variable changed_, idle_;
  std::set<std::pair<Time, Task*>> queue_;
  std::map<Task*, Time> appointments_;
  Task* running_ = nullptr;
  bool started_ = false;
};

}  // namespace fabric::softhca
