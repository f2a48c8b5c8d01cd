// Our own small thread pool: chunks handed out in order, results independent of who computes them, safe after fork.
#pragma once

#include <cstdint>
#include <functional>

namespace dal {

// Asked now and then, on the calling thread only, whether to go on. Throws what ends the call.
class Interrupt {
 public:
  virtual ~Interrupt() = default;
  virtual void poll() = 0;
};

struct Call {
  int threads = 1;
  Interrupt* interrupt = nullptr;
};

// body(chunk, worker) for chunk 0..chunks-1, worker < call.threads; returns when all are done. The calling thread
// works too. The first exception of any body, or of the interrupt hook, stops the rest and is thrown here. When the
// pool is busy with another Python thread's call, the caller does all chunks itself.
void parallel_for(int64_t chunks, const Call& call, const std::function<void(int64_t, int)>& body);

// Calls the interrupt hook if 20 ms have passed since it was last called; for serial loops.
void poll_sometimes(const Call& call);

int pool_size();  // threads now alive, the callers' own excluded

}  // namespace dal
