// Products with inputs in bf16 by the matrix units of AMX: sixteen rows of weights, 32 columns of them, by sixteen
// inputs at a time. Weights of a sparse tile are expanded into a cache for all inputs.

#pragma once

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>

#include "readers.h"
#include "turn.h"

namespace {

constexpr int ROWS = 16;
// Largest number of inputs multiplied while a tile is cached, and number of columns expanded at a time.
constexpr int64_t INPUTS = 512, COLUMNS = 128;

// A process must ask the system for the registers of AMX.
bool have_matrix_units() {
  constexpr int REQUEST = 0x1023, DATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, DATA) == 0;
  return granted;
}

struct MatrixUnits {
  MatrixUnits() {
    struct alignas(64) { uint8_t palette = 1, rest[15] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } shapes;
    for (int i = 0; i < 8; ++i) shapes.bytes[i] = 64, shapes.rows[i] = ROWS;
    _tile_loadconfig(&shapes);
  }
  ~MatrixUnits() { _tile_release(); }
};

// The compiler's own intrinsics need a register's number as a literal.
template <int TO>
inline void load_unit(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0, %1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TO) : "memory");
}
template <int FROM>
inline void store_unit(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0, %1)" : : "r"(to), "r"(stride), "i"(FROM) : "memory");
}
template <int TO, int WEIGHTS, int INPUTS_OF>
inline void multiply_units() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(TO), "i"(WEIGHTS), "i"(INPUTS_OF));
}

// Calls with 0 to N - 1, each a compile-time constant.
template <typename Call, int... I>
inline __attribute__((always_inline)) void each(Call call, std::integer_sequence<int, I...>) {
  (call(std::integral_constant<int, I>()), ...);
}
template <int N, typename Call>
inline __attribute__((always_inline)) void each(Call call) {
  each(call, std::make_integer_sequence<int, N>());
}

// Rows by columns of weights: from sixteen rows to the next, from 32 columns to the next, and in bytes from row to row.
struct Weights {
  const uint16_t* at;
  int64_t sixteen, step, stride;
  const uint16_t* later;  // what is fetched while they are multiplied, or none
};

// G times sixteen rows, ``width`` columns, times S times sixteen inputs [width / 2, 16, 2], which are ``next`` numbers
// apart, added to sums [S, rows, 16]. Registers 0 to 3 have sums, 4 and 5 weights, 6 and 7 inputs.
template <int G, int S>
inline __attribute__((always_inline)) void add_units(const Weights& weights, int64_t width, const uint16_t* inputs,
                                                     int64_t next, float* sums, int64_t rows) {
  each<G>([&](auto g) {
    each<S>([&](auto s) { load_unit<g * S + s>(sums + 16 * (s * rows + 16 * g), 64); });
  });
  for (int64_t i = 0; i < width; i += STEP) {
    each<S>([&](auto s) { load_unit<6 + s>(inputs + s * next + 16 * i, 64); });
    each<G>([&](auto g) {
      // A little with each step: prefetching all at once would delay what is needed now.
      if (weights.later) fetch(weights.later + g * weights.sixteen + ROWS * i, 2 * ROWS * STEP);
      load_unit<4 + g % 2>(weights.at + g * weights.sixteen + i / STEP * weights.step, weights.stride);
      each<S>([&](auto s) { multiply_units<g * S + s, 4 + g % 2, 6 + s>(); });
    });
  }
  each<G>([&](auto g) {
    each<S>([&](auto s) { store_unit<g * S + s>(sums + 16 * (s * rows + 16 * g), 64); });
  });
}

// Rows of a sparse tile as [rows / 16, width / 32, 16, 32].
inline void expand_rows(const uint16_t* values, const uint8_t* bits, int64_t stride, int64_t rows, int64_t width,
                        uint16_t* to) {
  for (int64_t row = 0; row < rows; ++row, values += stride / 2, bits += stride / 8) {
    fetch(values + LATER / 2, width);
    uint16_t* out = to + row / ROWS * ROWS * width + row % ROWS * STEP;
    for (int64_t i = 0; i < width; i += STEP, out += ROWS * STEP) {
      uint32_t word;
      std::memcpy(&word, bits + i / 8, sizeof word);
      expand(values + i / 2, word, out);
    }
  }
}

// Rows, a multiple of sixteen, times S times sixteen inputs.
template <int G, int S>
void add_rows_of_units(Weights weights, int64_t rows, int64_t width, const uint16_t* inputs, int64_t next,
                       float* sums) {
  for (int64_t row = 0, count; row < rows; row += count) {
    count = rows - row >= ROWS * G ? ROWS * G : ROWS;
    if (count == ROWS) add_units<1, S>(weights, width, inputs, next, sums + 16 * row, rows);
    else add_units<G, S>(weights, width, inputs, next, sums + 16 * row, rows);
    weights.at += count / ROWS * weights.sixteen;
    if (weights.later) weights.later += count / ROWS * weights.sixteen;
  }
}

// A piece, its rows a multiple of sixteen, times ``n`` inputs, a multiple of 16 S: [tile columns, n / 16, width / 2,
// 16, 2]; sums [n / 16, rows, 16].
template <int G, int S>
void add_blocks(const Packed& a, const Piece& piece, const uint16_t* inputs, int64_t n, float* sums) {
  const int64_t tiles = a.tile_rows * a.tile_columns, next = 16 * a.width, rows = piece.to - piece.from;
  const MatrixUnits units;
  const Room room(rows * COLUMNS / 2);
  uint16_t* const expanded = reinterpret_cast<uint16_t*>(room.at);
  for (int64_t column = 0; column < a.tile_columns; ++column, inputs += n * a.width) {
    const int64_t tile = piece.tile_row * a.tile_columns + column, first = piece.from * a.width;
    const bool dense = a.dense[tile];
    const uint16_t* values = static_cast<const uint16_t*>(a.values) + a.starts[tile];
    const uint8_t* bits = a.bits + a.starts[tiles + tile];
    for (int64_t from = 0; from < a.width; from += COLUMNS) {
      const int64_t width = std::min(COLUMNS, a.width - from), begin = first + from;
      Weights weights{values + begin, ROWS * a.width, STEP, 2 * a.width, values + first + ROWS * from + LATER / 2};
      if (!dense) {
        expand_rows(values + begin / 2, bits + begin / 8, a.width, rows, width, expanded);
        weights = {expanded, ROWS * width, ROWS * STEP, 2 * STEP, nullptr};
      }
      for (int64_t some = 0; some < n; some += 16 * S, weights.later = nullptr)
        add_rows_of_units<G, S>(weights, rows, width, inputs + some * a.width + 16 * from, next, sums + some * rows);
    }
  }
}

void multiply_by_units(const Packed& a, const uint16_t* inputs, uint16_t* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width, rows = a.tile_rows * a.height;
  const auto padded = [](int64_t count) { return count <= 16 ? 16 : (count + 31) / 32 * 32; };
  const Room room(padded(std::min(n, INPUTS)) * columns / 2);
  for (; n > 0; n -= INPUTS, inputs += INPUTS * columns, outputs += INPUTS * rows) {
    const int64_t count = std::min(n, INPUTS), all = padded(count);
    // Two numbers of an input are transposed as one.
    const float* pairs = reinterpret_cast<const float*>(inputs);
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t step = 0; step < columns; step += STEP) {
      const int64_t column = step / a.width, within = step % a.width;
      for (int64_t i = 0; i < all; i += 16)
        turn_rows(pairs + (i * columns + step) / 2, columns / 2, count - i,
                  room.at + ((column * all + i) * a.width + 16 * within) / 2, 16);
    }
    const auto* arranged = reinterpret_cast<const uint16_t*>(room.at);
    const auto add = [&](const Piece* piece, int64_t, float* sums) {
      if (all == 16) add_blocks<4, 1>(a, *piece, arranged, all, sums);
      else add_blocks<2, 2>(a, *piece, arranged, all, sums);
    };
    each_piece<1>(a, all, add, [&](int64_t first, int64_t size, const float* sums) {
      for (int64_t i = 0; i < count; i += 16)
        turn_sums(sums + i * size, 16, size, std::min<int64_t>(count - i, 16), outputs + i * rows + first, rows);
    });
  }
}

}  // namespace
#endif
