#include "verbs/softhca/engine.hpp"

#include <pthread.h>

#include <csignal>

namespace fabric::softhca {

void Engine::remove(Task& task) {
  if (const auto it = appointments_.find(&task); it != appointments_.end()) {
    queue_.erase({it->second, &task});
    appointments_.erase(it);
  }
}

void Engine::schedule(Task& task, Time when) {
  std::lock_guard lock(mutex_);
  remove(task);
  appointments_[&task] = when;
  queue_.emplace(when, &task);
  if (!started_) {
    started_ = true;
    // The program's signals are for the program's threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([this] { run(); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  } else if (queue_.begin()->second == &task) {
    changed_.notify_one();
  }
}

void Engine::cancel(Task& task) {
  std::unique_lock lock(mutex_);
  remove(task);
  idle_.wait(lock, [&] { return running_ != &task; });
  remove(task);  // it may have made a new appointment meanwhile
}

void Engine::run() {
  pthread_setname_np(pthread_self(), "softhca");
  std::unique_lock lock(mutex_);
  for (;;) {
    if (queue_.empty()) {
      changed_.wait(lock);
      continue;
    }
    const auto [when, task] = *queue_.begin();
    if (std::chrono::steady_clock::now() < when) {
      changed_.wait_until(lock, when);
      continue;
    }
    remove(*task);
    running_ = task;
    lock.unlock();
    task->due();
    lock.lock();
    running_ = nullptr;
    idle_.notify_all();
  }
}

}  // namespace fabric::softhca
