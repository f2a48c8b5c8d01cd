// Read-ahead is the kernel's: a pass asks for the rows beyond its position (POSIX_FADV_WILLNEED), the disk fills the page
// cache meanwhile, and a block is then copied straight to where it is computed with, small enough to stay in the cache of
// the core. Requests are cut small because Linux shortens a large one to the read-ahead size of the device. Single rows
// have a descriptor of their own, for which nothing is read ahead.
#include "operations/row_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "operations/levels.hpp"
#include "operations/rows.hpp"

namespace dal {
namespace {

constexpr int64_t kMostAhead = 16 << 20;  // bytes: several times what a disk needs to be busy
constexpr int64_t kRequest = 128 << 10;   // bytes asked for at a time

void advise_bytes([[maybe_unused]] int descriptor, [[maybe_unused]] int64_t offset, [[maybe_unused]] int64_t size) {
#ifdef POSIX_FADV_WILLNEED
  for (int64_t at = offset; at < offset + size; at += kRequest)
    posix_fadvise(descriptor, at, std::min(kRequest, offset + size - at), POSIX_FADV_WILLNEED);
#endif
}

int duplicate(int descriptor, const std::string& path) {
  const int copy = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw FileError(path, errno, "cannot be read");
  return copy;
}

}  // namespace

FileState state_of(const struct stat& s) {
#ifdef __APPLE__
  const auto& modified = s.st_mtimespec;
#else
  const auto& modified = s.st_mtim;
#endif
  return {static_cast<int64_t>(s.st_size), static_cast<int64_t>(modified.tv_sec) * 1000000000 + modified.tv_nsec,
          static_cast<uint64_t>(s.st_dev), static_cast<uint64_t>(s.st_ino)};
}

RowFile::RowFile(std::string path, bool named, int descriptor, int scattered, FileState state, std::vector<FileRun> runs,
                 Storage storage, int64_t rows, int64_t d, int64_t working_memory)
    : path_(std::move(path)),
      named_(named),
      state_(state),
      runs_(std::move(runs)),
      storage_(storage),
      rows_(rows),
      d_(d),
      row_bytes_(d * storage_bytes(storage)),
      unseen_(rows),
      finite_(static_cast<size_t>((rows + 63) / 64)) {
  // A thread holds a block as stored and as float64: at most 16 bytes a number, and one row more.
  const int64_t half = working_memory / 2, row = 16 * d;
  block_rows_ = std::clamp<int64_t>(half / row - 1, 1, chunk_rows(d));
  readers_ = std::max<int64_t>(half / (row * (block_rows_ + 1)), 1);
  window_ = std::max<int64_t>(std::min(half, kMostAhead) / row_bytes_, 1);
  descriptor_ = duplicate(descriptor, path_);
  try {
    scattered_ = duplicate(scattered, path_);
  } catch (...) {
    close(descriptor_);
    throw;
  }
#ifdef POSIX_FADV_RANDOM
  posix_fadvise(scattered_, 0, 0, POSIX_FADV_RANDOM);
#endif
}

RowFile::~RowFile() {
  close(descriptor_);
  close(scattered_);
}

void RowFile::changed(const std::string& how) const {
  throw FileError(path_, 0, how + " since the pool was opened; expected a file that does not change");
}

void RowFile::check() const {
  struct stat now;
  if (fstat(descriptor_, &now) != 0) throw FileError(path_, errno, "cannot be read");
  const FileState open = state_of(now);
  if (open.size != state_.size)
    changed("has " + std::to_string(open.size) + " bytes now and had " + std::to_string(state_.size));
  if (open.modified != state_.modified) changed("was written to");
  // A file that was removed is still there for those who have it open; another one in its place is not what was meant.
  if (!named_ || stat(path_.c_str(), &now) != 0) return;
  const FileState named = state_of(now);
  if (named.device != state_.device || named.inode != state_.inode) changed("was replaced by another file");
}

// f(byte offset, rows) for each stretch of rows start..stop-1 that lies in one piece
template <class F>
void RowFile::each_run(int64_t start, int64_t stop, F f) const {
  auto run = std::upper_bound(runs_.begin(), runs_.end(), start,
                              [](int64_t row, const FileRun& r) { return row < r.first_row; });
  while (start < stop) {
    const int64_t end = run == runs_.end() ? stop : std::min(stop, run->first_row);
    const FileRun& in = *(run - 1);
    f(in.offset + (start - in.first_row) * row_bytes_, end - start);
    start = end;
    if (run != runs_.end()) ++run;
  }
}

void RowFile::transfer(int descriptor, int64_t start, int64_t stop, char* to) const {
  each_run(start, stop, [&](int64_t offset, int64_t rows) {
    for (int64_t left = rows * row_bytes_; left > 0;) {
      const ssize_t got = pread(descriptor, to, static_cast<size_t>(left), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw FileError(path_, errno, "cannot be read");
      if (got == 0) {
        check();
        changed("ended at byte " + std::to_string(offset));
      }
      to += got;
      offset += got;
      left -= got;
    }
  });
}

void RowFile::require_finite(int64_t start, int64_t stop, const void* from) {
  if (unseen_.load(std::memory_order_relaxed) == 0) return;
  const int64_t bad = kernels().first_nonfinite(from, storage_, stop - start, d_);
  if (bad >= 0) throw NonfiniteRow(start + bad);
  int64_t fresh = 0;
  for (int64_t row = start; row < stop;) {
    const int64_t word = row / 64, end = std::min(stop, (word + 1) * 64);
    const uint64_t upto = end % 64 == 0 ? ~uint64_t{0} : (uint64_t{1} << (end % 64)) - 1;
    const uint64_t bits = upto & ~((uint64_t{1} << (row % 64)) - 1);
    fresh += __builtin_popcountll(bits & ~finite_[static_cast<size_t>(word)].fetch_or(bits));
    row = end;
  }
  unseen_ -= fresh;
}

void RowFile::advise(int descriptor, int64_t start, int64_t stop) const {
  each_run(start, stop, [&](int64_t offset, int64_t rows) { advise_bytes(descriptor, offset, rows * row_bytes_); });
}

// Keeps half a window to a whole one asked for beyond a pass. A read that does not continue the last one may begin
// another pass, or may stand alone: nothing is asked for until the next read tells.
void RowFile::read_ahead(int64_t start, int64_t stop) {
  int64_t ahead = ahead_.load();
  const bool continues = start <= ahead && start >= ahead - 2 * window_;
  if (!continues) {
    ahead_.compare_exchange_strong(ahead, stop);
    return;
  }
  const int64_t upto = std::min(rows_, stop + window_);
  if (ahead >= upto || ahead - stop > window_ / 2) return;
  if (ahead_.compare_exchange_strong(ahead, upto)) advise(descriptor_, std::max(ahead, stop), upto);
}

void RowFile::read(int64_t start, int64_t stop, void* to) {
  read_ahead(start, stop);
  transfer(descriptor_, start, stop, static_cast<char*>(to));
  require_finite(start, stop, to);
}

const void* RowFile::row(int64_t i) {
  thread_local std::vector<char> buffer;
  buffer.resize(static_cast<size_t>(row_bytes_));
  transfer(scattered_, i, i + 1, buffer.data());
  require_finite(i, i + 1, buffer.data());
  return buffer.data();
}

int64_t RowFile::first_nonfinite(int64_t start, int64_t stop) {
  std::vector<char> buffer(static_cast<size_t>(std::min(block_rows_, stop - start) * row_bytes_));
  for (; start < stop; start += block_rows_) {
    const int64_t end = std::min(stop, start + block_rows_);
    read_ahead(start, end);
    transfer(descriptor_, start, end, buffer.data());
    const int64_t bad = kernels().first_nonfinite(buffer.data(), storage_, end - start, d_);
    if (bad >= 0) return start + bad;
  }
  return -1;
}

}  // namespace dal
