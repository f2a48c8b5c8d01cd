// The best teacher of a conversation in O(log m), with costs, used-up capacities and pairs asked before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dal {

// The teachers of each category in order of rationality.
class SortedTeachers {
 public:
  // rationality (m, categories); available (m, categories) and capacity (m), or null. A capacity of 0 leaves a teacher
  // out.
  SortedTeachers(const double* rationality, const uint8_t* available, const int64_t* capacity, int64_t m,
                 int64_t categories);

  struct Best {
    int64_t teacher;
    double weight;
  };
  // The smallest teacher whose weight is within the tie window of the largest, and its weight; {-1, 0} if none.
  Best best(double margin, int32_t category) const;

 protected:
  // One category.
  struct View {
    const double* rationality;  // |.|, ascending
    const int64_t* teacher;     // ascending among equal rationalities
    const int32_t* across;      // the other end of a run of equal rationalities, at each end
    int64_t count;
  };
  class Weights;

  int64_t categories() const { return static_cast<int64_t>(first_.size()) - 1; }
  // Where a category begins in arrays over all of them.
  int64_t first(int64_t category) const { return first_[static_cast<size_t>(category)]; }
  View view(int64_t category) const;

 private:
  std::vector<int64_t> first_;  // (categories + 1)
  std::vector<double> rationality_;
  std::vector<int64_t> teacher_;
  std::vector<int32_t> across_;
};

// Teachers that one conversation may not be asked: a sorted list and a short one in any order.
struct Closed {
  const int64_t* first = nullptr;  // ascending
  const int64_t* last = nullptr;
  const std::vector<int64_t>* others = nullptr;

  bool empty() const { return first == last && !others; }
  bool operator()(int64_t teacher) const;
};

// What a weight is worth: w h, or log1p(w h).
struct Worth {
  double leverage = 1;
  bool logarithm = false;

  double operator()(double weight) const;
};

// Sorted teachers with a tree over each category, for the largest worth / cost and for removals.
//
// Without costs the nearest open teachers on the two sides of the peak decide. With them the search goes down a binary
// search tree, where every teacher stands for a range, looks at that teacher, and bounds what the ranges on its two
// sides can reach:
// - worth falls away from the peak, so on the far side none is worth more;
// - log worth is concave in x = log beta: log w = 2 x + log s'(u e^x) has the derivative 2 - t tanh(t / 2), t = u e^x,
//   which falls, and log log1p(w h) = log softplus(log(w h)) is concave and rising in log(w h). So it lies below its
//   tangent at the teacher looked at;
// - log cost lies above a level and above a line in x, kept for every range.
class TeacherTable : public SortedTeachers {
 public:
  // As above; cost (m, categories) or null: then every cost is 1.
  TeacherTable(const double* rationality, const uint8_t* available, const int64_t* capacity, const double* cost,
               int64_t m, int64_t categories);

  // The largest worth / cost among the open teachers, -1 if there is none.
  double largest(const Worth& worth, double margin, int32_t category, const Closed& closed) const;
  // The smallest open teacher whose worth / cost is at least `floor`, and its weight; {-1, 0} if none.
  Best smallest_reaching(double floor, const Worth& worth, double margin, int32_t category,
                         const Closed& closed) const;
  // The `count` largest weights of open teachers, or all if they are fewer, appended to `out` in any order.
  void largest_weights(int64_t count, double margin, int32_t category, const Closed& closed,
                       std::vector<double>& out) const;

  // From now on nobody may ask this teacher.
  void remove(int64_t teacher);

 private:
  // What a range of teachers stands for: of the open ones the lowest log cost, infinite where nobody is left, and the
  // smallest teacher; of all that were ever in it log cost >= offset + slope log beta.
  struct Range {
    double low, slope, offset;
    int64_t teacher;
  };
  // One category, its positions counted from 1. Node k covers from `first` up to `last`, node 1 from 0 to `leaves`, its
  // children 2 k and 2 k + 1 the halves. open[k]: whether anybody is left there. range[k]: without `first`, so that
  // every position is the middle of one node and in the ranges of that node and its ancestors only.
  struct Tree {
    View sorted;
    int64_t leaves;  // a power of two above the number of teachers
    const double *cost, *log_cost, *log_rationality;
    const uint8_t* open;
    const Range* range;
    double scale;  // 1 + the largest |log beta| + the largest |log cost|

    int64_t next_open(int64_t position, const Closed& closed) const;      // past the last where there is none
    int64_t previous_open(int64_t position, const Closed& closed) const;  // 0 where there is none
  };
  class Descent;

  Tree tree(int64_t category) const;
  void fit(int64_t category);
  void summarise(int64_t category, int64_t k);

  bool costs_;
  std::vector<int64_t> leaves_, root_;                      // of each category; where its nodes begin
  std::vector<double> cost_, log_cost_, log_rationality_;  // the last two only with costs
  std::vector<double> scale_;
  std::vector<uint8_t> open_;
  std::vector<Range> range_;
  std::vector<int32_t> place_;  // (m, categories): the position of a teacher, 0 where it may not answer
};

// Values within this relative distance of the largest are tied; the smallest (conversation, teacher) wins.
constexpr double kTie = 1e-12;

}  // namespace dal
