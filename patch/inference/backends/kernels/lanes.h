// Products with more inputs: these lie side by side in vectors, and each stored value is multiplied by those of
// its column; zeros are skipped.

#pragma once

#include "readers.h"
#include "turn.h"

namespace {

// Sums held in registers at a time.
constexpr int SUMS = REGISTER == 16 ? 16 : 8;
// Largest number of inputs side by side, and number of such blocks multiplied while a tile is cached.
constexpr int64_t WIDE = 4 * REGISTER, BLOCKS = 4;
// Number of columns whose inputs fit the first cache.
constexpr int64_t PANEL = 128;

// For each byte of bits: where the inputs of four values begin, of eight columns of so many vectors, in bytes.
template <int V>
struct Columns {
  uint64_t of[256] = {};
  Columns() {
    for (int byte = 0; byte < 256; ++byte)
      for (int i = 0, next = 0; i < 8; ++i)
        if (byte >> i & 1 && next < 4) of[byte] |= uint64_t(4 * REGISTER * V * i) << 16 * next++;
  }
};
template <int V> const Columns<V> columns_of;

// Keeps the address in a register: computing it again from two parts takes longer.
inline void keep(const char*& address) { asm volatile("" : "+r"(address)); }

// Values in fp32: as they are, or widened into ``room``.
inline const float* in_float(const float* values, int64_t, float*) { return values; }
inline const float* in_float(const uint16_t* values, int64_t count, float* room) {
  for (int64_t i = 0; i < count; ++i) room[i] = wide(values[i]);
  return room;
}

// Part of a row of a sparse tile times inputs [width, V, REGISTER].
template <int V>
inline __attribute__((always_inline)) void add_sparse(const float* values, const uint8_t* bits, int64_t width,
                                                      const float* inputs, float* sums) {
  // Enough sums for one to begin before another has ended.
  constexpr int SETS = V <= 2 ? 4 : 2;
  vr total[SETS][V] = {};
  for (int64_t i = 0; i < width; i += 8, values += 4, inputs += 8 * REGISTER * V) {
    const uint64_t at = columns_of<V>.of[*bits++];
    for (int n = 0; n < 4; ++n) {
      const char* column = reinterpret_cast<const char*>(inputs) + (at >> 16 * n & 0xffff);
      keep(column);
      for (int v = 0; v < V; ++v)
        total[n % SETS][v] += values[n] * load<vr>(reinterpret_cast<const float*>(column) + REGISTER * v);
    }
  }
  for (int v = 0; v < V; ++v) {
    vr all = load<vr>(sums + REGISTER * v);
    for (int set = 0; set < SETS; ++set) all += total[set][v];
    store(sums + REGISTER * v, all);
  }
}

// Part of `R` rows of a dense tile, ``stride`` apart, times inputs [width, V, REGISTER]. With each sixteen columns are
// fetched, if there is ``later``, ``bytes`` of it: more at once would keep what is needed now waiting.
template <int R, int V>
inline __attribute__((always_inline)) void add_dense(const float* values, int64_t stride, int64_t width,
                                                     const char* later, int64_t bytes, const float* inputs,
                                                     float* sums) {
  vr total[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) total[r][v] = load<vr>(sums + REGISTER * (r * V + v));
  for (int64_t some = 0; some < width; some += 16) {
    if (later) fetch(later + some / 16 * bytes, bytes);
    for (int64_t i = some; i < some + 16; ++i, inputs += REGISTER * V)
      for (int v = 0; v < V; ++v) {
        const vr x = load<vr>(inputs + REGISTER * v);
        for (int r = 0; r < R; ++r) total[r][v] += values[r * stride + i] * x;
      }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(sums + REGISTER * (r * V + v), total[r][v]);
}

// Some columns of a tile.
struct Panel {
  const float* values;
  const uint8_t* bits;  // none of a dense tile
  int64_t stride, width;  // stride: of a row, in weights
  const char* from;  // where its values are in memory
  int64_t bytes;  // of a row there
};

// Rows of a panel, a multiple of sixteen, times inputs [width, V, REGISTER]. Meanwhile as many rows of a later tile are
// fetched, if ``later``, and of many inputs those at ``next``.
template <int V>
void add_panel(const Panel& panel, int64_t rows, bool later, const float* inputs, const float* next, float* sums) {
  const int64_t step = panel.bits ? 1 : SUMS / V, share = REGISTER * V * panel.width / rows;
  const int64_t bytes = 16 * step * panel.bytes / panel.width;
  for (int64_t row = 0; row < rows; row += step, sums += REGISTER * V * step) {
    const char* const after = later ? panel.from + row * panel.bytes + LATER : nullptr;
    if (later && panel.bits) fetch(after, panel.bytes);
    if constexpr (V == 4) fetch(next + row * share, 4 * step * share);
    const int64_t first = row * panel.stride;
    if (panel.bits) add_sparse<V>(panel.values + first / 2, panel.bits + first / 8, panel.width, inputs, sums);
    else add_dense<SUMS / V, V>(panel.values + first, panel.stride, panel.width, after, bytes, inputs, sums);
  }
}

// Vectors that hold so many inputs: a power of two.
inline int side(int64_t count) { return count > 2 * REGISTER ? 4 : count > REGISTER ? 2 : 1; }

// A piece, its rows a multiple of sixteen, times ``n`` inputs: blocks of [in, V, REGISTER], each of `WIDE` but for the
// last.
template <typename T>
void add_lanes(const Packed& a, const Piece& piece, const float* inputs, int64_t n, float* sums) {
  const int64_t tiles = a.tile_rows * a.tile_columns, columns = a.tile_columns * a.width, rows = piece.to - piece.from;
  const Room room(sizeof(T) == sizeof(float) ? 0 : rows * a.width);
  for (int64_t column = 0; column < a.tile_columns; ++column) {
    const int64_t tile = piece.tile_row * a.tile_columns + column, part = a.dense[tile] ? 1 : 2;
    const T* values = static_cast<const T*>(a.values) + a.starts[tile] + piece.from * a.width / part;
    const uint8_t* bits = a.dense[tile] ? nullptr : a.bits + a.starts[tiles + tile] + piece.from * a.width / 8;
    const float* found = in_float(values, rows * a.width / part, room.at);
    for (int64_t from = 0; from < a.width; from += PANEL) {
      const int64_t width = std::min(PANEL, a.width - from);
      const Panel panel{found + from / part, bits ? bits + from / 8 : nullptr, a.width, width,
                        reinterpret_cast<const char*>(values + from * rows / part), int64_t(width * sizeof(T) / part)};
      for (int64_t block = 0; block < n; block += WIDE) {
        const int v = side(std::min(n - block, WIDE));
        const int64_t at = column * a.width + from;
        const float* mine = inputs + block * columns + REGISTER * v * at;
        const float* next = inputs + (block + WIDE < n ? (block + WIDE) * columns + WIDE * at : WIDE * (at + width));
        float* to = sums + block * rows;
        if (v == 1) add_panel<1>(panel, rows, !block, mine, next, to);
        else if (v == 2) add_panel<2>(panel, rows, !block, mine, next, to);
        else add_panel<4>(panel, rows, !block, mine, next, to);
      }
    }
  }
}

template <typename T>
void multiply_more(const Packed& a, const T* inputs, T* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width, rows = a.tile_rows * a.height;
  const int64_t most = (std::min(n, BLOCKS * WIDE) + WIDE - 1) / WIDE * WIDE;
  const Room lanes(most * columns);
  for (; n > 0; n -= BLOCKS * WIDE, inputs += BLOCKS * WIDE * columns, outputs += BLOCKS * WIDE * rows) {
    const int64_t all = std::min(n, BLOCKS * WIDE);
    for (int64_t block = 0; block < all; block += WIDE) {
      const int64_t count = std::min(all - block, WIDE), wide_by = REGISTER * side(count);
#pragma omp parallel for num_threads(a.threads) schedule(static)
      for (int64_t some = 0; some < columns; some += 16)
        for (int64_t lane = 0; lane < wide_by; lane += REGISTER)
          for (int64_t i = some; i < some + 16; i += REGISTER)
            turn_rows(inputs + (block + lane) * columns + i, columns, count - lane,
                      lanes.at + block * columns + wide_by * i + lane, wide_by);
    }
    const auto add = [&](const Piece* piece, int64_t, float* sums) { add_lanes<T>(a, *piece, lanes.at, all, sums); };
    each_piece<1>(a, most, add, [&](int64_t first, int64_t size, const float* sums) {
      for (int64_t block = 0; block < all; block += WIDE) {
        const int64_t count = std::min(all - block, WIDE);
        turn_sums(sums + block * size, REGISTER * side(count), size, count, outputs + block * rows + first, rows);
      }
    });
  }
}

}  // namespace
