// Products with few inputs. A dot product of a row and an input is accumulated in vectors, 32 or 64 weights at a time;
// the two of four stored values are expanded in a register by their bit mask.

#pragma once

#include "codes.h"

namespace {

// The sum in fp32, by halves.
inline float horizontal_sum(f32x16 v) {
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) v[i] += v[i + n];
  return v[0];
}

// A row of a tile of numbers in fp32 or bf16.
template <typename T>
struct Numbers {
  static constexpr int COLUMNS = STEP;
  static int position(int i) { return Decoder<T>::position(i); }

  // Adds the products of the row and N inputs, which begin at the tile's first column, ``stride`` apart, to N vectors of
  // sums.
  template <int N>
  static inline __attribute__((always_inline)) void add(const Packed& a, int64_t tile_row, int64_t column, int64_t row,
                                                        const float* inputs, int64_t stride, float* sums) {
    const int64_t tile = tile_row * a.tile_columns + column, first = row * a.width;
    const T* values = static_cast<const T*>(a.values) + a.offsets[tile];
    if (a.dense[tile]) {
      add_row<N, true>(values + first, nullptr, a.width, inputs, stride, sums);
      return;
    }
    const uint8_t* bits = a.bits + a.offsets[a.tile_rows * a.tile_columns + tile] + first / 8;
    __builtin_prefetch(bits + L2_DISTANCE / 8, 0, 2);
    add_row<N, false>(values + first / 2, bits, a.width, inputs, stride, sums);
  }

  template <int N, bool DENSE>
  static inline __attribute__((always_inline)) void add_row(const T* values, const uint8_t* bits, int64_t width,
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
};

// A row of a tile of codes, which are decoded `COLUMNS_` at a time.
template <int COLUMNS_>
struct Coded {
  static constexpr int COLUMNS = COLUMNS_, VECTORS = Codes<COLUMNS>::VECTORS;
  static int position(int i) { return Codes<COLUMNS>::position(i); }

  template <int N>
  static inline __attribute__((always_inline)) void add(const Packed& a, int64_t tile_row, int64_t column, int64_t row,
                                                        const float* inputs, int64_t stride, float* sums) {
    const CodeRow codes(a, tile_row, column, row);
    if (codes.bits) add_row<N, false>(a, codes, codes.bits + row * a.width / 8, inputs, stride, sums);
    else add_row<N, true>(a, codes, nullptr, inputs, stride, sums);
  }

  template <int N, bool DENSE>
  static inline __attribute__((always_inline)) void add_row(const Packed& a, const CodeRow& row, const uint8_t* bits,
                                                            const float* inputs, int64_t stride, float* sums) {
    f32x16 total[N][VECTORS] = {};
    for (int n = 0; n < N; ++n) total[n][0] = load(sums + LANES * n);
    if (!DENSE) __builtin_prefetch(bits + L2_DISTANCE / 4, 0, 2);
    for_each_group(a, row, [&](float scale, int64_t i, int64_t end) __attribute__((always_inline)) {
      const Codes<COLUMNS> decoder(scale);
      for (; i < end; i += COLUMNS) {
        f32x16 weights[VECTORS];
        const uint8_t* codes = row.codes + (DENSE ? i / 2 : i / 4);
        prefetch_ahead(codes, DENSE ? COLUMNS / 2 : COLUMNS / 4);
        if (DENSE) decoder.dense(codes, weights);
        else decoder.sparse(codes, bits + i / 8, weights);
        for (int n = 0; n < N; ++n)
          for (int v = 0; v < VECTORS; ++v) total[n][v] += weights[v] * load(inputs + n * stride + i + LANES * v);
      }
    });
    for (int n = 0; n < N; ++n) {
      for (int v = VECTORS / 2; v; v /= 2)
        for (int i = 0; i < v; ++i) total[n][i] += total[n][i + v];
      store(sums + LANES * n, total[n][0]);
    }
  }
};

// Adds the products of row blocks of equal size and N inputs. The rows of the blocks are read alternately: concurrent
// read streams raise the bandwidth.
template <typename Weights, int N>
void add_row_blocks(const Packed& a, const RowBlock* blocks, int64_t count, const float* inputs, float* sums) {
  const int64_t stride = a.tile_columns * a.width, size = blocks->to - blocks->from;
  for (int64_t column = 0; column < a.tile_columns; ++column)
    for (int64_t i = 0; i < size; ++i)
      for (int64_t b = 0; b < count; ++b)
        Weights::template add<N>(a, blocks[b].tile_row, column, blocks[b].from + i, inputs + column * a.width, stride,
                                 sums + LANES * N * (b * size + i));
}

template <typename Weights, int N, typename T>
void multiply(const Packed& a, const float* inputs, T* outputs) {
  const int64_t rows = a.tile_rows * a.height;
  const auto add = [&](const RowBlock* blocks, int64_t count, float* sums) {
    add_row_blocks<Weights, N>(a, blocks, count, inputs, sums);
  };
  for_each_row_block<4>(a, LANES * N, add, [&](int64_t first, int64_t count, const float* sums) {
    for (int64_t row = 0; row < count; ++row)
      for (int n = 0; n < N; ++n)
        round_to(outputs + n * rows + first + row, horizontal_sum(load(sums + LANES * (N * row + n))));
  });
}

// Converts inputs to fp32, in the order of the decoded weights.
template <typename Weights, typename T>
Buffer reorder(const T* inputs, int64_t count) {
  constexpr int COLUMNS = Weights::COLUMNS;
  Buffer found(count);
  for (int64_t i = 0; i < count; i += COLUMNS)
    for (int j = 0; j < COLUMNS; ++j) found.data[i + Weights::position(j)] = to_f32(inputs[i + j]);
  return found;
}

template <typename Weights, typename T>
void gemv(const Packed& a, const T* inputs, T* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width, rows = a.tile_rows * a.height;
  const Buffer reordered = reorder<Weights>(inputs, n * columns);
  const float* from = reordered.data;
  for (; n >= 4; n -= 4, from += 4 * columns, outputs += 4 * rows) multiply<Weights, 4>(a, from, outputs);
  if (n == 1) multiply<Weights, 1>(a, from, outputs);
  if (n == 2) multiply<Weights, 2>(a, from, outputs);
  if (n == 3) multiply<Weights, 3>(a, from, outputs);
}

}  // namespace
