#include "pysora/parallel.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace pysora {
namespace {

// Tasks that follow each other, on a line of the cache of their own.
struct alignas(64) Range {
  std::atomic<std::int64_t> next{0};
  std::int64_t end = 0;
};

constexpr int kRanges = 64;

// Each thread begins with a range of its own, so that it writes memory that lies together: what the system clears at
// the first touch is then in that thread's cache. Then it takes what others have left.
struct Job {
  void (*body)(void*, std::int64_t, int);
  void* context;
  int threads, ranges;
  std::atomic<int> workers{0};
  Range range[kRanges] = {};

  Job(void (*call)(void*, std::int64_t, int), void* with, std::int64_t tasks, int wanted)
      : body(call), context(with), threads(wanted), ranges(wanted < kRanges ? wanted : kRanges) {
    for (int i = 0; i < ranges; ++i) range[i].next = tasks * i / ranges, range[i].end = tasks * (i + 1) / ranges;
  }
};

// One thread's share: takes a worker number, then tasks until there are none left.
void work(void* pointer) {
  Job& job = *static_cast<Job*>(pointer);
  const int worker = job.workers++;
  if (worker >= job.threads) return;
  for (int i = 0; i < job.ranges; ++i) {
    Range& range = job.range[(worker + i) % job.ranges];
    for (std::int64_t task; (task = range.next++) < range.end;) job.body(job.context, task, worker);
  }
}

// A second OpenMP runtime beside torch's would fight its spinning threads, so the one in the process is used. The
// symbols are looked up, not linked: torch brings them into the global scope.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*in_parallel)();
};

// Null where there is none; looked up again the next time, since torch may be imported after this module.
const OpenMP* openmp() {
  static std::atomic<const OpenMP*> runtime{nullptr};
  if (const OpenMP* found = runtime) return found;
  const auto parallel = reinterpret_cast<decltype(OpenMP::parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  const auto in_parallel = reinterpret_cast<decltype(OpenMP::in_parallel)>(dlsym(RTLD_DEFAULT, "omp_in_parallel"));
  if (!parallel || !in_parallel) return nullptr;
  static const OpenMP functions{parallel, in_parallel};
  runtime = &functions;
  return &functions;
}

// Threads for processes without an OpenMP runtime. They live as long as the process.
class Pool {
 public:
  void run(Job& job, int threads) {
    // After a fork the threads are gone, and inside a task they are taken.
    if (pid_ != getpid() || taken_.exchange(true)) return work(&job);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(threads_.size()) < threads - 1) threads_.emplace_back([this] { loop(); });
      job_ = &job;
      wanted_ = threads - 1;
    }
    wake_.notify_all();
    work(&job);
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;
    idle_.wait(lock, [this] { return busy_ == 0; });
    job_ = nullptr;
    taken_ = false;
  }

 private:
  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++busy_;
      Job* job = job_;
      lock.unlock();
      work(job);
      lock.lock();
      if (--busy_ == 0) idle_.notify_one();
    }
  }

  const pid_t pid_ = getpid();
  std::atomic<bool> taken_{false};
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::vector<std::thread> threads_;
  Job* job_ = nullptr;
  int wanted_ = 0, busy_ = 0;
};

}  // namespace

const char* thread_runtime() {
  return openmp() ? "OpenMP" : "own pool";
}

void parallel(int threads, std::int64_t tasks, void (*body)(void*, std::int64_t, int), void* context) {
  if (tasks < threads) threads = static_cast<int>(tasks);
  const OpenMP* omp = threads > 1 ? openmp() : nullptr;
  if (threads <= 1 || (omp && omp->in_parallel())) {
    for (std::int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
  Job job(body, context, tasks, threads);
  if (omp) return omp->parallel(work, &job, static_cast<unsigned>(threads), 0);
  static Pool* const pool = new Pool;  // never destroyed: its threads outlive static destructors
  pool->run(job, threads);
}

}  // namespace pysora
