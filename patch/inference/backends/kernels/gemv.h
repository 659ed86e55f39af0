// Products with few inputs. A dot product of a row and an input is accumulated in a vector, 32 weights at a time; the
// two of four stored values are expanded in a register by their bit mask.

#pragma once

#include "decode.h"

namespace {

// The sum in fp32, by halves.
inline float horizontal_sum(f32x16 v) {
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) v[i] += v[i + n];
  return v[0];
}

// Adds the products of one row of a tile and N inputs, ``stride`` apart, to N vectors of sums.
template <typename T, int N, bool DENSE>
inline __attribute__((always_inline)) void add_row(const T* values, const uint8_t* bits, int64_t width,
                                                   const float* inputs, int64_t stride, float* sums) {
  f32x16 first[N], second[N];
  for (int n = 0; n < N; ++n) first[n] = load(sums + LANES * n), second[n] = f32x16{};
  for (int64_t i = 0; i < width; i += STEP) {
    Decoded w;
    if (DENSE) {
      prefetch_ahead(values + i, STEP * sizeof(T));
      w = Decoder<T>::dense(values + i);
    } else {
      uint32_t word;
      std::memcpy(&word, bits + i / 8, sizeof word);
      prefetch_ahead(values + i / 2, STEP / 2 * sizeof(T));
      w = Decoder<T>::sparse(values + i / 2, word);
    }
    for (int n = 0; n < N; ++n) {
      first[n] += w.first * load(inputs + n * stride + i);
      second[n] += w.second * load(inputs + n * stride + i + LANES);
    }
  }
  for (int n = 0; n < N; ++n) store(sums + LANES * n, first[n] + second[n]);
}

// Adds the products of row blocks of equal size and N inputs. The rows of the blocks are read alternately: concurrent
// read streams raise the bandwidth.
template <typename T, int N>
void add_row_blocks(const Packed& a, const RowBlock* blocks, int64_t count, const float* inputs, float* sums) {
  const int64_t tiles = a.tile_rows * a.tile_columns, stride = a.tile_columns * a.width;
  const int64_t size = blocks->to - blocks->from;
  for (int64_t column = 0; column < a.tile_columns; ++column) {
    const float* tile_inputs = inputs + column * a.width;
    for (int64_t i = 0; i < size; ++i)
      for (int64_t b = 0; b < count; ++b) {
        const int64_t tile = blocks[b].tile_row * a.tile_columns + column, first = (blocks[b].from + i) * a.width;
        const T* values = static_cast<const T*>(a.values) + a.offsets[tile];
        float* to = sums + LANES * N * (b * size + i);
        if (a.dense[tile]) {
          add_row<T, N, true>(values + first, nullptr, a.width, tile_inputs, stride, to);
          continue;
        }
        const uint8_t* bits = a.bits + a.offsets[tiles + tile] + first / 8;
        __builtin_prefetch(bits + L2_DISTANCE / 8, 0, 2);
        add_row<T, N, false>(values + first / 2, bits, a.width, tile_inputs, stride, to);
      }
  }
}

template <typename T, int N>
void multiply(const Packed& a, const float* inputs, T* outputs) {
  const int64_t rows = a.tile_rows * a.height;
  const auto add = [&](const RowBlock* blocks, int64_t count, float* sums) {
    add_row_blocks<T, N>(a, blocks, count, inputs, sums);
  };
  for_each_row_block<4>(a, LANES * N, add, [&](int64_t first, int64_t count, const float* sums) {
    for (int64_t row = 0; row < count; ++row)
      for (int n = 0; n < N; ++n)
        round_to(outputs + n * rows + first + row, horizontal_sum(load(sums + LANES * (N * row + n))));
  });
}

// Converts inputs to fp32, in the order of the decoded weights.
template <typename T>
Buffer reorder(const T* inputs, int64_t count) {
  Buffer found(count);
  for (int64_t i = 0; i < count; i += STEP)
    for (int j = 0; j < STEP; ++j) found.data[i + Decoder<T>::position(j)] = to_f32(inputs[i + j]);
  return found;
}

template <typename T>
void gemv(const Packed& a, const T* inputs, T* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width, rows = a.tile_rows * a.height;
  const Buffer reordered = reorder(inputs, n * columns);
  const float* from = reordered.data;
  for (; n >= 4; n -= 4, from += 4 * columns, outputs += 4 * rows) multiply<T, 4>(a, from, outputs);
  if (n == 1) multiply<T, 1>(a, from, outputs);
  if (n == 2) multiply<T, 2>(a, from, outputs);
  if (n == 3) multiply<T, 3>(a, from, outputs);
}

}  // namespace
