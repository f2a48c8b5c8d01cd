// Rows that stay in a file and are read where they are needed, never mapped: a file that shrinks is an error here, not
// a fault of the process, and the rows read do not count as the process's own memory.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/table.hpp"

namespace dal {

// A file that cannot be read (code: errno), or is no longer as it was when it was opened (code 0).
struct FileError : std::runtime_error {
  FileError(std::string path_, int code_, const std::string& what)
      : std::runtime_error(path_ + ": " + what), path(std::move(path_)), code(code_) {}
  std::string path;
  int code;
};

// A row that was read holds NaN or infinity.
struct NonfiniteRow : std::runtime_error {
  explicit NonfiniteRow(int64_t row_) : std::runtime_error("NaN or infinity in row " + std::to_string(row_)), row(row_) {}
  int64_t row;
};

// What tells one state of a file from another.
struct FileState {
  int64_t size = 0, modified = 0;  // bytes, nanoseconds
  uint64_t device = 0, inode = 0;
};

FileState state_of(const struct stat& found);

// Rows first_row, first_row + 1, ... up to the next run lie one after the other from byte `offset` on.
struct FileRun {
  int64_t first_row, offset;
};

class RowFile {
 public:
  // Both descriptors are open on the same file and are duplicated: `descriptor` for passes, `scattered` for single
  // rows. `path` is for messages; with `named` the file found there must stay the same one. `runs` ascend from row 0.
  RowFile(std::string path, bool named, int descriptor, int scattered, FileState state, std::vector<FileRun> runs,
          Storage storage, int64_t rows, int64_t d, int64_t working_memory);
  ~RowFile();
  RowFile(const RowFile&) = delete;
  RowFile& operator=(const RowFile&) = delete;

  const std::string& path() const { return path_; }
  Storage storage() const { return storage_; }
  int64_t rows() const { return rows_; }
  int64_t d() const { return d_; }
  // Rows of a block, and threads that may hold one at once, such that the blocks fit in half of the working memory;
  // the rest is for what is read ahead. The rows of a block depend on sizes alone, not on the number of threads.
  int64_t block_rows() const { return block_rows_; }
  int threads(int wanted) const { return static_cast<int64_t>(wanted) < readers_ ? wanted : static_cast<int>(readers_); }
  static int64_t least_memory(int64_t d) { return 64 * d; }

  // Throws FileError unless the file is as it was when it was opened.
  void check() const;

  // Rows start..stop-1 as stored. Part of a pass: what follows is asked for ahead of time. Rows not seen before must be
  // finite. Safe on any thread.
  void read(int64_t start, int64_t stop, void* to);
  // One row as stored, in a buffer of this thread until its next call.
  const void* row(int64_t i);
  // Says that this row will be asked for soon: the system may fetch several such rows side by side.
  void expect(int64_t i) const { advise(scattered_, i, i + 1); }
  // Index of the first row below `stop` that holds NaN or infinity, -1 if none, among rows start..stop-1.
  int64_t first_nonfinite(int64_t start, int64_t stop);

 private:
  void transfer(int descriptor, int64_t start, int64_t stop, char* to) const;
  void require_finite(int64_t start, int64_t stop, const void* from);
  void read_ahead(int64_t start, int64_t stop);
  void advise(int descriptor, int64_t start, int64_t stop) const;
  [[noreturn]] void changed(const std::string& how) const;
  template <class F>
  void each_run(int64_t start, int64_t stop, F f) const;

  std::string path_;
  bool named_;
  int descriptor_ = -1, scattered_ = -1;
  FileState state_;
  std::vector<FileRun> runs_;
  Storage storage_;
  int64_t rows_, d_, row_bytes_;
  int64_t block_rows_, readers_, window_;  // rows read ahead

  std::atomic<int64_t> ahead_{0};                // rows before this one have been asked for in this pass
  std::atomic<int64_t> unseen_;                  // rows never read yet
  std::vector<std::atomic<uint64_t>> finite_;    // a bit for each row seen
};

}  // namespace dal
