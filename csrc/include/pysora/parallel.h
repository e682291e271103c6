#pragma once
#include <cstdint>

namespace pysora {

// Runs body(context, task, worker) for every task < tasks, at most `threads` at once; 0 <= worker < threads.
// Tasks are handed out one by one. The threads are those of the OpenMP runtime in the process where there is one
// (torch's), and a pool of our own where not.
void parallel(int threads, std::int64_t tasks, void (*body)(void*, std::int64_t, int), void* context);

namespace {  // internal linkage: this is compiled for several instruction sets

template <class Body>
void parallel_for(int threads, std::int64_t tasks, const Body& body) {
  parallel(
      threads, tasks,
      [](void* context, std::int64_t task, int worker) {
        (*static_cast<const Body*>(context))(task, worker);
#if defined(__SSE2__)
        __builtin_ia32_sfence();  // stores past the caches are not in order with the others
#endif
      },
      const_cast<Body*>(&body));
}

}  // namespace

const char* thread_runtime();  // "OpenMP" or "own pool"

}  // namespace pysora
