// Products with more inputs. The inputs are packed so that vectors hold the same column of several inputs, and each
// stored value is multiplied by the vectors of its column; masked weights are skipped.

#pragma once

#include "packed.h"

namespace {

// Accumulators in registers at a time.
constexpr int ACCUMULATORS = REGISTER == 16 ? 16 : 8;
// Largest number of inputs in a panel, and of such panels multiplied while a tile is cached.
constexpr int64_t PANEL_INPUTS = 4 * REGISTER, PANELS = 4;
// Number of columns of a panel, whose inputs fit the L1 cache.
constexpr int64_t PANEL_COLUMNS = 128;
// Prefetch distance of weights in bytes, into the L2 cache.
constexpr int64_t GEMM_DISTANCE = 32768;

// For each byte of bits, the offsets in bytes of the inputs of its four weights, 16 bits each, among those of eight
// columns of V vectors.
template <int V>
struct InputOffsets {
  uint64_t value[256] = {};
  InputOffsets() {
    for (int byte = 0; byte < 256; ++byte)
      for (int i = 0, next = 0; i < 8; ++i)
        if (byte >> i & 1 && next < 4) value[byte] |= uint64_t(4 * REGISTER * V * i) << 16 * next++;
  }
};
template <int V> const InputOffsets<V> input_offsets;

// Keeps an address in a register: computing it again from its two parts takes longer.
inline void keep_in_register(const char*& address) { asm volatile("" : "+r"(address)); }

// Returns values in fp32: fp32 values as they are, bf16 values converted into ``buffer``.
inline const float* as_f32(const float* values, int64_t, float*) { return values; }
inline const float* as_f32(const uint16_t* values, int64_t count, float* buffer) {
  for (int64_t i = 0; i < count; ++i) buffer[i] = to_f32(values[i]);
  return buffer;
}

// Microkernel of a sparse tile: adds the products of a part of one row and inputs [width, V, REGISTER].
template <int V>
inline __attribute__((always_inline)) void sparse_microkernel(const float* values, const uint8_t* bits, int64_t width,
                                                              const float* inputs, float* sums) {
  // Enough accumulators for an addition to begin before another has ended.
  constexpr int SETS = V <= 2 ? 4 : 2;
  Register total[SETS][V] = {};
  for (int64_t i = 0; i < width; i += 8, values += 4, inputs += 8 * REGISTER * V) {
    const uint64_t offsets = input_offsets<V>.value[*bits++];
    for (int n = 0; n < 4; ++n) {
      const char* column = reinterpret_cast<const char*>(inputs) + (offsets >> 16 * n & 0xffff);
      keep_in_register(column);
      for (int v = 0; v < V; ++v)
        total[n % SETS][v] += values[n] * load<Register>(reinterpret_cast<const float*>(column) + REGISTER * v);
    }
  }
  for (int v = 0; v < V; ++v) {
    Register all = load<Register>(sums + REGISTER * v);
    for (int set = 0; set < SETS; ++set) all += total[set][v];
    store(sums + REGISTER * v, all);
  }
}

// Microkernel of a dense tile: adds the products of a part of `R` rows, ``stride`` apart, and inputs [width, V,
// REGISTER]. It prefetches ``bytes`` of ``ahead``, unless that is null, with each sixteen columns: a prefetch of all at
// once would delay the current loads.
template <int R, int V>
inline __attribute__((always_inline)) void dense_microkernel(const float* values, int64_t stride, int64_t width,
                                                             const char* ahead, int64_t bytes, const float* inputs,
                                                             float* sums) {
  Register total[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) total[r][v] = load<Register>(sums + REGISTER * (r * V + v));
  for (int64_t begin = 0; begin < width; begin += 16) {
    if (ahead) prefetch(ahead + begin / 16 * bytes, bytes);
    for (int64_t i = begin; i < begin + 16; ++i, inputs += REGISTER * V)
      for (int v = 0; v < V; ++v) {
        const Register x = load<Register>(inputs + REGISTER * v);
        for (int r = 0; r < R; ++r) total[r][v] += values[r * stride + i] * x;
      }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(sums + REGISTER * (r * V + v), total[r][v]);
}

// Consecutive columns of a tile.
struct Panel {
  const float* values;
  const uint8_t* bits;  // null for a dense tile
  int64_t stride, width;  // stride between rows, in weights
  const char* stored;  // the stored values
  int64_t bytes;  // stored bytes of a row
};

// Adds the products of the rows of a panel, a multiple of sixteen, and inputs [width, V, REGISTER]. Prefetches as many
// rows of a later tile if ``prefetch_weights``, and with four vectors the inputs at ``next``.
template <int V>
void add_panel(const Panel& panel, int64_t rows, bool prefetch_weights, const float* inputs, const float* next,
               float* sums) {
  const int64_t step = panel.bits ? 1 : ACCUMULATORS / V, row_inputs = REGISTER * V * panel.width / rows;
  const int64_t bytes = 16 * step * panel.bytes / panel.width;
  for (int64_t row = 0; row < rows; row += step, sums += REGISTER * V * step) {
    const char* const ahead = prefetch_weights ? panel.stored + row * panel.bytes + GEMM_DISTANCE : nullptr;
    if (prefetch_weights && panel.bits) prefetch(ahead, panel.bytes);
    if constexpr (V == 4) prefetch(next + row * row_inputs, 4 * step * row_inputs);
    const int64_t first = row * panel.stride;
    if (panel.bits) sparse_microkernel<V>(panel.values + first / 2, panel.bits + first / 8, panel.width, inputs, sums);
    else dense_microkernel<ACCUMULATORS / V, V>(panel.values + first, panel.stride, panel.width, ahead, bytes, inputs,
                                                sums);
  }
}

// Returns the number of vectors, a power of two, that hold some inputs.
inline int vectors_for(int64_t count) { return count > 2 * REGISTER ? 4 : count > REGISTER ? 2 : 1; }

// Adds the products of a row block, its rows a multiple of sixteen, and ``n`` inputs: panels of [in, V, REGISTER], of
// `PANEL_INPUTS` each but for the last one.
template <typename T>
void add_row_block(const Packed& a, const RowBlock& block, const float* inputs, int64_t n, float* sums) {
  const int64_t tiles = a.tile_rows * a.tile_columns, columns = a.tile_columns * a.width, rows = block.to - block.from;
  const Buffer buffer(sizeof(T) == sizeof(float) ? 0 : rows * a.width);
  for (int64_t column = 0; column < a.tile_columns; ++column) {
    const int64_t tile = block.tile_row * a.tile_columns + column, divisor = a.dense[tile] ? 1 : 2;
    const T* stored = static_cast<const T*>(a.values) + a.offsets[tile] + block.from * a.width / divisor;
    const uint8_t* bits = a.dense[tile] ? nullptr : a.bits + a.offsets[tiles + tile] + block.from * a.width / 8;
    const float* values = as_f32(stored, rows * a.width / divisor, buffer.data);
    for (int64_t from = 0; from < a.width; from += PANEL_COLUMNS) {
      const int64_t width = std::min(PANEL_COLUMNS, a.width - from);
      const Panel panel{values + from / divisor, bits ? bits + from / 8 : nullptr, a.width, width,
                        reinterpret_cast<const char*>(stored + from * rows / divisor),
                        int64_t(width * sizeof(T) / divisor)};
      for (int64_t first = 0; first < n; first += PANEL_INPUTS) {
        const int v = vectors_for(std::min(n - first, PANEL_INPUTS));
        const int64_t at = column * a.width + from;
        const float* current = inputs + first * columns + REGISTER * v * at;
        const float* next = inputs + (first + PANEL_INPUTS < n ? (first + PANEL_INPUTS) * columns + PANEL_INPUTS * at
                                                               : PANEL_INPUTS * (at + width));
        float* to = sums + first * rows;
        if (v == 1) add_panel<1>(panel, rows, !first, current, next, to);
        else if (v == 2) add_panel<2>(panel, rows, !first, current, next, to);
        else add_panel<4>(panel, rows, !first, current, next, to);
      }
    }
  }
}

template <typename T>
void gemm(const Packed& a, const T* inputs, T* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width;
  const int64_t most = (std::min(n, PANELS * PANEL_INPUTS) + PANEL_INPUTS - 1) / PANEL_INPUTS * PANEL_INPUTS;
  const Buffer packed(most * columns);
  for (; n > 0; n -= PANELS * PANEL_INPUTS, inputs += PANELS * PANEL_INPUTS * columns,
                outputs += PANELS * PANEL_INPUTS * a.stride) {
    const int64_t all = std::min(n, PANELS * PANEL_INPUTS);
    for (int64_t first = 0; first < all; first += PANEL_INPUTS) {
      const int64_t count = std::min(all - first, PANEL_INPUTS), stride = REGISTER * vectors_for(count);
#pragma omp parallel for num_threads(a.threads) schedule(static)
      for (int64_t begin = 0; begin < columns; begin += 16)
        for (int64_t input = 0; input < stride; input += REGISTER)
          for (int64_t i = begin; i < begin + 16; i += REGISTER)
            transpose_inputs(inputs + (first + input) * columns + i, columns, count - input,
                             packed.data + first * columns + stride * i + input, stride);
    }
    const auto add = [&](const RowBlock* block, int64_t, float* sums) {
      add_row_block<T>(a, *block, packed.data, all, sums);
    };
    for_each_row_block<1>(a, most, add, [&](int64_t row, int64_t size, const float* sums) {
      for (int64_t first = 0; first < all; first += PANEL_INPUTS) {
        const int64_t count = std::min(all - first, PANEL_INPUTS);
        transpose_sums(sums + first * size, REGISTER * vectors_for(count), size, count,
                       outputs + first * a.stride + row, a.stride);
      }
    });
  }
}

}  // namespace
