// The best teacher of a conversation where rationalities are known to lie in intervals, each taken at its best.
#pragma once

#include <cstdint>
#include <vector>

#include "operations/teachers.hpp"

namespace dal {

// The largest weight of a teacher, w(u, beta) with beta in [lower, upper], is that at the beta nearest to t* / |u|.
// So without costs one of two teachers is best: of those with lower <= t* / |u| the one of the largest upper, which
// has the peak in its interval if any has, and of the others the one of the smallest lower. In order of lower, a tree
// of the largest upper finds both. With costs the search goes down that tree and passes over ranges that are bounded,
// by the largest weight and the lowest cost in them, below what was found.
class IntervalTable {
 public:
  using Best = SortedTeachers::Best;

  // lower and upper (m, categories), the rest as for TeacherTable.
  IntervalTable(const double* lower, const double* upper, const uint8_t* available, const int64_t* capacity,
                const double* cost, int64_t m, int64_t categories);

  // As for TeacherTable; where all intervals are points, with the same bits.
  double largest(const Worth& worth, double margin, int32_t category, const Closed& closed) const;
  Best smallest_reaching(double floor, const Worth& worth, double margin, int32_t category,
                         const Closed& closed) const;
  void largest_weights(int64_t count, double margin, int32_t category, const Closed& closed,
                       std::vector<double>& out) const;
  void remove(int64_t teacher);

 private:
  // What a range of teachers stands for, of the open ones: the largest upper, -1 where nobody is left, and the lowest
  // cost.
  struct Range {
    double upper, cost;
  };
  // One category, in order of lower. Node k covers a power of two of positions, 2 k and 2 k + 1 the halves of it.
  struct Category {
    std::vector<double> lower, upper, cost;
    std::vector<int64_t> teacher;
    std::vector<Range> range;  // (2 leaves)
    int64_t leaves = 1;        // a power of two above the number of teachers

    int64_t count() const { return static_cast<int64_t>(teacher.size()); }
    bool open(int64_t position) const { return range[static_cast<size_t>(leaves + position)].upper >= 0; }
    void summarise(int64_t k);
    double largest_upper(int64_t before, const Closed& closed) const;  // -1: nobody
    int64_t next_open(int64_t position, const Closed& closed) const;   // count() where there is none

   private:
    double largest_upper(int64_t k, int64_t first, int64_t last, int64_t before, const Closed& closed,
                         double found) const;
  };
  class Weights;
  class Descent;

  // f(teacher, weight, cost) in order of teachers, for every open one, while it returns true.
  template <class F>
  void each_open(double margin, int32_t category, const Closed& closed, F f) const;

  int64_t m_;
  bool costs_;
  std::vector<Category> categories_;
  std::vector<int32_t> place_;  // (m, categories): the position of a teacher, -1 where it may not answer
};

}  // namespace dal
