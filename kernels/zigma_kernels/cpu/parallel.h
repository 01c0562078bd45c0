// Loops over XLA's own threads: those of the program that calls, however many devices it emulates.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

// Numbers below 2^-126 are 0 while this lives, on whatever thread: they would be slow, and threads would differ.
class NoSubnormals {
 public:
#if defined(__x86_64__)
  NoSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~NoSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  NoSubnormals() {}
#endif
};

// body(0) … body(tasks - 1), each once. The calling thread works too, and waits for others only for what they have
// begun: all threads of the pool may be in here at once.
template <typename Body>
void parallel(xla::ffi::ThreadPool& pool, int64_t tasks, const Body& body) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all;
    int64_t done = 0;
  };
  auto shared = std::make_shared<Shared>();
  const Body* call = &body;
  auto work = [shared, call, tasks] {
    int64_t finished = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < tasks; ++finished) {
      NoSubnormals guard;
      (*call)(i);
    }
    if (finished) {
      std::lock_guard<std::mutex> lock(shared->mutex);
      shared->done += finished;
      if (shared->done == tasks) shared->all.notify_all();
    }
  };
  for (int64_t i = 1; i < tasks && i < pool.num_threads(); ++i) pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all.wait(lock, [&] { return shared->done == tasks; });
}
