// Products with inputs in bf16: sixteen rows by 32 columns of weights, times sixteen inputs, at a time, by AMX or by
// dot products of pairs in AVX-512. Weights of a sparse tile are decoded into a cached buffer that all inputs use.

#pragma once

#if defined(__AVX512BF16__)
#include <sys/syscall.h>
#include <unistd.h>

#include "decode.h"

namespace {

// Rows and inputs of a block of products.
constexpr int BLOCK_ROWS = 16, BLOCK_INPUTS = 16;
// Largest number of inputs multiplied while a tile is cached, and number of columns decoded at a time.
constexpr int64_t CACHED_INPUTS = 512, DECODED_COLUMNS = 128;
// Prefetch distance in weights, into the L2 cache.
constexpr int WEIGHTS_DISTANCE = 16384;

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
struct Bf16Panel {
  const uint16_t* weights;
  int64_t rows_stride, columns_stride, row_bytes;
  const uint16_t* ahead;  // weights to prefetch, or null

  // Prefetches sixteen rows of 32 columns: a prefetch of all weights at once would delay the current loads.
  inline __attribute__((always_inline)) void prefetch_block(int64_t rows, int64_t column) const {
    if (ahead) prefetch(ahead + rows * rows_stride + BLOCK_ROWS * column, 2 * BLOCK_ROWS * STEP);
  }
};

// Each microkernel adds the products of G times sixteen rows of ``width`` columns and S times sixteen inputs [width / 2,
// 16, 2], ``stride`` numbers apart, to sums [S, rows, 16].

struct VectorMicrokernel {
  // Values of G for one and for two blocks of inputs.
  static constexpr int ONE = 1, TWO = 1;
  struct Setup {};

  template <int G, int S>
  static inline __attribute__((always_inline)) void add(const Bf16Panel& panel, int64_t width, const uint16_t* inputs,
                                                        int64_t stride, float* sums, int64_t rows) {
    static_assert(G == 1);
    // Rows whose sums stay in registers.
    constexpr int R = 16 / S;
    for (int first = 0; first < BLOCK_ROWS; first += R) {
      float* const to = sums + LANES * first;
      __m512 total[R][S];
      unroll<R>([&](auto r) {
        unroll<S>([&](auto s) { total[r][s] = _mm512_loadu_ps(to + LANES * (s * rows + r)); });
      });
      const char* block = reinterpret_cast<const char*>(panel.weights) + first * panel.row_bytes;
      for (int64_t i = 0; i < width; i += STEP, block += 2 * panel.columns_stride) {
        if (!first) panel.prefetch_block(0, i);
        for (int pair = 0; pair < STEP / 2; ++pair) {
          __m512bh x[S];
          unroll<S>([&](auto s) {
            x[s] = (__m512bh)_mm512_loadu_si512(inputs + s * stride + 16 * i + 2 * LANES * pair);
          });
          unroll<R>([&](auto r) {
            int32_t weights;
            std::memcpy(&weights, block + r * panel.row_bytes + 4 * pair, sizeof weights);
            const __m512bh w = (__m512bh)_mm512_set1_epi32(weights);
            unroll<S>([&](auto s) { total[r][s] = _mm512_dpbf16_ps(total[r][s], w, x[s]); });
          });
        }
      }
      unroll<R>([&](auto r) {
        unroll<S>([&](auto s) { _mm512_storeu_ps(to + LANES * (s * rows + r), total[r][s]); });
      });
    }
  }
};

#if defined(__AMX_BF16__)
// Returns whether the system grants the registers of AMX, for which a process must ask.
bool amx_available() {
  constexpr int REQUEST = 0x1023, DATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, DATA) == 0;
  return granted;
}

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

struct AmxMicrokernel {
  static constexpr int ONE = 4, TWO = 2;
  struct Setup {
    Setup() {
      struct alignas(64) { uint8_t palette = 1, rest[15] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } shapes;
      for (int i = 0; i < 8; ++i) shapes.bytes[i] = 64, shapes.rows[i] = BLOCK_ROWS;
      _tile_loadconfig(&shapes);
    }
    ~Setup() { _tile_release(); }
  };

  // Registers 0 to 3 hold sums, 4 and 5 weights, 6 and 7 inputs.
  template <int G, int S>
  static inline __attribute__((always_inline)) void add(const Bf16Panel& panel, int64_t width, const uint16_t* inputs,
                                                        int64_t stride, float* sums, int64_t rows) {
    unroll<G>([&](auto g) {
      unroll<S>([&](auto s) { amx_load<g * S + s>(sums + 16 * (s * rows + 16 * g), 64); });
    });
    for (int64_t i = 0; i < width; i += STEP) {
      unroll<S>([&](auto s) { amx_load<6 + s>(inputs + s * stride + 16 * i, 64); });
      unroll<G>([&](auto g) {
        panel.prefetch_block(g, i);
        amx_load<4 + g % 2>(panel.weights + g * panel.rows_stride + i / STEP * panel.columns_stride, panel.row_bytes);
        unroll<S>([&](auto s) { amx_multiply<g * S + s, 4 + g % 2, 6 + s>(); });
      });
    }
    unroll<G>([&](auto g) {
      unroll<S>([&](auto s) { amx_store<g * S + s>(sums + 16 * (s * rows + 16 * g), 64); });
    });
  }
};
#endif

// Decodes rows of a sparse tile to [rows / 16, width / 32, 16, 32].
inline void decode_rows(const uint16_t* values, const uint8_t* bits, int64_t stride, int64_t rows, int64_t width,
                        uint16_t* to) {
  for (int64_t row = 0; row < rows; ++row, values += stride / 2, bits += stride / 8) {
    prefetch(values + WEIGHTS_DISTANCE, width);
    uint16_t* out = to + row / BLOCK_ROWS * BLOCK_ROWS * width + row % BLOCK_ROWS * STEP;
    for (int64_t i = 0; i < width; i += STEP, out += BLOCK_ROWS * STEP) {
      uint32_t word;
      std::memcpy(&word, bits + i / 8, sizeof word);
      decode(values + i / 2, word, out);
    }
  }
}

// Adds the products of the rows of a panel, a multiple of sixteen, and S times sixteen inputs.
template <typename Microkernel, int G, int S>
void add_bf16_panel(Bf16Panel panel, int64_t rows, int64_t width, const uint16_t* inputs, int64_t stride, float* sums) {
  for (int64_t row = 0, count; row < rows; row += count) {
    count = rows - row >= BLOCK_ROWS * G ? BLOCK_ROWS * G : BLOCK_ROWS;
    float* const to = sums + BLOCK_INPUTS * row;
    if (count == BLOCK_ROWS) Microkernel::template add<1, S>(panel, width, inputs, stride, to, rows);
    else Microkernel::template add<G, S>(panel, width, inputs, stride, to, rows);
    panel.weights += count / BLOCK_ROWS * panel.rows_stride;
    if (panel.ahead) panel.ahead += count / BLOCK_ROWS * panel.rows_stride;
  }
}

// Adds the products of a row block, its rows a multiple of sixteen, and ``n`` inputs, a multiple of 16 S, packed as
// [tile columns, n / 16, width / 2, 16, 2], to sums [n / 16, rows, 16].
template <typename Microkernel, int G, int S>
void add_bf16_row_block(const Packed& a, const RowBlock& block, const uint16_t* inputs, int64_t n, float* sums) {
  const int64_t tiles = a.tile_rows * a.tile_columns, stride = BLOCK_INPUTS * a.width, rows = block.to - block.from;
  [[maybe_unused]] const typename Microkernel::Setup setup;
  const Buffer buffer(rows * DECODED_COLUMNS / 2);
  uint16_t* const decoded = reinterpret_cast<uint16_t*>(buffer.data);
  for (int64_t column = 0; column < a.tile_columns; ++column, inputs += n * a.width) {
    const int64_t tile = block.tile_row * a.tile_columns + column, first = block.from * a.width;
    const bool dense = a.dense[tile];
    const uint16_t* values = static_cast<const uint16_t*>(a.values) + a.offsets[tile];
    const uint8_t* bits = a.bits + a.offsets[tiles + tile];
    for (int64_t from = 0; from < a.width; from += DECODED_COLUMNS) {
      const int64_t width = std::min(DECODED_COLUMNS, a.width - from), begin = first + from;
      Bf16Panel panel{values + begin, BLOCK_ROWS * a.width, STEP, 2 * a.width,
                      values + first + BLOCK_ROWS * from + WEIGHTS_DISTANCE};
      if (!dense) {
        decode_rows(values + begin / 2, bits + begin / 8, a.width, rows, width, decoded);
        panel = {decoded, BLOCK_ROWS * width, BLOCK_ROWS * STEP, 2 * STEP, nullptr};
      }
      for (int64_t i = 0; i < n; i += BLOCK_INPUTS * S, panel.ahead = nullptr)
        add_bf16_panel<Microkernel, G, S>(panel, rows, width, inputs + i * a.width + BLOCK_INPUTS * from, stride,
                                          sums + i * rows);
    }
  }
}

template <typename Microkernel>
void gemm_bf16(const Packed& a, const uint16_t* inputs, uint16_t* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width;
  const auto padded = [](int64_t count) { return count <= 16 ? 16 : (count + 31) / 32 * 32; };
  const Buffer buffer(padded(std::min(n, CACHED_INPUTS)) * columns / 2);
  for (; n > 0; n -= CACHED_INPUTS, inputs += CACHED_INPUTS * columns, outputs += CACHED_INPUTS * a.stride) {
    const int64_t count = std::min(n, CACHED_INPUTS), all = padded(count);
    // Two numbers of an input are transposed as one.
    const float* pairs = reinterpret_cast<const float*>(inputs);
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t step = 0; step < columns; step += STEP) {
      const int64_t column = step / a.width, within = step % a.width;
      for (int64_t i = 0; i < all; i += BLOCK_INPUTS)
        transpose_inputs(pairs + (i * columns + step) / 2, columns / 2, count - i,
                         buffer.data + ((column * all + i) * a.width + BLOCK_INPUTS * within) / 2, BLOCK_INPUTS);
    }
    const auto* packed = reinterpret_cast<const uint16_t*>(buffer.data);
    const auto add = [&](const RowBlock* block, int64_t, float* sums) {
      if (all == BLOCK_INPUTS) add_bf16_row_block<Microkernel, Microkernel::ONE, 1>(a, *block, packed, all, sums);
      else add_bf16_row_block<Microkernel, Microkernel::TWO, 2>(a, *block, packed, all, sums);
    };
    for_each_row_block<1>(a, all, add, [&](int64_t first, int64_t size, const float* sums) {
      for (int64_t i = 0; i < count; i += BLOCK_INPUTS)
        transpose_sums(sums + i * size, BLOCK_INPUTS, size, std::min<int64_t>(count - i, BLOCK_INPUTS),
                       outputs + i * a.stride + first, a.stride);
    });
  }
}

}  // namespace
#endif
