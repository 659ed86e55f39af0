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

// Numbers in fp32 or bf16.
template <typename T>
struct Numbers {
  typedef float Input;
  static constexpr int COLUMNS = STEP, ROWS = 1;
  static int position(int i) { return Decoder<T>::position(i); }

  // A row of a tile; no bits if it is dense.
  struct Row {
    const T* values;
    const uint8_t* bits;
    int64_t width;

    Row() = default;
    Row(const Packed& a, int64_t tile_row, int64_t column, int64_t row) : width(a.width) {
      const int64_t tile = tile_row * a.tile_columns + column, first = row * width;
      const bool dense = a.dense[tile];
      values = static_cast<const T*>(a.values) + a.offsets[tile] + (dense ? first : first / 2);
      bits = dense ? nullptr : a.bits + a.offsets[a.tile_rows * a.tile_columns + tile] + first / 8;
    }
    void advance(int64_t rows) {
      values += rows * (bits ? width / 2 : width);
      if (bits) bits += rows * width / 8;
    }
  };

  // Adds the products of R rows, of which the first is given, and N inputs, which begin at the tile's first column,
  // ``stride`` apart, to [R, N] vectors of sums.
  template <int N, int R>
  static inline __attribute__((always_inline)) void add(const Row& row, const float* inputs, int64_t stride,
                                                        float* sums) {
    if (!row.bits) return add_row<N, true>(row, inputs, stride, sums);
    __builtin_prefetch(row.bits + L2_DISTANCE / 8, 0, 2);
    add_row<N, false>(row, inputs, stride, sums);
  }

  template <int N, bool DENSE>
  static inline __attribute__((always_inline)) void add_row(const Row& row, const float* inputs, int64_t stride,
                                                            float* sums) {
    f32x16 first[N], second[N];
    for (int n = 0; n < N; ++n) first[n] = load(sums + LANES * n), second[n] = f32x16{};
    for (int64_t i = 0; i < row.width; i += STEP) {
      Decoded w;
      if (DENSE) {
        prefetch_ahead(row.values + i, STEP * sizeof(T));
        w = Decoder<T>::dense(row.values + i);
      } else {
        uint32_t word;
        std::memcpy(&word, row.bits + i / 8, sizeof word);
        prefetch_ahead(row.values + i / 2, STEP / 2 * sizeof(T));
        w = Decoder<T>::sparse(row.values + i / 2, word);
      }
      for (int n = 0; n < N; ++n) {
        first[n] += w.first * load(inputs + n * stride + i);
        second[n] += w.second * load(inputs + n * stride + i + LANES);
      }
    }
    for (int n = 0; n < N; ++n) store(sums + LANES * n, first[n] + second[n]);
  }
};

// Codes, which are decoded `COLUMNS` at a time, and scaled at the end of a group. Several rows share the loaded inputs.
template <typename Decoder, int COLUMNS_>
struct Coded {
  typedef typename Decoder::Input Input;
  typedef CodeRow Row;
  static constexpr int COLUMNS = COLUMNS_, ROWS = Decoder::ROWS;
  static int position(int i) { return Decoder::position(i); }

  template <int N, int R>
  static inline __attribute__((always_inline)) void add(const Row& row, const Input* inputs, int64_t stride,
                                                        float* sums) {
    if (row.bits) add_rows<N, R, false>(row, inputs, stride, sums);
    else add_rows<N, R, true>(row, inputs, stride, sums);
  }

  template <int N, int R, bool DENSE>
  static inline __attribute__((always_inline)) void add_rows(const Row& row, const Input* inputs, int64_t stride,
                                                             float* sums) {
    constexpr int VECTORS = Decoder::VECTORS, LENGTH = COLUMNS / VECTORS;
    const uint8_t *codes = row.codes, *bits = row.bits;
    const int64_t code_bytes = row.code_bytes, bit_bytes = row.bit_bytes, groups = row.groups;
    prefetch_ahead(codes, R * code_bytes);
    if (!DENSE) prefetch(bits + L2_DISTANCE / 2, R * bit_bytes);
    f32x16 total[R * N];
    for (int i = 0; i < R * N; ++i) total[i] = load(sums + LANES * i);
    row.for_each_group([&](const float* scales, int64_t columns) __attribute__((always_inline)) {
      f32x16 group[R * N][VECTORS] = {};
      for (; columns > 0; columns -= COLUMNS, inputs += COLUMNS, codes += DENSE ? COLUMNS / 2 : COLUMNS / 4,
                          bits += COLUMNS / 8)
        for (int r = 0; r < R; ++r) {
          typename Decoder::Vector weights[VECTORS];
          if (DENSE) Decoder::dense(codes + r * code_bytes, weights);
          else Decoder::sparse(codes + r * code_bytes, bits + r * bit_bytes, weights);
          for (int n = 0; n < N; ++n)
            for (int v = 0; v < VECTORS; ++v)
              group[r * N + n][v] =
                  Decoder::add_products(group[r * N + n][v], weights[v], inputs + n * stride + LENGTH * v);
        }
      for (int i = 0; i < R * N; ++i) {
        for (int v = VECTORS / 2; v; v /= 2)
          for (int k = 0; k < v; ++k) group[i][k] += group[i][k + v];
        total[i] += scales[i / N * groups] * group[i][0];
      }
    });
    for (int i = 0; i < R * N; ++i) store(sums + LANES * i, total[i]);
  }
};

// Number of row blocks that are read alternately: concurrent read streams raise the bandwidth.
constexpr int STREAMS = 4;

// Adds the products of row blocks of equal size and N inputs.
template <typename Weights, int N>
void add_row_blocks(const Packed& a, const RowBlock* blocks, int64_t count, const typename Weights::Input* inputs,
                    float* sums) {
  // More rows at a time are no faster.
  constexpr int R = std::clamp(Weights::ROWS / N, 1, 4);
  const int64_t stride = a.tile_columns * a.width, size = blocks->to - blocks->from, tile_columns = a.tile_columns;
  for (int64_t column = 0; column < tile_columns; ++column) {
    typename Weights::Row rows[STREAMS];
    for (int64_t b = 0; b < count; ++b) rows[b] = {a, blocks[b].tile_row, column, blocks[b].from};
    const typename Weights::Input* from = inputs + column * a.width;
    int64_t i = 0;
    for (; i + R <= size; i += R)
      for (int64_t b = 0; b < count; ++b) {
        Weights::template add<N, R>(rows[b], from, stride, sums + LANES * N * (b * size + i));
        rows[b].advance(R);
      }
    for (; i < size; ++i)
      for (int64_t b = 0; b < count; ++b) {
        Weights::template add<N, 1>(rows[b], from, stride, sums + LANES * N * (b * size + i));
        rows[b].advance(1);
      }
  }
}

template <typename Weights, int N, typename T>
void multiply(const Packed& a, const typename Weights::Input* inputs, T* outputs) {
  const auto add = [&](const RowBlock* blocks, int64_t count, float* sums) {
    add_row_blocks<Weights, N>(a, blocks, count, inputs, sums);
  };
  for_each_row_block<STREAMS>(a, LANES * N, add, [&](int64_t first, int64_t count, const float* sums) {
    for (int64_t row = 0; row < count; ++row)
      for (int n = 0; n < N; ++n)
        round_to(outputs + n * a.stride + first + row, horizontal_sum(load(sums + LANES * (N * row + n))));
  });
}

// Converts inputs, and brings them in the order of the decoded weights.
inline void convert(float value, float* to) { *to = value; }
inline void convert(uint16_t value, float* to) { *to = to_f32(value); }
inline void convert(uint16_t value, uint16_t* to) { *to = value; }
template <typename Weights, typename T>
void reorder(const T* inputs, int64_t count, typename Weights::Input* to) {
  constexpr int COLUMNS = Weights::COLUMNS;
  for (int64_t i = 0; i < count; i += COLUMNS)
    for (int j = 0; j < COLUMNS; ++j) convert(inputs[i + j], to + i + Weights::position(j));
}

template <typename Weights, typename T>
void gemv(const Packed& a, const T* inputs, T* outputs, int64_t n) {
  typedef typename Weights::Input Input;
  const int64_t columns = a.tile_columns * a.width;
  const Buffer buffer(n * columns);
  Input* const reordered = reinterpret_cast<Input*>(buffer.data);
  reorder<Weights>(inputs, n * columns, reordered);
  const Input* from = reordered;
  for (; n >= 4; n -= 4, from += 4 * columns, outputs += 4 * a.stride) multiply<Weights, 4>(a, from, outputs);
  if (n == 1) multiply<Weights, 1>(a, from, outputs);
  if (n == 2) multiply<Weights, 2>(a, from, outputs);
  if (n == 3) multiply<Weights, 3>(a, from, outputs);
}

// Chooses the decoder of codes that takes most at a time.
template <typename T>
void multiply_codes(const Packed& a, const T* inputs, T* outputs, int64_t n) {
#if defined(__AVX512VBMI2__)
  if (in_steps(a, 64)) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(T) == sizeof(uint16_t)) return gemv<Coded<Bf16Codes, 64>>(a, inputs, outputs, n);
#endif
    return gemv<Coded<Codes<64>, 64>>(a, inputs, outputs, n);
  }
#endif
  gemv<Coded<Codes<STEP>, STEP>>(a, inputs, outputs, n);
}

}  // namespace
