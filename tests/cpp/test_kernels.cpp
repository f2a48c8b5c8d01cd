// Kernels and drivers against plain loops, without Python, to be run under sanitizers. Buffers have exactly the size
// that an argument needs, so that a read or write past the end is seen. Usage: test_kernels; DAL_NATIVE_SIMD picks the
// level.
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "formulas.hpp"
#include "kernels/bfloat16/products.hpp"
#include "operations/admissible.hpp"
#include "operations/levels.hpp"
#include "operations/operations.hpp"
#include "operations/selection.hpp"
#include "operations/teachers.hpp"
#include "operations/threads.hpp"

namespace {

using namespace dal;

int passed = 0, failed = 0;
std::string current;

void check(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED %s: %s\n", current.c_str(), what.c_str());
}

bool close(double a, double b, double relative) {
  return a == b || std::fabs(a - b) <= relative * std::max({1.0, std::fabs(a), std::fabs(b)});
}

std::mt19937_64 random_bits(7);
double normal() { return std::normal_distribution<double>()(random_bits); }
int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(random_bits); }
std::vector<double> normals(int64_t n) {
  std::vector<double> v(static_cast<size_t>(n));
  for (double& x : v) x = normal();
  return v;
}

// A float's 16-bit form by truncation (bf16) or by search over all halves is overkill: any bits are valid data.
float half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>(bits & 0x8000 ? -magnitude : magnitude);
}
float brain_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float f;
  std::memcpy(&f, &wide, sizeof(f));
  return f;
}

// Rows in one storage type and the same values as doubles.
struct Stored {
  std::vector<char> bytes;
  std::vector<double> values;
  Storage storage;

  Stored(int64_t count, Storage s) : bytes(static_cast<size_t>(count * storage_bytes(s))), storage(s) {
    for (int64_t k = 0; k < count; ++k) {
      const double x = normal();
      char* at = bytes.data() + k * storage_bytes(s);
      if (s == Storage::f64) {
        std::memcpy(at, &x, 8);
        values.push_back(x);
      } else if (s == Storage::f32) {
        const float f = static_cast<float>(x);
        std::memcpy(at, &f, 4);
        values.push_back(f);
      } else {
        // Finite bits of either 16-bit type, of moderate size.
        const auto bits = static_cast<uint16_t>((below(2) << 15) | (s == Storage::f16 ? below(0x4400) : 0x3e00 + below(0x0200)));
        std::memcpy(at, &bits, 2);
        values.push_back(s == Storage::f16 ? half_value(bits) : brain_value(bits));
      }
    }
  }
};

// Rows in a file without a name, in runs of a few rows with bytes of something else between them.
struct OnDisk {
  FILE* file = std::tmpfile();
  std::unique_ptr<RowFile> rows;

  OnDisk(const std::vector<char>& bytes, Storage storage, int64_t n, int64_t d, int64_t working_memory) {
    const int64_t size = d * storage_bytes(storage);
    std::vector<FileRun> runs;
    for (int64_t row = 0; row < n;) {
      const int64_t many = std::min(n - row, 1 + below(9));
      std::fwrite("other", 1, static_cast<size_t>(1 + below(5)), file);
      runs.push_back({row, std::ftell(file)});
      std::fwrite(bytes.data() + row * size, 1, static_cast<size_t>(many * size), file);
      row += many;
    }
    std::fflush(file);
    struct stat s;
    fstat(fileno(file), &s);
    rows = std::make_unique<RowFile>("a file", false, fileno(file), fileno(file), state_of(s), runs, storage, n, d,
                                     working_memory);
  }
  ~OnDisk() { std::fclose(file); }
  OnDisk(const OnDisk&) = delete;
  OnDisk& operator=(const OnDisk&) = delete;
};

const Storage kStorages[] = {Storage::f64, Storage::f32, Storage::f16, Storage::bf16};
const int64_t kSizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 130};

std::vector<double> positive_definite(int64_t d, double ridge) {
  const std::vector<double> a = normals(d * (d + 3));
  std::vector<double> m(static_cast<size_t>(d * d), 0.0);
  for (int64_t t = 0; t < d + 3; ++t)
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < d; ++j) m[static_cast<size_t>(i * d + j)] += a[static_cast<size_t>(t * d + i)] * a[static_cast<size_t>(t * d + j)] / static_cast<double>(d);
  for (int64_t i = 0; i < d; ++i) m[static_cast<size_t>(i * d + i)] += ridge;
  return m;
}

std::vector<double> cholesky(const std::vector<double>& m, int64_t d) {
  std::vector<double> l(m.size(), 0.0);
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double sum = m[static_cast<size_t>(i * d + j)];
      for (int64_t k = 0; k < j; ++k) sum -= l[static_cast<size_t>(i * d + k)] * l[static_cast<size_t>(j * d + k)];
      l[static_cast<size_t>(i * d + j)] = i == j ? std::sqrt(sum) : sum / l[static_cast<size_t>(j * d + j)];
    }
  return l;
}

std::vector<double> inverse_lower(const std::vector<double>& l, int64_t d) {
  std::vector<double> w(l.size(), 0.0);
  for (int64_t c = 0; c < d; ++c)
    for (int64_t i = c; i < d; ++i) {
      double sum = i == c ? 1.0 : 0.0;
      for (int64_t k = c; k < i; ++k) sum -= l[static_cast<size_t>(i * d + k)] * w[static_cast<size_t>(k * d + c)];
      w[static_cast<size_t>(i * d + c)] = sum / l[static_cast<size_t>(i * d + i)];
    }
  return w;
}

double square_of(const std::vector<double>& w, const double* x, int64_t d) {
  double total = 0;
  for (int64_t k = 0; k < d; ++k) {
    double y = 0;
    for (int64_t j = 0; j <= k; ++j) y += w[static_cast<size_t>(k * d + j)] * x[j];
    total += y * y;
  }
  return total;
}

void conversions() {
  current = "conversions";
  std::vector<uint16_t> all(65536);
  std::iota(all.begin(), all.end(), 0);
  std::vector<double> wide(all.size());
  std::vector<float> narrow(all.size());
  for (Storage s : {Storage::f16, Storage::bf16}) {
    kernels().to_double(all.data(), s, 65536, wide.data());
    kernels().to_float(all.data(), s, 65536, narrow.data());
    bool same = true;
    for (int bits = 0; bits < 65536; ++bits) {
      const bool finite = s == Storage::f16 ? (bits >> 10 & 31) != 31 : (bits >> 7 & 255) != 255;
      if (!finite) continue;
      const float expected = s == Storage::f16 ? half_value(static_cast<uint16_t>(bits)) : brain_value(static_cast<uint16_t>(bits));
      same = same && wide[static_cast<size_t>(bits)] == expected && narrow[static_cast<size_t>(bits)] == expected;
    }
    check(same, "every finite 16-bit value");
  }
  for (int64_t n : kSizes)
    for (Storage s : kStorages) {
      const Stored rows(n, s);
      std::vector<double> out(static_cast<size_t>(n));
      kernels().to_double(rows.bytes.data(), s, n, out.data());
      check(out == rows.values, "to_double, n = " + std::to_string(n));
    }
}

void row_passes() {
  current = "rows";
  for (int64_t d : kSizes)
    for (Storage s : kStorages) {
      const int64_t n = 5;
      const Stored rows(n * d, s);
      const std::vector<double> theta = normals(d);
      std::vector<double> u(static_cast<size_t>(n)), q(u), h(static_cast<size_t>(n), 1e3);
      kernels().margin(rows.bytes.data(), s, n, d, theta.data(), u.data(), q.data());
      kernels().update_leverage(rows.bytes.data(), s, n, d, theta.data(), 0.5, h.data());
      for (int64_t i = 0; i < n; ++i) {
        double eu = 0, eq = 0;
        for (int64_t k = 0; k < d; ++k) {
          eu += rows.values[static_cast<size_t>(i * d + k)] * theta[static_cast<size_t>(k)];
          eq += rows.values[static_cast<size_t>(i * d + k)] * rows.values[static_cast<size_t>(i * d + k)];
        }
        check(close(u[static_cast<size_t>(i)], eu, 1e-12) && close(q[static_cast<size_t>(i)], eq, 1e-12), "margin");
        check(close(h[static_cast<size_t>(i)], std::max(0.0, 1e3 - 0.5 * eu * eu), 1e-11), "update_leverage");
      }
      Rows view;
      view.rows = rows.bytes.data();
      view.storage = s;
      view.n = n;
      view.d = d;
      const Call two{2, nullptr};
      check(first_nonfinite(view, two) == -1, "finite rows");
      for (int64_t at : {int64_t{0}, n * d / 2, n * d - 1}) {
        Stored broken = rows;
        const uint64_t infinity[] = {0x7ff0000000000000u, 0x7f800000u, 0x7c00u, 0x7f80u};
        std::memcpy(broken.bytes.data() + at * storage_bytes(s), &infinity[static_cast<int>(s)], static_cast<size_t>(storage_bytes(s)));
        view.rows = broken.bytes.data();
        check(first_nonfinite(view, two) == at / d, "infinity found");
      }
    }
}

void downdates() {
  current = "downdated";
  for (int64_t d : kSizes)
    for (int64_t n : {1, 3, 4, 5, 9}) {
      const int64_t count = below(5);
      const std::vector<double> x = normals(n * d), v = normals(count * d);
      std::vector<double> a = normals(count), h(static_cast<size_t>(n), 1e4);
      for (double& value : a) value = std::fabs(value);
      kernels().downdated_rows(x.data(), n, d, v.data(), a.data(), count, h.data());
      for (int64_t i = 0; i < n; ++i) {
        double expected = 1e4;
        for (int64_t s = 0; s < count; ++s) {
          double c = 0;
          for (int64_t k = 0; k < d; ++k) c += x[static_cast<size_t>(i * d + k)] * v[static_cast<size_t>(s * d + k)];
          expected -= a[static_cast<size_t>(s)] * c * c;
        }
        std::vector<double> panels, again(static_cast<size_t>(n), 1e4), padded = a;
        const int64_t columns = kernels().tile_columns;
        padded.resize(static_cast<size_t>(columns), 0.0);
        for (int64_t k = 0; k < d; ++k)
          for (int64_t s = 0; s < columns; ++s) panels.push_back(s < count ? v[static_cast<size_t>(s * d + k)] : 1.0);
        if (count <= columns) {
          kernels().downdated_panels(x.data(), n, d, panels.data(), padded.data(), 1, again.data());
          check(close(again[static_cast<size_t>(i)], std::max(expected, 0.0), 1e-10), "by panels, d = " + std::to_string(d));
        }
        const double one = kernels().downdated(x.data() + i * d, d, v.data(), a.data(), count, 1e4);
        check(close(h[static_cast<size_t>(i)], std::max(expected, 0.0), 1e-10) && close(one, h[static_cast<size_t>(i)], 1e-10),
              "rows at once, d = " + std::to_string(d));
      }
    }
}

void exact_steps() {
  current = "exact";
  for (int64_t n = 0; n <= 70; ++n) {
    const std::vector<double> x = normals(n), y = normals(n);
    const double c = normal(), s = normal();
    const auto& lowest = kernels("generic");
    std::vector<double> z = y, z0 = y, a = x, b = y, a0 = x, b0 = y;
    kernels().subtract_scaled(x.data(), s, n, z.data());
    lowest.subtract_scaled(x.data(), s, n, z0.data());
    kernels().rotate(c, s, n, a.data(), b.data());
    lowest.rotate(c, s, n, a0.data(), b0.data());
    check(z == z0 && a == a0 && b == b0, "the same bits as the generic level, n = " + std::to_string(n));
    bool right = true;
    for (size_t i = 0; i < x.size(); ++i)
      right = right && close(z[i], y[i] - s * x[i], 1e-15) && close(a[i], c * x[i] + s * y[i], 1e-14) &&
              close(b[i], c * y[i] - s * x[i], 1e-14);
    check(right, "values, n = " + std::to_string(n));
  }
}

void whitening() {
  current = "leverage";
  for (int64_t d : kSizes) {
    const std::vector<double> w = inverse_lower(cholesky(positive_definite(d, 0.5), d), d);
    for (int64_t n : {1, 13, 14, 15, 57}) {
      for (Storage s : kStorages) {
        const Stored stored(n * d, s);
        std::vector<int32_t> category(static_cast<size_t>(n), 0);
        Rows view;
        view.rows = stored.bytes.data();
        view.storage = s;
        view.n = n;
        view.d = d;
        view.category = category.data();
        std::vector<double> h(static_cast<size_t>(n));
        leverage(view, w.data(), nullptr, n, h.data(), Call{3, nullptr});
        bool ok = true;
        for (int64_t i = 0; i < n; ++i) ok = ok && close(h[static_cast<size_t>(i)], square_of(w, stored.values.data() + i * d, d), 1e-11);
        const std::vector<double> nu = normals(d);
        std::vector<int64_t> list(static_cast<size_t>(n));
        std::iota(list.rbegin(), list.rend(), int64_t{0});
        std::vector<double> centred(h), listed(h), single(h), x(static_cast<size_t>(d));
        leverage(view, w.data(), nullptr, n, centred.data(), Call{2, nullptr}, false, nu.data());
        leverage(view, w.data(), list.data(), n, listed.data(), Call{2, nullptr}, false, nu.data());
        leverage(view, w.data(), nullptr, n, single.data(), Call{2, nullptr}, true, nu.data());
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < d; ++j)
            x[static_cast<size_t>(j)] = stored.values[static_cast<size_t>(i * d + j)] - nu[static_cast<size_t>(j)];
          const double square = square_of(w, x.data(), d);
          const auto at = static_cast<size_t>(i);
          ok = ok && close(centred[at], square, 1e-11) && listed[static_cast<size_t>(n - 1 - i)] == centred[at] &&
               close(single[at], square, 1e-3);
        }
        check(ok, "d = " + std::to_string(d));
      }
      const KernelTable& k = kernels();
      std::vector<float> packed(static_cast<size_t>(k.packed_factor_size(d, true)));
      k.pack_factor_float(w.data(), d, 1.0, packed.data());
      const Stored stored(n * d, Storage::f32);
      std::vector<double> square(static_cast<size_t>(n));
      std::vector<float> rows(static_cast<size_t>(n * d));
      std::memcpy(rows.data(), stored.bytes.data(), stored.bytes.size());
      k.whitened_squares_float(rows.data(), n, d, packed.data(), square.data());
      bool ok = true;
      for (int64_t i = 0; i < n; ++i) ok = ok && close(square[static_cast<size_t>(i)], square_of(w, stored.values.data() + i * d, d), 1e-4);
      check(ok, "single, d = " + std::to_string(d));
    }
  }
}

void screening() {
  current = "screen";
  const KernelTable& k = kernels();
  for (int64_t d : kSizes)
    for (int64_t wanted : {1, 15, 16, 17, 32}) {
      const int64_t columns = k.screen_columns(wanted), n = 1 + below(40), margin = below(wanted);
      check(columns >= wanted, "room for the directions");
      std::vector<float> v(static_cast<size_t>(columns * d)), x(static_cast<size_t>(n * d)), c(static_cast<size_t>(columns));
      for (auto* all : {&v, &x, &c})
        for (float& value : *all) value = static_cast<float>(normal());
      std::vector<float> packed(v.size());
      k.pack_directions(v.data(), columns, d, packed.data());
      std::vector<double> sum(static_cast<size_t>(n)), u(sum), q(sum);
      k.screen(x.data(), n, d, packed.data(), columns, c.data(), margin, sum.data(), u.data(), q.data());
      bool ok = true;
      for (int64_t i = 0; i < n; ++i) {
        double es = 0, eu = 0, eq = 0, size = 0;
        for (int64_t col = 0; col < columns; ++col) {
          double p = 0;
          for (int64_t j = 0; j < d; ++j) p += static_cast<double>(x[static_cast<size_t>(i * d + j)]) * v[static_cast<size_t>(col * d + j)];
          es += c[static_cast<size_t>(col)] * p * p;
          size += std::fabs(c[static_cast<size_t>(col)]) * p * p;
          if (col == margin) eu = p;
        }
        for (int64_t j = 0; j < d; ++j) eq += static_cast<double>(x[static_cast<size_t>(i * d + j)]) * x[static_cast<size_t>(i * d + j)];
        const auto at = static_cast<size_t>(i);
        ok = ok && std::fabs(sum[at] - es) <= 1e-4 * (1 + size + eq) && close(u[at], eu, 1e-4) && close(q[at], eq, 1e-5);
      }
      check(ok, "d = " + std::to_string(d) + ", columns = " + std::to_string(columns));
    }
}

// The kernels of prompts, in buffers that end one vector past what an argument holds.
void completions() {
  current = "pairs";
  const KernelTable& k = kernels();
  const int64_t lanes = k.float_lanes();
  const auto floats = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n)); };
  for (int64_t d : kSizes)
    for (int64_t n : {1, 2, 3, 5, 8, 16, 17, 33, 70}) {
      const int64_t depth = (d + lanes - 1) / lanes * lanes, columns = 16, stride = depth + columns, wide = (d + 2 * lanes - 1) / (2 * lanes) * 2 * lanes;
      const std::string sizes = "d = " + std::to_string(d) + ", n = " + std::to_string(n);
      const Storage storage = kStorages[below(4)];
      const Stored stored(n * d, storage);
      std::vector<float> direction = floats(depth), rows = floats(n * stride), margin = floats(n + lanes), square(margin);
      for (int64_t j = 0; j < d; ++j) direction[static_cast<size_t>(j)] = static_cast<float>(normal());
      k.centre(stored.bytes.data(), stored.bytes.data(), storage, n, d, direction.data(), stride, rows.data(), margin.data(), square.data());
      const auto x = [&](int64_t i, int64_t j) { return stored.values[static_cast<size_t>(i * d + j)] - stored.values[static_cast<size_t>(j)]; };
      bool ok = true;
      for (int64_t i = 0; i < n; ++i) {
        double u = 0, s = 0;
        for (int64_t j = 0; j < depth; ++j) {
          const double v = j < d ? x(i, j) : 0;
          ok = ok && close(rows[static_cast<size_t>(i * stride + j)], v, 1e-6);
          u += v * direction[static_cast<size_t>(j)];
          s += v * v;
        }
        ok = ok && close(margin[static_cast<size_t>(i)], u, 1e-4) && close(square[static_cast<size_t>(i)], s, 1e-4);
      }
      check(ok, "centre, " + sizes);

      std::vector<float> v = floats(columns * depth), c = floats(columns);
      for (auto* all : {&v, &c})
        for (float& value : *all) value = static_cast<float>(normal());
      k.project(rows.data(), n, stride, depth, v.data(), columns, rows.data() + depth);
      const std::vector<double> w = inverse_lower(cholesky(positive_definite(d, 0.5), d), d);
      std::vector<float> packed = floats(k.packed_factor_size(d, true)), z = floats(n * wide);
      k.pack_factor_float(w.data(), d, 1.0, packed.data());
      k.whiten(rows.data(), n, stride, d, packed.data(), wide, z.data());
      ok = true;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t q = 0; q < columns; ++q) {
          double p = 0, size = 0;
          for (int64_t j = 0; j < d; ++j) p += x(i, j) * v[static_cast<size_t>(q * depth + j)], size += std::fabs(x(i, j) * v[static_cast<size_t>(q * depth + j)]);
          ok = ok && std::fabs(rows[static_cast<size_t>(i * stride + depth + q)] - p) <= 1e-5 * (1 + size);
        }
        for (int64_t q = 0; q < wide; ++q) {
          double y = 0, size = 0;
          for (int64_t j = 0; q < d && j <= q; ++j) y += x(i, j) * w[static_cast<size_t>(q * d + j)], size += std::fabs(x(i, j) * w[static_cast<size_t>(q * d + j)]);
          ok = ok && std::fabs(z[static_cast<size_t>(i * wide + q)] - y) <= 1e-5 * (1 + size);
        }
      }
      check(ok, "project and whiten, " + sizes);

      // All pairs at once, and those of some rows a by themselves.
      const int64_t pairs = n * (n - 1) / 2, whole = n + lanes;
      std::vector<float> product = floats(pairs), plain(product), spread = floats(pairs + lanes), norm(spread), sign = floats(columns);
      std::vector<float> signed_square = floats(whole), all(signed_square);
      for (float& value : sign) value = below(2) ? 1.0f : -1.0f;
      const int64_t half = n / 2, before = half * (n - 1) - half * (half - 1) / 2;
      k.row_squares(rows.data() + depth, n, stride, columns, sign.data(), square.data(), signed_square.data(), all.data());
      k.pair_products(rows.data(), n, stride, depth, columns, sign.data(), 0, half, product.data());
      k.pair_products(rows.data(), n, stride, depth, columns, sign.data(), half, n - 1, product.data() + before);
      k.pair_products(z.data(), n, wide, depth, 0, nullptr, 0, n - 1, plain.data());
      k.pair_spread(margin.data(), n, -1, 0, n - 1, spread.data());
      k.pair_spread(square.data(), n, 1, 0, n - 1, norm.data());
      // y_a' S y_b over the stored row, over its last columns alone, and the sum of the sizes of its terms
      const auto inner = [&](int64_t a, int64_t b, int64_t from, double* size) {
        double total = 0;
        for (int64_t j = from; j < stride; ++j) {
          const double term = static_cast<double>(rows[static_cast<size_t>(a * stride + j)]) * rows[static_cast<size_t>(b * stride + j)];
          total += j < depth || sign[static_cast<size_t>(j - depth)] > 0 ? term : -term;
          *size += std::fabs(term);
        }
        return total;
      };
      ok = true;
      for (int64_t i = 0; i < n; ++i) {
        double size = 0;
        const double expected = inner(i, i, depth, &size);
        ok = ok && std::fabs(signed_square[static_cast<size_t>(i)] - square[static_cast<size_t>(i)] - expected) <= 1e-5 * (1 + size + square[static_cast<size_t>(i)]);
        ok = ok && close(all[static_cast<size_t>(i)], square[static_cast<size_t>(i)] + size, 1e-5);
      }
      check(ok, "squares of rows, " + sizes);
      ok = true;
      size_t at = 0;
      for (int64_t a = 0; a < n; ++a)
        for (int64_t b = a + 1; b < n; ++b, ++at) {
          double size = 1, whitened = 0, length = 1;
          const double expected = inner(a, b, 0, &size);
          for (int64_t j = 0; j < depth; ++j) {
            const double term = static_cast<double>(z[static_cast<size_t>(b * wide + j)]) * z[static_cast<size_t>(a * wide + j)];
            whitened += term;
            length += std::fabs(term);
          }
          ok = ok && std::fabs(product[at] - expected) <= 1e-5 * size && std::fabs(plain[at] - whitened) <= 1e-5 * length;
          ok = ok && spread[at] == margin[static_cast<size_t>(b)] - margin[static_cast<size_t>(a)];
          ok = ok && norm[at] == square[static_cast<size_t>(b)] + square[static_cast<size_t>(a)];
        }
      check(ok, "products of pairs, " + sizes);
    }

  // From sums to leverages to weights, and back to float.
  const std::vector<double> weight = {4, 2, -1};
  const WeightSteps steps{weight.data(), 2, (1023 - 1) << 1, 2, 51};  // t < 3/4, t < 1, and above
  PairScale s;
  s.unscale = 2;
  s.factor = 3;
  s.margin_scale = 0.5;
  s.margin_error = 0.25;
  for (int64_t n : kSizes) {
    std::vector<float> product = floats(n), square(product), error(product), norm = floats(n + lanes), margin(norm), out(product);
    std::vector<double> full(static_cast<size_t>(n + lanes)), screened(full);
    std::vector<float> bound(static_cast<size_t>(n), 7.0f);
    for (size_t q = 0; q < product.size(); ++q) {
      product[q] = static_cast<float>(below(5));
      square[q] = static_cast<float>(below(12));
      error[q] = static_cast<float>(below(3));
      norm[q] = static_cast<float>(below(3));
      margin[q] = static_cast<float>(below(9) - 4);
    }
    const bool zero = std::count(margin.begin(), margin.begin() + n, 0.0f) > 0;
    check(k.pair_leverages(n, product.data(), square.data(), margin.data(), error.data(), s, full.data()) == zero, "margins of zero are told");
    check(k.pair_leverages_screened(n, product.data(), square.data(), margin.data(), s, screened.data()) == zero, "margins of zero are told");
    const double largest = k.pair_weights(n, screened.data(), margin.data(), norm.data(), s, steps, bound.data());
    k.leverages_up(n, full.data(), out.data());
    bool ok = true;
    double most = -1;
    for (size_t q = 0; q < product.size(); ++q) {
      const double f = std::max(0.0f, square[q] - 2 * product[q]);
      ok = ok && close(full[q], 3 * std::pow((std::sqrt(f) + error[q]) * 2, 2), 1e-6) && close(screened[q], 3 * f, 1e-12);
      ok = ok && static_cast<double>(out[q]) >= full[q] && static_cast<double>(out[q]) <= full[q] * (1 + 1e-6);
      const double t = 2 * std::max(0.0, 0.5 * std::fabs(margin[q]) - 0.25 * norm[q]), w = t < 0.75 ? 4 : t < 1 ? 2 : -1;
      const double expected = w < 0 ? -1 : w * screened[q];
      ok = ok && static_cast<double>(bound[q]) >= expected && close(bound[q], expected, 1e-6) && (bound[q] == 0) == (expected == 0);
      most = std::max<double>(most, bound[q]);
    }
    check(ok && largest == most, "from sums to bounds, n = " + std::to_string(n));
    const float huge = std::numeric_limits<float>::infinity();
    for (const float bad : {huge, huge - huge}) {
      margin[0] = 1;
      square[0] = bad;
      check(k.pair_leverages(n, product.data(), square.data(), margin.data(), error.data(), s, full.data()) && full[0] == huge, "out of reach");
      check(k.pair_leverages_screened(n, product.data(), square.data(), margin.data(), s, screened.data()) && screened[0] == huge, "out of reach");
    }
    const std::vector<float> known(static_cast<size_t>(n), 0.5f);
    k.known_leverages(n, known.data(), 4, full.data());
    check(full[0] == 2 && *std::max_element(full.begin(), full.begin() + n) <= 2, "known leverages");
  }
}

void matrices_and_losses() {
  current = "information_matrix, bradley_terry";
  for (int64_t d : kSizes)
    for (int64_t n : {0, 1, 255, 257, 600}) {
      const Storage s = kStorages[below(4)];
      const Stored rows(n * d, s);
      std::vector<double> weight = normals(n), choice(static_cast<size_t>(n)), beta = normals(n);
      for (double& w : weight) w = std::fabs(w);
      for (double& y : choice) y = 0.5 * static_cast<double>(below(3));
      Rows view;
      view.rows = rows.bytes.data();
      view.storage = s;
      view.n = n;
      view.d = d;
      std::vector<double> m(static_cast<size_t>(d * d)), again(m);
      information_matrix(view, weight.data(), 0.25, m.data(), Call{1, nullptr});
      information_matrix(view, weight.data(), 0.25, again.data(), Call{3, nullptr});
      check(m == again, "same bits for one and three threads");
      const std::vector<double> theta = normals(d);
      std::vector<double> g(static_cast<size_t>(d)), eg(static_cast<size_t>(d), 0.0), gb(static_cast<size_t>(n));
      const double loss = bradley_terry_loss(view, choice.data(), theta.data(), beta.data(), weight.data(), g.data(), gb.data(), Call{2, nullptr});
      double expected = 0;
      bool ok = true;
      std::vector<double> em(static_cast<size_t>(d * d), 0.0);
      for (int64_t t = 0; t < n; ++t) {
        const double* x = rows.values.data() + t * d;
        const auto at = static_cast<size_t>(t);
        double u = 0;
        for (int64_t k = 0; k < d; ++k) u += x[k] * theta[static_cast<size_t>(k)];
        const double b = beta[at], y = choice[at], v = weight[at];
        expected += v * (y * logistic_loss(b * u) + (1 - y) * logistic_loss(-b * u));
        const double r = v * (logistic(b * u) - y);
        ok = ok && close(gb[at], r * u, 1e-9);
        for (int64_t i = 0; i < d; ++i) {
          eg[static_cast<size_t>(i)] += r * b * x[i];
          for (int64_t j = 0; j < d; ++j) em[static_cast<size_t>(i * d + j)] += v * x[i] * x[j];
        }
      }
      for (int64_t i = 0; i < d; ++i) em[static_cast<size_t>(i * d + i)] += 0.25;
      for (size_t k = 0; k < em.size(); ++k) ok = ok && close(m[k], em[k], 1e-10);
      information_matrix(view, weight.data(), 0.25, again.data(), Call{3, nullptr}, true);
      for (int64_t i = 0; i < d; ++i)
        for (int64_t j = 0; j < d; ++j) {
          const double size = std::sqrt(em[static_cast<size_t>(i * d + i)] * em[static_cast<size_t>(j * d + j)]);
          const auto at = static_cast<size_t>(i * d + j);
          ok = ok && std::fabs(again[at] - em[at]) <= 1e-4 * size;
        }
      for (size_t k = 0; k < eg.size(); ++k) ok = ok && close(g[k], eg[k], 1e-9);
      std::vector<double> sum(static_cast<size_t>(d)), product(sum), cells(static_cast<size_t>(3 * d)), shared(cells);
      std::vector<int64_t> row(static_cast<size_t>(n)), cell(row);
      for (size_t q = 0; q < row.size(); ++q) {
        row[q] = below(n);
        cell[q] = below(3);
      }
      weighted_sum(view, beta.data(), sum.data(), Call{2, nullptr});
      hessian_vector(view, weight.data(), theta.data(), product.data(), Call{2, nullptr});
      weighted_sum_by_cell(view, row.data(), beta.data(), cell.data(), n, 3, cells.data(), Call{1, nullptr});
      weighted_sum_by_cell(view, row.data(), beta.data(), cell.data(), n, 3, shared.data(), Call{3, nullptr});
      check(cells == shared, "same bits for one and three threads");
      for (int64_t j = 0; j < d; ++j) {
        double by_loop = 0, by_matrix = 0, of_cells = 0, of_rows = 0;
        for (int64_t t = 0; t < n; ++t) {
          const auto at = static_cast<size_t>(t);
          by_loop += beta[at] * rows.values[static_cast<size_t>(t * d + j)];
          of_rows += cell[at] == 1 ? beta[at] * rows.values[static_cast<size_t>(row[at] * d + j)] : 0;
        }
        for (int64_t i = 0; i < d; ++i)
          by_matrix += (em[static_cast<size_t>(j * d + i)] - (i == j ? 0.25 : 0)) * theta[static_cast<size_t>(i)];
        of_cells = cells[static_cast<size_t>(d + j)];
        ok = ok && close(sum[static_cast<size_t>(j)], by_loop, 1e-10) && close(of_cells, of_rows, 1e-10) &&
             close(product[static_cast<size_t>(j)], by_matrix, 1e-9);
      }
      check(ok && close(loss, expected, 1e-10), "n = " + std::to_string(n) + ", d = " + std::to_string(d));
    }
}

// Rationalities with ties, zeros, neighbours that differ in the last bits, and the ends of the range.
double awkward_rationality() {
  switch (below(12)) {
    case 0: return 0;
    case 1: return 1;
    case 2: return 1 + 2e-16 * static_cast<double>(below(4));
    case 3: return 1 + 1e-13 * static_cast<double>(below(30));
    case 4: return 4.9e-324 * static_cast<double>(1 + below(3));
    case 5: return std::pow(10.0, 25 * normal());
    case 6: return 1e100;
    default: return std::exp(normal());
  }
}

void best_teachers() {
  current = "best teacher";
  for (int round = 0; round < 400; ++round) {
    const int64_t m = 1 + below(12), categories = 1 + below(3);
    std::vector<double> beta(static_cast<size_t>(m * categories));
    for (double& b : beta) b = round % 2 ? awkward_rationality() : std::exp(normal());
    std::vector<uint8_t> open(beta.size());
    for (uint8_t& o : open) o = below(3) > 0;
    const SortedTeachers table(beta.data(), open.data(), nullptr, m, categories);
    for (double u : {0.0, 1e-300, 0.1, 1.0, 5.0, -3.0, 40.0, 710.0, 1e6, 7e-98})
      for (int32_t c = 0; c < categories; ++c) {
        double largest = -1;
        for (int64_t j = 0; j < m; ++j)
          if (open[static_cast<size_t>(j * categories + c)]) largest = std::max(largest, choice_weight(u, beta[static_cast<size_t>(j * categories + c)]));
        int64_t teacher = -1;
        double weight = 0;
        for (int64_t j = m; j-- > 0;) {
          const auto at = static_cast<size_t>(j * categories + c);
          if (!open[at] || choice_weight(u, beta[at]) < largest * (1 - kTie)) continue;
          teacher = j;
          weight = choice_weight(u, beta[at]);
        }
        const SortedTeachers::Best best = table.best(u, c);
        check(best.teacher == teacher && best.weight == weight, "the first within the window");
      }
  }
}

// Every search against a scan of all teachers, while teachers are removed one after another.
void teachers() {
  current = "teachers";
  for (int round = 0; round < 600; ++round) {
    const int64_t m = 1 + below(round % 10 ? 20 : 300), categories = 1 + below(2);
    std::vector<double> beta(static_cast<size_t>(m * categories)), cost(beta.size());
    const bool subnormal = round % 7 == 0;  // exp(-beta u), but not the weight
    for (double& b : beta)
      b = subnormal ? 1e90 * static_cast<double>(700 + below(50)) + 1e88 * normal() : round % 3 ? std::exp(normal()) : awkward_rationality();
    const int64_t prices = below(6);
    for (size_t k = 0; k < cost.size(); ++k) {
      const double noise = std::exp(normal());
      cost[k] = prices == 0   ? 2
                : prices == 1 ? noise
                : prices == 2 ? std::clamp(std::pow(beta[k], 0.7), 1e-100, 1e100)
                : prices == 3 ? std::clamp(beta[k] * std::pow(noise, 0.05), 1e-100, 1e100)
                : prices == 4 ? std::pow(10.0, static_cast<double>(below(201) - 100))
                              : static_cast<double>(1 + below(3));
    }
    std::vector<uint8_t> open(beta.size());
    for (uint8_t& o : open) o = below(5) > 0;
    std::vector<int64_t> capacity(static_cast<size_t>(m));
    for (int64_t& left : capacity) left = below(9) - 1;
    const bool costs = below(3) > 0;
    TeacherTable table(beta.data(), open.data(), capacity.data(), costs ? cost.data() : nullptr, m, categories);
    const double margins[] = {0.0, 1e-300, 0.02, 0.1, 1.0, 5.0, -3.0, 40.0, 300.0, 715.0, 740.0, 1e6, 7.2e-98, normal()};
    const double leverages[] = {0.0, 5e-324, 1e-300, 1e-12, 1.0, 1e4, 1e100, 1e300, std::exp(normal())};
    for (int step = 0; step < 6; ++step) {
      const auto c = static_cast<int32_t>(below(categories));
      const double u = subnormal ? 1e-90 : margins[below(14)];
      const Worth worth{leverages[below(9)], costs && below(4) > 0};
      std::vector<int64_t> excluded, asked;
      for (int64_t j = 0; j < m; ++j)
        if (below(8) == 0) (below(2) ? excluded : asked).push_back(j);
      std::reverse(asked.begin(), asked.end());
      if (step % 2) excluded.clear(), asked.clear();
      const Closed closed{excluded.data(), excluded.data() + excluded.size(), asked.empty() ? nullptr : &asked};
      std::vector<double> value(static_cast<size_t>(m), -1), weights;
      double largest = -1;
      for (int64_t j = 0; j < m; ++j) {
        const auto at = static_cast<size_t>(j * categories + c);
        if (!open[at] || capacity[static_cast<size_t>(j)] == 0 || closed(j)) continue;
        weights.push_back(choice_weight(u, beta[at]));
        value[static_cast<size_t>(j)] = worth(weights.back()) / (costs ? cost[at] : 1);
        largest = std::max(largest, value[static_cast<size_t>(j)]);
      }
      const double found = table.largest(worth, u, c, closed);
      check(found <= largest && (costs || largest <= 0 ? found == largest : found >= largest * (1 - 1e-12)), "the largest value");
      for (double floor : {found * (1 - kTie), found * 0.7, std::nextafter(found, 1e308), 0.0}) {
        if (floor < 0 || !std::isfinite(floor)) continue;
        int64_t first = 0;
        while (first < m && !(value[static_cast<size_t>(first)] >= floor)) ++first;
        const TeacherTable::Best best = table.smallest_reaching(floor, worth, u, c, closed);
        check(best.teacher == (first < m ? first : -1), "the first that reaches a floor");
        check(first == m || best.weight == choice_weight(u, beta[static_cast<size_t>(first * categories + c)]), "its weight");
      }
      const int64_t count = 1 + below(4);
      std::sort(weights.begin(), weights.end(), std::greater<>());
      std::vector<double> most = {-7};
      table.largest_weights(count, u, c, closed, most);
      std::sort(most.begin() + 1, most.end(), std::greater<>());
      bool same = most[0] == -7 && most.size() - 1 == std::min(weights.size(), static_cast<size_t>(count));
      for (size_t k = 1; same && k < most.size(); ++k) same = std::fabs(most[k] - weights[k - 1]) <= 1e-12 * weights[k - 1];
      check(same, "the largest weights");
      for (int64_t gone = below(1 + m / 2); gone-- > 0;) {
        const int64_t j = below(m);
        if (capacity[static_cast<size_t>(j)] == 0) continue;
        capacity[static_cast<size_t>(j)] = 0;
        table.remove(j);
      }
    }
  }
}

// Bounds of a category by weight, or weight per cost: above every pair's, and falling as |u| grows.
void category_bounds() {
  current = "category bounds";
  for (int round = 0; round < 60; ++round) {
    const int64_t m = 1 + below(30);
    std::vector<double> beta(static_cast<size_t>(m)), cost(beta.size());
    for (double& b : beta) b = round % 2 ? std::exp(normal()) : awkward_rationality();
    for (double& c : cost) c = round % 4 < 2 ? std::exp(normal()) : std::pow(10.0, static_cast<double>(below(201) - 100));
    const std::vector<uint8_t> open(beta.size(), 1);
    const std::vector<int64_t> capacity(beta.size(), -1);
    SelectionProblem p;
    p.rationality = beta.data();
    p.m = m;
    p.categories = 1;
    p.available = open.data();
    p.capacity = capacity.data();
    p.cost = round % 3 ? cost.data() : nullptr;
    const Admissible admissible(p);
    std::vector<double> margins;
    for (int k = 0; k < 300; ++k) margins.push_back(std::pow(10.0, 3 * normal()));
    for (int k = 0; k < 300; ++k) margins.push_back(700 + 50 * static_cast<double>(k) / 300);
    for (int k = 0; k < 100; ++k) margins.push_back(std::nextafter(margins[static_cast<size_t>(k)], 1e308));
    std::sort(margins.begin(), margins.end());
    double before = INFINITY;
    bool falls = true, bounds = true;
    for (double u : margins) {
      const double bound = admissible.category_bound(0, u);
      falls = falls && bound <= before * (1 + 1e-12);
      before = bound;
      for (int64_t j = 0; j < m; ++j) {
        const double w = choice_weight(u, beta[static_cast<size_t>(j)]);
        bounds = bounds && bound * (1 + 1e-12) >= w / (p.cost ? cost[static_cast<size_t>(j)] : 1) && (bound > 0 || w == 0);
      }
    }
    check(falls, "falls in the margin");
    check(bounds, "above every pair");
  }
}

// Prompts of one to many completions, in memory and in a file, against plain loops.
struct Prompts {
  Stored stored;
  std::vector<int64_t> offsets, pair_offsets, groups;
  Rows view;
  std::vector<double> reward, weight, base, margin;
  std::vector<uint8_t> allowed;

  Prompts(const std::vector<int64_t>& counts, int64_t d, Storage s)
      : stored(std::accumulate(counts.begin(), counts.end(), int64_t{0}) * d, s), offsets{0}, pair_offsets{0} {
    for (int64_t count : counts) {
      offsets.push_back(offsets.back() + count);
      pair_offsets.push_back(pair_offsets.back() + count * (count - 1) / 2);
    }
    const auto prompts = static_cast<int64_t>(counts.size());
    groups = {0, prompts / 3, prompts / 3, prompts};
    view.rows = stored.bytes.data();
    view.storage = s;
    view.d = d;
    view.prompts = prompts;
    view.prompt_offsets = offsets.data();
    view.pair_offsets = pair_offsets.data();
    view.n = pair_offsets.back();
    reward = normals(d);
    weight = normals(prompts);
    margin.resize(static_cast<size_t>(offsets.back()));
    for (int64_t q = 0; q < offsets.back(); ++q) {
      allowed.push_back(below(3) > 0);
      base.push_back(allowed.back() ? 0.01 + static_cast<double>(below(1000)) : 0.0);
      kernels().margin(view.at(q), s, 1, d, reward.data(), &margin[static_cast<size_t>(q)], nullptr);
    }
    for (int64_t p = 0; p < prompts; ++p) {
      const auto first = static_cast<size_t>(offsets[static_cast<size_t>(p)] + below(counts[static_cast<size_t>(p)]));
      allowed[first] = 1;
      base[first] = 1;
      double total = 0;
      for (int64_t q = begin(p); q < begin(p + 1); ++q) total += base[static_cast<size_t>(q)];
      for (int64_t q = begin(p); q < begin(p + 1); ++q) base[static_cast<size_t>(q)] /= total;
    }
  }
  int64_t begin(int64_t p) const { return offsets[static_cast<size_t>(p)]; }
  double value(int64_t row, int64_t j) const { return stored.values[static_cast<size_t>(row * view.d + j)]; }

  struct Best {
    std::vector<int64_t> row;
    std::vector<double> best, mean;
  };
  Best best(const Rows& pool, int threads) const {
    Best out{std::vector<int64_t>(weight.size()), std::vector<double>(weight.size()), std::vector<double>(static_cast<size_t>(3 * pool.d))};
    best_completions(pool, reward.data(), weight.data(), groups.data(), 3, allowed.data(), out.row.data(), out.best.data(),
                     out.mean.data(), Call{threads, nullptr});
    return out;
  }
  struct Softmax {
    std::vector<double> log_partition, expected, mean, probability;
  };
  Softmax softmax(const Rows& pool, double temperature, bool uniform, int threads) const {
    const size_t prompts = weight.size();
    Softmax out{std::vector<double>(prompts), std::vector<double>(prompts), std::vector<double>(static_cast<size_t>(3 * pool.d)), std::vector<double>(margin.size())};
    softmax_completions(pool, reward.data(), temperature, uniform ? nullptr : base.data(), weight.data(), groups.data(), 3,
                        out.log_partition.data(), out.expected.data(), out.mean.data(), out.probability.data(), Call{threads, nullptr});
    return out;
  }

  bool is_best(const Best& got) const {
    std::vector<double> mean(got.mean.size(), 0.0);
    bool ok = true;
    for (int64_t p = 0; p < view.prompts; ++p) {
      int64_t row = -1;
      for (int64_t q = begin(p); q < begin(p + 1); ++q)
        if (allowed[static_cast<size_t>(q)] && (row < 0 || margin[static_cast<size_t>(q)] > margin[static_cast<size_t>(row)])) row = q;
      const auto at = static_cast<size_t>(p);
      ok = ok && got.row[at] == row && got.best[at] == margin[static_cast<size_t>(row)];
      add(mean, p, row, weight[at]);
    }
    return ok && same(mean, got.mean);
  }
  bool is_softmax(const Softmax& got, double temperature, bool uniform) const {
    std::vector<double> mean(got.mean.size(), 0.0);
    bool ok = true;
    for (int64_t p = 0; p < view.prompts; ++p) {
      const double each = 1.0 / static_cast<double>(begin(p + 1) - begin(p));
      const auto part = [&](int64_t q) { return uniform ? each : base[static_cast<size_t>(q)]; };
      double top = -std::numeric_limits<double>::infinity(), total = 0, expected = 0;
      for (int64_t q = begin(p); q < begin(p + 1); ++q)
        if (part(q) > 0) top = std::max(top, margin[static_cast<size_t>(q)]);
      const auto share = [&](int64_t q) { return part(q) > 0 ? part(q) * std::exp((margin[static_cast<size_t>(q)] - top) / temperature) : 0.0; };
      for (int64_t q = begin(p); q < begin(p + 1); ++q) total += share(q);
      const auto at = static_cast<size_t>(p);
      for (int64_t q = begin(p); q < begin(p + 1); ++q) {
        const double pi = share(q) / total;
        expected += pi * margin[static_cast<size_t>(q)];
        ok = ok && std::fabs(got.probability[static_cast<size_t>(q)] - pi) <= 1e-12 * pi;
        add(mean, p, q, weight[at] * pi);
      }
      ok = ok && close(got.expected[at], expected, 1e-11) && close(got.log_partition[at], top / temperature + std::log(total), 1e-12);
    }
    return ok && same(mean, got.mean);
  }

 private:
  void add(std::vector<double>& mean, int64_t p, int64_t row, double scale) const {
    const int64_t group = p < groups[1] ? 0 : 2;
    for (int64_t j = 0; j < view.d; ++j) mean[static_cast<size_t>(group * view.d + j)] += scale * value(row, j);
  }
  static bool same(const std::vector<double>& a, const std::vector<double>& b) {
    bool ok = true;
    for (size_t k = 0; k < a.size(); ++k) ok = ok && close(a[k], b[k], 1e-10);
    return ok;
  }
};

void prompts() {
  current = "best_completions, softmax_completions";
  const std::vector<std::vector<int64_t>> shapes = {{1}, {2, 3}, {1, 1, 1, 7, 8, 9}, {1030, 1, 64, 65}, {5, 4500, 3, 2}, std::vector<int64_t>(200, 8)};
  for (int64_t d : {1, 7, 16, 33, 70})
    for (const auto& counts : shapes) {
      const Storage s = kStorages[below(4)];
      const Prompts p(counts, d, s);
      const auto best = p.best(p.view, 1);
      check(p.is_best(best), "best, d = " + std::to_string(d));
      OnDisk disk(p.stored.bytes, s, p.offsets.back(), d, RowFile::least_memory(d) * (1 + below(20)));
      Rows in_file = p.view;
      in_file.rows = nullptr;
      in_file.file = disk.rows.get();
      for (const Rows& pool : {p.view, in_file})
        for (int threads : {1, 3}) {
          const auto again = p.best(pool, threads);
          check(again.row == best.row && again.best == best.best && again.mean == best.mean, "best: the same bits");
        }
      for (double temperature : {0.1, 4.0}) {
        const bool uniform = temperature > 1;
        const auto softmax = p.softmax(p.view, temperature, uniform, 1);
        check(p.is_softmax(softmax, temperature, uniform), "softmax, d = " + std::to_string(d));
        for (const Rows& pool : {p.view, in_file}) {
          const auto again = p.softmax(pool, temperature, uniform, 3);
          check(again.log_partition == softmax.log_partition && again.expected == softmax.expected && again.mean == softmax.mean &&
                    again.probability == softmax.probability,
                "softmax: the same bits");
        }
      }
    }
  for (int64_t n : {1, 3, 8, 13}) {
    std::vector<double> x(static_cast<size_t>(n)), e(x);
    for (double& v : x) v = below(9) ? -std::exp(3 * normal()) : 0.0;
    x[0] = -std::numeric_limits<double>::infinity();
    e = x;
    kernels().exponentials(e.data(), n);
    bool ok = e[0] == 0;
    for (size_t q = 1; q < e.size(); ++q) ok = ok && std::fabs(e[q] - std::exp(x[q])) <= 4e-16 * std::exp(x[q]) + 1e-323;
    check(ok, "exponentials");
  }
  const Prompts p({3, 2000, 2}, 2, Storage::f64);
  for (int64_t from : {1, 900}) {
    std::vector<double> rows = p.stored.values;
    for (size_t k = static_cast<size_t>(2 * from); k < rows.size(); ++k) rows[k] = k % 2 ? 1e300 : 1.0;
    Rows view = p.view;
    view.rows = rows.data();
    Prompts large = p;
    large.reward = {1.0, 1e10};
    std::string message;
    try {
      large.softmax(view, 1.0, true, 3);
    } catch (const std::overflow_error& error) {
      message = error.what();
    }
    check(message == "the reward of completion " + std::to_string(from) + " is not finite", message);
  }
}

// The definition: every admissible pair anew at every pick, leverage by a fresh factor.
void row_files() {
  current = "row_file";
  for (int round = 0; round < 40; ++round) {
    const int64_t n = 1 + below(300), d = 1 + below(40);
    const Storage s = kStorages[below(4)];
    const Stored stored(n * d, s);
    const auto size = static_cast<size_t>(d * storage_bytes(s));
    OnDisk disk(stored.bytes, s, n, d, RowFile::least_memory(d) * (1 + below(20)));
    std::atomic<int> wrong{0};
    const int64_t per_chunk = disk.rows->block_rows();
    parallel_for(chunks_of(n, per_chunk), Call{4, nullptr}, [&](int64_t chunk, int) {
      const int64_t start = chunk * per_chunk, stop = std::min(n, start + per_chunk);
      std::vector<char> block(static_cast<size_t>(stop - start) * size);
      disk.rows->expect(n - 1 - start);
      disk.rows->read(start, stop, block.data());
      wrong += std::memcmp(block.data(), stored.bytes.data() + static_cast<size_t>(start) * size, block.size()) != 0;
      const void* row = disk.rows->row(n - 1 - start);
      wrong += std::memcmp(row, stored.bytes.data() + static_cast<size_t>(n - 1 - start) * size, size) != 0;
    });
    check(wrong == 0, "rows as stored");
    disk.rows->check();
    if (ftruncate(fileno(disk.file), std::ftell(disk.file) - 1) != 0) check(false, "truncation");
    std::string message;
    try {
      parallel_for(4, Call{4, nullptr}, [&](int64_t, int) { disk.rows->row(n - 1); });
    } catch (const FileError& error) {
      message = error.what();
    }
    check(message.find("a file: has ") == 0, "a shorter file is refused: " + message);
  }
  std::vector<float> x(300 * 7, 1.0f);
  x[123 * 7 + 3] = std::numeric_limits<float>::infinity();
  std::vector<char> bytes(x.size() * 4);
  std::memcpy(bytes.data(), x.data(), bytes.size());
  OnDisk disk(bytes, Storage::f32, 300, 7, RowFile::least_memory(7) * 8);
  std::vector<float> to(x.size());
  for (int again = 0; again < 2; ++again) {
    int64_t bad = -1;
    try {
      disk.rows->read(100, 200, to.data());
    } catch (const NonfiniteRow& found) {
      bad = found.row;
    }
    check(bad == 123, "the row that is not finite");
  }
  disk.rows->read(0, 123, to.data());
  disk.rows->read(124, 300, to.data());
  check(disk.rows->first_nonfinite(0, 123) == -1 && disk.rows->first_nonfinite(50, 300) == 123, "first_nonfinite");
}

void selection() {
  current = "selection";
  for (int round = 0; round < 60; ++round) {
    const bool pairs = round % 3 == 2;
    const int64_t d = 1 + below(20), m = 1 + below(8), categories = 1 + below(3), size = below(12);
    const Storage s = kStorages[below(4)];
    std::vector<int64_t> prompt_offsets = {0}, pair_offsets = {0};
    int64_t stored_rows = 1 + below(90), n = stored_rows;
    if (pairs) {
      stored_rows = n = 0;
      for (int64_t p = 0, prompts = 1 + below(12); p < prompts; ++p) {
        const int64_t k = 1 + below(6);
        stored_rows += k;
        n += k * (k - 1) / 2;
        prompt_offsets.push_back(stored_rows);
        pair_offsets.push_back(n);
      }
    }
    const Stored rows(stored_rows * d, s);
    const auto groups = static_cast<int64_t>(pairs ? prompt_offsets.size() - 1 : static_cast<size_t>(n));
    std::vector<int32_t> category(static_cast<size_t>(groups));
    for (int32_t& c : category) c = static_cast<int32_t>(below(categories));
    const std::vector<double> theta = normals(d), matrix = positive_definite(d, 0.3);
    const std::vector<double> factor = cholesky(matrix, d), inverse = inverse_lower(factor, d);
    std::vector<double> beta = normals(m * categories), cost(beta.size());
    for (double& b : beta) b = std::exp(b);
    for (double& c : cost) c = std::exp(normal());
    std::vector<uint8_t> open(beta.size());
    for (uint8_t& o : open) o = below(5) > 0;
    std::vector<int64_t> capacity(static_cast<size_t>(m));
    for (int64_t& c : capacity) c = below(2) ? -1 : below(4);
    SelectionProblem p;
    p.pool.rows = rows.bytes.data();
    p.pool.storage = s;
    p.pool.n = n;
    p.pool.d = d;
    p.pool.category = category.data();
    if (pairs) {
      p.pool.prompt_offsets = prompt_offsets.data();
      p.pool.pair_offsets = pair_offsets.data();
      p.pool.prompts = groups;
    }
    p.reward = theta.data();
    p.rationality = beta.data();
    p.m = m;
    p.categories = categories;
    p.matrix = matrix.data();
    p.factor = factor.data();
    p.inverse_factor = inverse.data();
    p.available = open.data();
    p.capacity = capacity.data();
    p.cost = below(3) == 0 ? cost.data() : nullptr;
    p.size = size;
    p.repeats = 1 + below(3);
    const Selection lazy = select_batch(p, Call{1 + static_cast<int>(below(4)), nullptr}, nullptr);
    p.dense = true;
    const Selection dense = select_batch(p, Call{2, nullptr}, nullptr);
    check(lazy.conversation == dense.conversation && lazy.teacher == dense.teacher && lazy.gain == dense.gain, "lazy equals dense");
    check(close(lazy.best_possible, dense.best_possible, 1e-9), "certificates agree");
    OnDisk disk(rows.bytes, s, stored_rows, d, RowFile::least_memory(d) * (1 + below(20)));
    SelectionProblem from_file = p;
    from_file.dense = below(2) == 0;
    from_file.pool.rows = nullptr;
    from_file.pool.file = disk.rows.get();
    const Selection streamed = select_batch(from_file, Call{1 + static_cast<int>(below(4)), nullptr}, nullptr);
    check(streamed.conversation == lazy.conversation && streamed.gain == lazy.gain, "a file gives the same batch");

    std::vector<double> now = matrix;
    std::vector<int64_t> left = capacity, asked(static_cast<size_t>(n), 0);
    std::vector<std::vector<bool>> done(static_cast<size_t>(n), std::vector<bool>(static_cast<size_t>(m)));
    std::vector<double> difference(static_cast<size_t>(n * d));
    int64_t row = 0;
    if (!pairs) difference = rows.values;
    for (size_t q = 0; pairs && q + 1 < prompt_offsets.size(); ++q)
      for (int64_t a = prompt_offsets[q]; a < prompt_offsets[q + 1]; ++a)
        for (int64_t b = a + 1; b < prompt_offsets[q + 1]; ++b, ++row)
          for (int64_t k = 0; k < d; ++k) difference[static_cast<size_t>(row * d + k)] = rows.values[static_cast<size_t>(b * d + k)] - rows.values[static_cast<size_t>(a * d + k)];
    for (int64_t step = 0; step <= static_cast<int64_t>(lazy.conversation.size()) && step < size; ++step) {
      const std::vector<double> w = inverse_lower(cholesky(now, d), d);
      double best = -1;
      int64_t bi = -1, bj = -1;
      double bw = 0;
      for (int64_t i = 0; i < n; ++i) {
        if (asked[static_cast<size_t>(i)] >= p.repeats) continue;
        const double* x = difference.data() + i * d;
        const double h = square_of(w, x, d);
        double u = 0;
        for (int64_t k = 0; k < d; ++k) u += x[k] * theta[static_cast<size_t>(k)];
        const int32_t c = p.pool.category_of(i);
        for (int64_t j = 0; j < m; ++j) {
          const auto at = static_cast<size_t>(j * categories + c);
          if (!open[at] || left[static_cast<size_t>(j)] == 0 || done[static_cast<size_t>(i)][static_cast<size_t>(j)]) continue;
          const double weight = choice_weight(u, beta[at]);
          const double value = p.cost ? std::log1p(weight * h) / cost[at] : weight * h;
          if (value > best * (1 + 1e-10)) {
            best = value;
            bi = i;
            bj = j;
            bw = weight;
          }
        }
      }
      if (bi < 0) {
        check(step == static_cast<int64_t>(lazy.conversation.size()), "nothing left");
        break;
      }
      if (step == static_cast<int64_t>(lazy.conversation.size())) {
        check(false, "stopped early");
        break;
      }
      const auto at = static_cast<size_t>(step);
      check(lazy.conversation[at] == bi && lazy.teacher[at] == bj, "the pick of the definition");
      if (lazy.conversation[at] != bi || lazy.teacher[at] != bj) break;
      ++asked[static_cast<size_t>(bi)];
      done[static_cast<size_t>(bi)][static_cast<size_t>(bj)] = true;
      if (left[static_cast<size_t>(bj)] > 0) --left[static_cast<size_t>(bj)];
      const double* x = difference.data() + bi * d;
      for (int64_t r = 0; r < d; ++r)
        for (int64_t k = 0; k < d; ++k) now[static_cast<size_t>(r * d + k)] += bw * x[r] * x[k];
    }
  }
}

struct StopSoon final : Interrupt {
  void poll() override { throw std::runtime_error("stop"); }
};

void threads() {
  current = "threads";
  for (int count : {1, 2, 7, 16}) {
    std::vector<std::atomic<int>> seen(1000);
    parallel_for(1000, Call{count, nullptr}, [&](int64_t chunk, int worker) {
      if (worker < 0 || worker >= count) std::abort();
      ++seen[static_cast<size_t>(chunk)];
    });
    check(std::all_of(seen.begin(), seen.end(), [](const auto& s) { return s == 1; }), "every chunk once");
  }
  bool thrown = false;
  try {
    parallel_for(100, Call{4, nullptr}, [](int64_t chunk, int) {
      if (chunk == 50) throw std::runtime_error("body");
    });
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  check(thrown, "an exception of a body reaches the caller");
  StopSoon stop;
  thrown = false;
  try {
    parallel_for(1000, Call{3, &stop}, [](int64_t, int) { usleep(200); });
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  check(thrown, "the interrupt hook stops a call");
  std::atomic<int> inner{0};
  parallel_for(8, Call{4, nullptr}, [&](int64_t, int) { parallel_for(8, Call{4, nullptr}, [&](int64_t, int) { ++inner; }); });
  check(inner == 64, "nested calls finish");
#if !defined(__SANITIZE_THREAD__)
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> total{0};
    parallel_for(64, Call{4, nullptr}, [&](int64_t, int) { ++total; });
    _exit(total == 64 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "works in a forked child");
#endif
}

// Nearest bfloat16, ties to even, by its definition: the nearer of the two neighbours.
uint16_t nearest_brain(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const auto down = static_cast<uint16_t>(bits >> 16), up = static_cast<uint16_t>(down + 1);
  const double below = std::fabs(double{x} - double{brain_value(down)}), beyond = std::fabs(double{brain_value(up)} - double{x});
  return below < beyond || (below == beyond && down % 2 == 0) ? down : up;
}

struct Aligned {
  explicit Aligned(int64_t count)
      : at(static_cast<uint16_t*>(std::aligned_alloc(64, static_cast<size_t>(count * 2 + 63) / 64 * 64))) {}
  ~Aligned() { std::free(at); }
  uint16_t* at;
};

void bfloat16_products_match() {
  const Bfloat16Table* table = bfloat16_products();
  if (!table) return;
  for (int64_t n : {1, 31, 32, 33, 70})
    for (int64_t d : {1, 2, 31, 32, 33, 64, 100}) {
      current = "products in bfloat16 " + std::to_string(n) + " x " + std::to_string(d);
      const auto N = static_cast<size_t>(n), D = static_cast<size_t>(d);
      std::vector<uint16_t> v(D * D);
      for (uint16_t& x : v) x = nearest_brain(static_cast<float>(normal()));
      const int64_t wide = (d + 31) / 32 * 32;
      std::vector<float> x(N * D), reward(static_cast<size_t>(wide), 0.0f);
      for (float& value : x) value = static_cast<float>(normal());
      for (size_t j = 0; j < D; ++j) reward[j] = static_cast<float>(normal());
      Aligned packed(table->factor_size(d)), scratch(table->scratch_size(d));
      table->pack_factor(v.data(), d, packed.at);
      std::vector<float> u(N), q(N), r(N), y(N), r2(N), z(static_cast<size_t>((n + 31) / 32 * 32 * wide));
      table->squares(x.data(), Storage::f32, n, d, reward.data(), packed.at, scratch.at, {u.data(), q.data(), r.data(), y.data()});
      table->whitened(x.data(), n, d, reward.data(), packed.at, scratch.at, r2.data(), z.data());
      bool same = true;
      for (size_t i = 0; i < N; ++i) {
        double margin = 0, square = 0, residual = 0, whitened = 0;
        for (size_t k = 0; k < D; ++k) {
          const double value = x[i * D + k], rest = value - double{brain_value(nearest_brain(x[i * D + k]))};
          margin += value * double{reward[k]};
          square += value * value;
          residual += rest * rest;
          double sum = 0;
          for (size_t j = 0; j <= k; ++j)
            sum += double{brain_value(v[k * D + j])} * double{brain_value(nearest_brain(x[i * D + j]))};
          whitened += sum * sum;
          same = same && close(z[i * static_cast<size_t>(wide) + k], sum, 1e-4);
        }
        same = same && close(u[i], margin, 1e-4) && close(q[i], square, 1e-4) && close(r[i], residual, 1e-4 * residual) &&
               r[i] == r2[i] && close(y[i], whitened, 1e-4);
      }
      check(same, "sums of every row");
    }
}

// The kernels against loops over the same nodes, and the driver on laws of every kind.
void softplus() {
  const KernelTable& k = kernels();
  const double root = std::sqrt(3.0), node[] = {-root, 0.0, root}, weight[] = {1.0 / 6, 2.0 / 3, 1.0 / 6};
  for (int64_t vectors : {1, 2, 5}) {
    const int64_t count = vectors * k.float_lanes();
    current = "softplus moments of " + std::to_string(count) + " laws";
    const auto N = static_cast<size_t>(count);
    std::vector<double> mean(N), sd(N), out(5 * N);
    for (size_t i = 0; i < N; ++i) {
      mean[i] = 5 * normal();
      sd[i] = std::fabs(normal());
    }
    k.softplus_hermite(mean.data(), sd.data(), count, node, weight, 3, out.data(), count);
    bool same = true;
    for (size_t i = 0; i < N; ++i) {
      double expected[5] = {};
      for (int q = 0; q < 3; ++q) {
        const double t = mean[i] + sd[i] * node[q], slope = logistic_slope(t) * weight[q];
        const double terms[] = {logistic_loss(-t) * weight[q], logistic(t) * weight[q], slope, t * slope, t * t * slope};
        for (int f = 0; f < 5; ++f) expected[f] += terms[f];
      }
      for (size_t f = 0; f < 5; ++f) same = same && close(out[f * N + i], expected[f], 1e-14);
    }
    check(same, "sums over nodes");
  }
  for (int64_t n : {1, 7, 1024, 1025}) {
    current = "softplus moments of " + std::to_string(n);
    const auto N = static_cast<size_t>(n);
    std::vector<double> mean = normals(n), sd(N), out(5 * N), at(5);
    for (size_t i = 0; i < N; ++i) sd[i] = std::vector<double>{0.0, 0.2, 1.0, 3.0}[i % 4];
    softplus_moments(mean.data(), sd.data(), n, out.data(), Call{3, nullptr});
    bool same = true;
    for (size_t i = 0; i < N; ++i) {
      softplus_moments(&mean[i], &sd[i], 1, at.data(), Call{1, nullptr});
      for (size_t f = 0; f < 5; ++f) same = same && at[f] == out[f * N + i];
    }
    for (size_t i = 0; i < N; i += 4)
      same = same && close(out[i], logistic_loss(-mean[i]), 1e-15) && close(out[N + i], logistic(mean[i]), 1e-15);
    check(same, "alone as in company");
  }
}

}  // namespace

int main() {
  std::printf("level %s\n", level_name().c_str());
  conversions();
  row_passes();
  downdates();
  exact_steps();
  whitening();
  screening();
  completions();
  bfloat16_products_match();
  matrices_and_losses();
  softplus();
  best_teachers();
  teachers();
  category_bounds();
  row_files();
  prompts();
  selection();
  threads();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
