// Inputs and sums, transposed a register's square at a time.

#pragma once

#include <utility>

#include "packed.h"

namespace {

// Numbers in a register.
#if defined(__AVX512F__)
constexpr int REGISTER = 16;
#elif defined(__AVX2__)
constexpr int REGISTER = 8;
#else
constexpr int REGISTER = 4;
#endif
typedef Vectors<REGISTER>::Floats vr;

template <int... I>
inline vr picked(vr a, vr b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Vectors<REGISTER>::Words{I...});
#endif
}

// Swaps squares of D within two rows that are D apart.
template <int D, int... I>
inline void cross(vr& a, vr& b, std::integer_sequence<int, I...>) {
  const vr low = picked<(I & D ? REGISTER + I - D : I)...>(a, b);
  b = picked<(I & D ? REGISTER + I : I + D)...>(a, b);
  a = low;
}

template <int D = REGISTER / 2>
inline __attribute__((always_inline)) void turn(vr (&rows)[REGISTER]) {
  for (int i = 0; i < REGISTER; ++i)
    if (!(i & D)) cross<D>(rows[i], rows[i + D], std::make_integer_sequence<int, REGISTER>());
  if constexpr (D > 1) turn<D / 2>(rows);
}

// Rows of as many numbers as a register has, ``stride`` apart, as columns ``apart``; rows from ``count`` on are zero.
template <typename T>
inline void turn_rows(const T* from, int64_t stride, int64_t count, float* to, int64_t apart) {
  vr rows[REGISTER];
  for (int i = 0; i < REGISTER; ++i) rows[i] = i < count ? wide_vector<REGISTER>(from + i * stride) : vr{};
  turn(rows);
  for (int i = 0; i < REGISTER; ++i) store(to + i * apart, rows[i]);
}

// Sums [rows, width], of which ``count`` count, as outputs [count, rows], ``stride`` apart; rows are a multiple of 16.
template <typename T>
void turn_sums(const float* sums, int64_t width, int64_t rows, int64_t count, T* outputs, int64_t stride) {
  for (int64_t row = 0; row < rows; row += REGISTER)
    for (int64_t first = 0; first < count; first += REGISTER) {
      vr all[REGISTER];
      for (int i = 0; i < REGISTER; ++i) all[i] = load<vr>(sums + (row + i) * width + first);
      turn(all);
      for (int64_t i = 0; i < std::min<int64_t>(REGISTER, count - first); ++i)
        narrow_vector<REGISTER>(outputs + (first + i) * stride + row, all[i]);
    }
}

}  // namespace
