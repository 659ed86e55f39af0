// A packed weight, as the kernels see it, and the distribution of its rows over threads.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

struct Packed {
  const void* values;
  const uint8_t* bits;
  const uint8_t* dense;  // [tile rows, tile columns]
  const int64_t* starts;  // [2, tiles]: where the values and the bits of a tile begin
  int64_t tile_rows, tile_columns, height, width;
  int32_t half, threads;
};

namespace {

// Weights whose bits are read at once.
constexpr int STEP = 32;

inline float wide(float value) { return value; }
inline float wide(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}
inline void narrow(float* to, float value) { *to = value; }
inline void narrow(uint16_t* to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  *to = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Some rows of a row of tiles.
struct Piece { int64_t tile_row, from, to; };

// All pieces, each by one thread, up to `TOGETHER` at a time: ``add`` adds to ``per_row`` sums of each of their rows,
// and ``finish`` takes those of a piece from its first row on.
template <int TOGETHER, typename Add, typename Finish>
void each_piece(const Packed& a, int64_t per_row, Add add, Finish finish) {
  // Rows of tiles are split if there are fewer than threads.
  int64_t cuts = 1;
  while (a.tile_rows * cuts < a.threads && a.height % (2 * cuts) == 0 && a.height / cuts % 32 == 0) cuts *= 2;
  const int64_t size = a.height / cuts, all = a.tile_rows * cuts;
#pragma omp parallel num_threads(a.threads)
  {
    const Room sums(TOGETHER * per_row * size);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < a.threads; ++part) {
      const int64_t last = all * (part + 1) / a.threads;
      for (int64_t first = all * part / a.threads, count; first < last; first += count) {
        count = std::min<int64_t>(TOGETHER, last - first);
        Piece pieces[TOGETHER];
        for (int64_t p = 0; p < count; ++p) {
          const int64_t from = (first + p) % cuts * size;
          pieces[p] = {(first + p) / cuts, from, from + size};
        }
        std::fill_n(sums.at, count * per_row * size, 0.0f);
        add(pieces, count, sums.at);
        for (int64_t p = 0; p < count; ++p)
          finish(pieces[p].tile_row * a.height + pieces[p].from, size, sums.at + p * per_row * size);
      }
    }
  }
}

}  // namespace
