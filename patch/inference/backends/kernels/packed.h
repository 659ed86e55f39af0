// A packed weight, the distribution of its rows over threads, and transposition of inputs and outputs.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

struct Packed {
  const void* values;  // fp32 or bf16; codes if there are scales
  const uint8_t* bits;
  const uint8_t* dense;  // [tile rows, tile columns]
  const int64_t* offsets;  // [2, tiles]: first element of values and first byte of bits of each tile
  const float* scales;  // [rows, groups], or null
  int64_t tile_rows, tile_columns, height, width, groups, group_size;
  int64_t stride;  // of the rows of outputs
  int32_t bf16, threads;
};

namespace {

// Number of weights that are decoded at a time.
constexpr int STEP = 32;

// Numbers in a register of the target processor.
#if defined(__AVX512F__)
constexpr int REGISTER = 16;
#elif defined(__AVX2__)
constexpr int REGISTER = 8;
#else
constexpr int REGISTER = 4;
#endif
typedef Vectors<REGISTER>::Floats Register;

inline float to_f32(float value) { return value; }
inline float to_f32(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}
inline void round_to(float* to, float value) { *to = value; }
inline void round_to(uint16_t* to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  *to = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Consecutive rows of one row of tiles.
struct RowBlock { int64_t tile_row, from, to; };

// Distributes all row blocks over threads. A thread handles up to `STREAMS` of them at a time: ``add`` accumulates into
// ``sums_per_row`` numbers for each of their rows, and ``finish`` gets the first row, the rows and the sums of a block.
template <int STREAMS, typename Add, typename Finish>
void for_each_row_block(const Packed& a, int64_t sums_per_row, Add add, Finish finish) {
  // Rows of tiles are split if there are fewer than threads.
  int64_t splits = 1;
  while (a.tile_rows * splits < a.threads && a.height % (2 * splits) == 0 && a.height / splits % 32 == 0) splits *= 2;
  const int64_t size = a.height / splits, all = a.tile_rows * splits;
#pragma omp parallel num_threads(a.threads)
  {
    const Buffer sums(STREAMS * sums_per_row * size);
#pragma omp for schedule(static)
    for (int64_t thread = 0; thread < a.threads; ++thread) {
      const int64_t last = all * (thread + 1) / a.threads;
      for (int64_t first = all * thread / a.threads, count; first < last; first += count) {
        count = std::min<int64_t>(STREAMS, last - first);
        RowBlock blocks[STREAMS];
        for (int64_t b = 0; b < count; ++b) {
          const int64_t from = (first + b) % splits * size;
          blocks[b] = {(first + b) / splits, from, from + size};
        }
        std::fill_n(sums.data, count * sums_per_row * size, 0.0f);
        add(blocks, count, sums.data);
        for (int64_t b = 0; b < count; ++b)
          finish(blocks[b].tile_row * a.height + blocks[b].from, size, sums.data + b * sums_per_row * size);
      }
    }
  }
}

// Transposes `REGISTER` rows of as many numbers, ``stride`` apart, to columns ``to_stride`` apart. Rows from ``count``
// on are zero.
template <typename T>
inline void transpose_inputs(const T* from, int64_t stride, int64_t count, float* to, int64_t to_stride) {
  Register rows[REGISTER];
  for (int i = 0; i < REGISTER; ++i) rows[i] = i < count ? load_f32<REGISTER>(from + i * stride) : Register{};
  transpose<REGISTER>(rows);
  for (int i = 0; i < REGISTER; ++i) store(to + i * to_stride, rows[i]);
}

// Transposes the first ``count`` columns of sums [rows, width] to outputs [count, rows], ``stride`` apart; the number
// of rows is a multiple of 16.
template <typename T>
void transpose_sums(const float* sums, int64_t width, int64_t rows, int64_t count, T* outputs, int64_t stride) {
  for (int64_t row = 0; row < rows; row += REGISTER)
    for (int64_t first = 0; first < count; first += REGISTER) {
      Register block[REGISTER];
      for (int i = 0; i < REGISTER; ++i) block[i] = load<Register>(sums + (row + i) * width + first);
      transpose<REGISTER>(block);
      for (int64_t i = 0; i < std::min<int64_t>(REGISTER, count - first); ++i)
        store_f32<REGISTER>(outputs + (first + i) * stride + row, block[i]);
    }
}

}  // namespace
