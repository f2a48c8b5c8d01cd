// The best teacher of a conversation in O(log m), from the sorted rationalities of its category.
#pragma once

#include <cstdint>
#include <vector>

namespace dal {

// Of the available teachers of each category: distinct |rationality| ascending, each with its smallest teacher.
class TeacherTable {
 public:
  // rationality (m, categories); available (m, categories) or null; capacity (m) or null: 0 removes a teacher
  TeacherTable(const double* rationality, const uint8_t* available, const int64_t* capacity, int64_t m,
               int64_t categories);

  struct Best {
    int64_t teacher;
    double weight;
  };
  // The largest weight and the smallest teacher whose weight is within the tie window of it; {-1, 0} if none.
  Best best(double margin, int32_t category) const;
  // The largest weight alone, -1 if the category has no teacher.
  double largest_weight(double margin, int32_t category) const;

 private:
  struct Entry {
    double rationality;
    int64_t teacher;
  };
  const Entry* peak(double margin, const Entry* first, const Entry* last, double* weight) const;
  std::vector<Entry> entries_;
  std::vector<int64_t> offsets_;
};

// Values within this relative distance of the largest are tied; the smallest (conversation, teacher) wins.
constexpr double kTie = 1e-12;

}  // namespace dal
