// Products with few inputs: the product of each row and input is summed in a vector, 32 weights at a time; two of four
// values are expanded in a register by the bits that mark their places.

#pragma once

#include "readers.h"

namespace {

// The sum in fp32, by halves.
inline float sum_of(vf v) {
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) v[i] += v[i + n];
  return v[0];
}

// One row of a tile times N inputs, each ``stride`` numbers long, added to N sums of vectors.
template <typename T, int N, bool DENSE>
inline __attribute__((always_inline)) void add_row(const T* values, const uint8_t* bits, int64_t width,
                                                   const float* inputs, int64_t stride, float* sums) {
  vf first[N], second[N];
  for (int n = 0; n < N; ++n) first[n] = load(sums + LANES * n), second[n] = vf{};
  for (int64_t i = 0; i < width; i += STEP) {
    Step w;
    if (DENSE) {
      ahead(values + i, STEP * sizeof(T));
      w = Reader<T>::dense(values + i);
    } else {
      uint32_t word;
      std::memcpy(&word, bits + i / 8, sizeof word);
      ahead(values + i / 2, STEP / 2 * sizeof(T));
      w = Reader<T>::sparse(values + i / 2, word);
    }
    for (int n = 0; n < N; ++n) {
      first[n] += w.first * load(inputs + n * stride + i);
      second[n] += w.second * load(inputs + n * stride + i + LANES);
    }
  }
  for (int n = 0; n < N; ++n) store(sums + LANES * n, first[n] + second[n]);
}

// Pieces of as many rows times N inputs. The rows are read in turn: concurrent read streams raise the bandwidth.
template <typename T, int N>
void add_rows(const Packed& a, const Piece* pieces, int64_t count, const float* inputs, float* sums) {
  const int64_t tiles = a.tile_rows * a.tile_columns, stride = a.tile_columns * a.width;
  const int64_t size = pieces->to - pieces->from;
  for (int64_t column = 0; column < a.tile_columns; ++column) {
    const float* mine = inputs + column * a.width;
    for (int64_t i = 0; i < size; ++i)
      for (int64_t p = 0; p < count; ++p) {
        const int64_t tile = pieces[p].tile_row * a.tile_columns + column, first = (pieces[p].from + i) * a.width;
        const T* values = static_cast<const T*>(a.values) + a.starts[tile];
        float* to = sums + LANES * N * (p * size + i);
        if (a.dense[tile]) {
          add_row<T, N, true>(values + first, nullptr, a.width, mine, stride, to);
          continue;
        }
        const uint8_t* bits = a.bits + a.starts[tiles + tile] + first / 8;
        __builtin_prefetch(bits + FAR / 8, 0, 2);
        add_row<T, N, false>(values + first / 2, bits, a.width, mine, stride, to);
      }
  }
}

template <typename T, int N>
void multiply(const Packed& a, const float* inputs, T* outputs) {
  const int64_t rows = a.tile_rows * a.height;
  const auto add = [&](const Piece* pieces, int64_t count, float* sums) {
    add_rows<T, N>(a, pieces, count, inputs, sums);
  };
  each_piece<4>(a, LANES * N, add, [&](int64_t first, int64_t count, const float* sums) {
    for (int64_t row = 0; row < count; ++row)
      for (int n = 0; n < N; ++n) narrow(outputs + n * rows + first + row, sum_of(load(sums + LANES * (N * row + n))));
  });
}

// The inputs in fp32, in the order of the steps.
template <typename T>
Room arranged(const T* inputs, int64_t count) {
  Room found(count);
  for (int64_t i = 0; i < count; i += STEP)
    for (int j = 0; j < STEP; ++j) found.at[i + Reader<T>::place(j)] = wide(inputs[i + j]);
  return found;
}

template <typename T>
void multiply_few(const Packed& a, const T* inputs, T* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width, rows = a.tile_rows * a.height;
  const Room arranged_inputs = arranged(inputs, n * columns);
  const float* from = arranged_inputs.at;
  for (; n >= 4; n -= 4, from += 4 * columns, outputs += 4 * rows) multiply<T, 4>(a, from, outputs);
  if (n == 1) multiply<T, 1>(a, from, outputs);
  if (n == 2) multiply<T, 2>(a, from, outputs);
  if (n == 3) multiply<T, 3>(a, from, outputs);
}

}  // namespace
