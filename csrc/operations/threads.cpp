#include "operations/threads.hpp"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace dal {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kPollEvery = std::chrono::milliseconds(20);

// One call's work. Lives on the caller's stack until every worker has left it.
struct Job {
  const std::function<void(int64_t, int)>* body;
  int64_t chunks;
  int helpers;  // workers wanted beside the caller
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex failure_mutex;
  std::exception_ptr failure;

  void fail(std::exception_ptr error) {
    std::lock_guard<std::mutex> lock(failure_mutex);
    if (!failure) failure = error;
    stop = true;
  }

  // Returns false when no chunk is left.
  bool run_one(int worker) {
    if (stop) return false;
    const int64_t chunk = next.fetch_add(1);
    if (chunk >= chunks) return false;
    try {
      (*body)(chunk, worker);
    } catch (...) {
      fail(std::current_exception());
      return false;
    }
    return true;
  }
};

class Pool {
 public:
  // Runs the job with the caller taking part; the pool is the caller's alone meanwhile.
  void run(Job& job, const Call& call) {
    grow(job.helpers);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      wanted_ = job.helpers;
      next_worker_ = 1;
      active_ = 0;
      ++generation_;
    }
    wake_.notify_all();
    work(job, call);
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;  // late wakers find nothing to join
    while (active_ > 0) {
      done_.wait_for(lock, kPollEvery);
      lock.unlock();
      poll(job, call);
      lock.lock();
    }
    job_ = nullptr;
  }

  static void work(Job& job, const Call& call) {
    while (job.run_one(0)) poll(job, call);
  }

  // A hook that throws becomes the job's failure, so that workers stop before the caller's frame goes.
  static void poll(Job& job, const Call& call) {
    if (job.stop) return;
    try {
      poll_sometimes(call);
    } catch (...) {
      job.fail(std::current_exception());
    }
  }

  int size() const { return size_; }

  std::mutex busy;  // held by the one call that uses the workers

 private:
  void grow(int wanted) {
    while (size_ < wanted) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // fewer threads than asked for: slower, never wrong
      }
      ++size_;
    }
  }

  void serve() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals belong to the threads of Python
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen && wanted_ > 0; });
      seen = generation_;
      --wanted_;
      ++active_;
      const int worker = next_worker_++;
      Job& job = *job_;
      lock.unlock();
      while (job.run_one(worker)) {
      }
      lock.lock();
      if (--active_ == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int wanted_ = 0, active_ = 0, next_worker_ = 1, size_ = 0;
  uint64_t generation_ = 0;
};

// Never destroyed: at exit workers may still sleep in it. A forked child has none of the threads, so it starts anew.
std::atomic<Pool*> shared_pool{nullptr};
std::once_flag fork_handler;

Pool& pool() {
  std::call_once(fork_handler, [] { pthread_atfork(nullptr, nullptr, [] { shared_pool = nullptr; }); });
  Pool* have = shared_pool.load();
  if (!have) {
    Pool* made = new Pool;
    if (shared_pool.compare_exchange_strong(have, made)) return *made;
    delete made;
  }
  return *have;
}

thread_local Clock::time_point last_poll{};
thread_local bool inside_parallel = false;

}  // namespace

void poll_sometimes(const Call& call) {
  if (!call.interrupt) return;
  const auto now = Clock::now();
  if (now - last_poll < kPollEvery) return;
  last_poll = now;
  call.interrupt->poll();
}

int pool_size() {
  Pool* have = shared_pool.load();
  return have ? have->size() : 0;
}

void parallel_for(int64_t chunks, const Call& call, const std::function<void(int64_t, int)>& body) {
  if (chunks <= 0) return;
  Job job;
  job.body = &body;
  job.chunks = chunks;
  job.helpers = static_cast<int>(call.threads < chunks ? call.threads : chunks) - 1;
  if (job.helpers <= 0 || inside_parallel) {
    Pool::work(job, call);
  } else {
    Pool& shared = pool();
    std::unique_lock<std::mutex> alone(shared.busy, std::try_to_lock);
    if (alone) {
      inside_parallel = true;
      shared.run(job, call);
      inside_parallel = false;
    } else {
      Pool::work(job, call);
    }
  }
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace dal
