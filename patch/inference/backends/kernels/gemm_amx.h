// Products with inputs in bf16 by AMX: sixteen rows by 32 columns of weights, times sixteen inputs, at a time. Weights
// of a sparse tile are decoded into a cached buffer that all inputs use.

#pragma once

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>

#include "decode.h"

namespace {

constexpr int AMX_ROWS = 16;
// Largest number of inputs multiplied while a tile is cached, and number of columns decoded at a time.
constexpr int64_t AMX_INPUTS = 512, AMX_COLUMNS = 128;
// Prefetch distance in weights, into the L2 cache.
constexpr int AMX_DISTANCE = 16384;

// Returns whether the system grants the registers of AMX, for which a process must ask.
bool amx_available() {
  constexpr int REQUEST = 0x1023, DATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, DATA) == 0;
  return granted;
}

struct AmxConfig {
  AmxConfig() {
    struct alignas(64) { uint8_t palette = 1, rest[15] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } shapes;
    for (int i = 0; i < 8; ++i) shapes.bytes[i] = 64, shapes.rows[i] = AMX_ROWS;
    _tile_loadconfig(&shapes);
  }
  ~AmxConfig() { _tile_release(); }
};

// The compiler's own intrinsics need a register's number as a literal.
template <int TO>
inline void amx_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0, %1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TO) : "memory");
}
template <int FROM>
inline void amx_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0, %1)" : : "r"(to), "r"(stride), "i"(FROM) : "memory");
}
template <int TO, int WEIGHTS, int INPUTS>
inline void amx_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(TO), "i"(WEIGHTS), "i"(INPUTS));
}

// Calls a function with 0 to N - 1, each a compile-time constant.
template <typename Call, int... I>
inline __attribute__((always_inline)) void unroll(Call call, std::integer_sequence<int, I...>) {
  (call(std::integral_constant<int, I>()), ...);
}
template <int N, typename Call>
inline __attribute__((always_inline)) void unroll(Call call) {
  unroll(call, std::make_integer_sequence<int, N>());
}

// Weights of a panel. Strides are those of sixteen rows and of 32 columns in weights, and of a row in bytes.
struct AmxPanel {
  const uint16_t* weights;
  int64_t rows_stride, columns_stride, row_bytes;
  const uint16_t* ahead;  // weights to prefetch, or null
};

// Microkernel: adds the products of G times sixteen rows of ``width`` columns and S times sixteen inputs [width / 2,
// 16, 2], ``stride`` numbers apart, to sums [S, rows, 16]. Registers 0 to 3 hold sums, 4 and 5 weights, 6 and 7 inputs.
template <int G, int S>
inline __attribute__((always_inline)) void amx_microkernel(const AmxPanel& panel, int64_t width, const uint16_t* inputs,
                                                           int64_t stride, float* sums, int64_t rows) {
  unroll<G>([&](auto g) {
    unroll<S>([&](auto s) { amx_load<g * S + s>(sums + 16 * (s * rows + 16 * g), 64); });
  });
  for (int64_t i = 0; i < width; i += STEP) {
    unroll<S>([&](auto s) { amx_load<6 + s>(inputs + s * stride + 16 * i, 64); });
    unroll<G>([&](auto g) {
      // A prefetch of all weights at once would delay the current loads.
      if (panel.ahead) prefetch(panel.ahead + g * panel.rows_stride + AMX_ROWS * i, 2 * AMX_ROWS * STEP);
      amx_load<4 + g % 2>(panel.weights + g * panel.rows_stride + i / STEP * panel.columns_stride, panel.row_bytes);
      unroll<S>([&](auto s) { amx_multiply<g * S + s, 4 + g % 2, 6 + s>(); });
    });
  }
  unroll<G>([&](auto g) {
    unroll<S>([&](auto s) { amx_store<g * S + s>(sums + 16 * (s * rows + 16 * g), 64); });
  });
}

// Decodes rows of a sparse tile to [rows / 16, width / 32, 16, 32].
inline void decode_rows(const uint16_t* values, const uint8_t* bits, int64_t stride, int64_t rows, int64_t width,
                        uint16_t* to) {
  for (int64_t row = 0; row < rows; ++row, values += stride / 2, bits += stride / 8) {
    prefetch(values + AMX_DISTANCE, width);
    uint16_t* out = to + row / AMX_ROWS * AMX_ROWS * width + row % AMX_ROWS * STEP;
    for (int64_t i = 0; i < width; i += STEP, out += AMX_ROWS * STEP) {
      uint32_t word;
      std::memcpy(&word, bits + i / 8, sizeof word);
      decode(values + i / 2, word, out);
    }
  }
}

// Adds the products of the rows of a panel, a multiple of sixteen, and S times sixteen inputs.
template <int G, int S>
void add_amx_panel(AmxPanel panel, int64_t rows, int64_t width, const uint16_t* inputs, int64_t stride, float* sums) {
  for (int64_t row = 0, count; row < rows; row += count) {
    count = rows - row >= AMX_ROWS * G ? AMX_ROWS * G : AMX_ROWS;
    if (count == AMX_ROWS) amx_microkernel<1, S>(panel, width, inputs, stride, sums + 16 * row, rows);
    else amx_microkernel<G, S>(panel, width, inputs, stride, sums + 16 * row, rows);
    panel.weights += count / AMX_ROWS * panel.rows_stride;
    if (panel.ahead) panel.ahead += count / AMX_ROWS * panel.rows_stride;
  }
}

// Adds the products of a row block, its rows a multiple of sixteen, and ``n`` inputs, a multiple of 16 S, packed as
// [tile columns, n / 16, width / 2, 16, 2], to sums [n / 16, rows, 16].
template <int G, int S>
void add_amx_row_block(const Packed& a, const RowBlock& block, const uint16_t* inputs, int64_t n, float* sums) {
  const int64_t tiles = a.tile_rows * a.tile_columns, stride = 16 * a.width, rows = block.to - block.from;
  const AmxConfig config;
  const Buffer buffer(rows * AMX_COLUMNS / 2);
  uint16_t* const decoded = reinterpret_cast<uint16_t*>(buffer.data);
  for (int64_t column = 0; column < a.tile_columns; ++column, inputs += n * a.width) {
    const int64_t tile = block.tile_row * a.tile_columns + column, first = block.from * a.width;
    const bool dense = a.dense[tile];
    const uint16_t* values = static_cast<const uint16_t*>(a.values) + a.offsets[tile];
    const uint8_t* bits = a.bits + a.offsets[tiles + tile];
    for (int64_t from = 0; from < a.width; from += AMX_COLUMNS) {
      const int64_t width = std::min(AMX_COLUMNS, a.width - from), begin = first + from;
      AmxPanel panel{values + begin, AMX_ROWS * a.width, STEP, 2 * a.width,
                     values + first + AMX_ROWS * from + AMX_DISTANCE};
      if (!dense) {
        decode_rows(values + begin / 2, bits + begin / 8, a.width, rows, width, decoded);
        panel = {decoded, AMX_ROWS * width, AMX_ROWS * STEP, 2 * STEP, nullptr};
      }
      for (int64_t i = 0; i < n; i += 16 * S, panel.ahead = nullptr)
        add_amx_panel<G, S>(panel, rows, width, inputs + i * a.width + 16 * from, stride, sums + i * rows);
    }
  }
}

void gemm_amx(const Packed& a, const uint16_t* inputs, uint16_t* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width;
  const auto padded = [](int64_t count) { return count <= 16 ? 16 : (count + 31) / 32 * 32; };
  const Buffer buffer(padded(std::min(n, AMX_INPUTS)) * columns / 2);
  for (; n > 0; n -= AMX_INPUTS, inputs += AMX_INPUTS * columns, outputs += AMX_INPUTS * a.stride) {
    const int64_t count = std::min(n, AMX_INPUTS), all = padded(count);
    // Two numbers of an input are transposed as one.
    const float* pairs = reinterpret_cast<const float*>(inputs);
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t step = 0; step < columns; step += STEP) {
      const int64_t column = step / a.width, within = step % a.width;
      for (int64_t i = 0; i < all; i += 16)
        transpose_inputs(pairs + (i * columns + step) / 2, columns / 2, count - i,
                         buffer.data + ((column * all + i) * a.width + 16 * within) / 2, 16);
    }
    const auto* packed = reinterpret_cast<const uint16_t*>(buffer.data);
    const auto add = [&](const RowBlock* block, int64_t, float* sums) {
      if (all == 16) add_amx_row_block<4, 1>(a, *block, packed, all, sums);
      else add_amx_row_block<2, 2>(a, *block, packed, all, sums);
    };
    for_each_row_block<1>(a, all, add, [&](int64_t first, int64_t size, const float* sums) {
      for (int64_t i = 0; i < count; i += 16)
        transpose_sums(sums + i * size, 16, size, std::min<int64_t>(count - i, 16), outputs + i * a.stride + first,
                       a.stride);
    });
  }
}

}  // namespace
#endif
