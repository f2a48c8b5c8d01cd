// exp and log1p on vectors, where a whole row of the quadrature is evaluated: no call, no table, no branch.
// Included by csrc/kernels/*.cpp only; everything is internal to the including object file.
#pragma once

#include "kernels/simd.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

template <class V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

// e^x for x <= 0 to 1 ulp, subnormal results included; 0 for -inf.
// x = k log 2 + r, |r| <= log(2) / 2, k log 2 in two parts of which the first is exact; e^r = 1 + r + r^2 P(r), |error| <
// 2e-17 (interpolation at Chebyshev points); 2^k in two factors, either of which is normal.
inline Full<double> exp_of_negative(Full<double> x) {
  using V = Full<double>;
  using I = Vector<int64_t, kLanes<double>>;
  constexpr double kRound = 6755399441055744.0;  // 1.5 2^52: adding it rounds to a whole number, held in the low bits
  x = larger(x, V{} - 1000.0);
  const V shifted = x * 1.4426950408889634 + kRound;
  const V k = shifted - kRound;
  const V r = (x - k * 0x1.62e42feep-1) - k * 1.9082149292705877e-10;
  V p = V{} + 2.510038549551032e-08;
  p = p * r + 2.7620088445409746e-07;
  p = p * r + 2.7557268459997064e-06;
  p = p * r + 2.4801521295954376e-05;
  p = p * r + 0.00019841269863053618;
  p = p * r + 0.0013888888917213717;
  p = p * r + 0.008333333333330062;
  p = p * r + 0.04166666666662413;
  p = p * r + 0.16666666666666666;
  p = p * r + 0.5;
  p = p * (r * r) + r + 1.0;
  const I whole = bits_as<I>(shifted) - bits_as<I>(V{} + kRound), half = whole >> 1;
  return p * bits_as<V>((half + 1023) << 52) * bits_as<V>((whole - half + 1023) << 52);
}

// log(1 + e) for 0 <= e <= 1 to 2 ulp, relative to the result: 2 atanh(s) = 2 s + s^3 Q(s^2), s = e / (2 + e) <= 1/3.
inline Full<double> log1p_of_unit(Full<double> e) {
  using V = Full<double>;
  const V s = e / (e + 2.0), z = s * s;
  V q = V{} + 0.1616404561194353;
  q = q * z + 0.08800738486144674;
  q = q * z + 0.12001072809590713;
  q = q * z + 0.13314144209654935;
  q = q * z + 0.15385570064958623;
  q = q * z + 0.18181789436132859;
  q = q * z + 0.22222222717427864;
  q = q * z + 0.2857142856710876;
  q = q * z + 0.40000000000014585;
  q = q * z + 0.6666666666666666;
  return s * z * q + (s + s);
}

}  // namespace
}  // namespace DAL_LEVEL
}  // namespace dal
