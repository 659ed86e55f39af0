// Products in fp32 with a weight under a frozen 2:4 mask and learnable tiles. A weight is masked while it is packed,
// and the gradient of a masked weight stays in registers.
//
// A weight whose bit is set stays, and another is multiplied by the dense fraction of its tile. A microkernel computes
// `R` rows times `V` vectors, as in Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).
// No result depends on the number of threads: each has whole rows, or whole columns.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "vectors.h"

// A layer, as in products.py. The width of a tile in weights is a multiple of sixteen.
struct MaskedLayer {
  const float* weight;
  const uint8_t* bits;
  const float* fractions;
  int64_t rows, columns, tile_height, tile_width, tile_columns;
  int32_t threads;
};

namespace {

// Rows and vectors of accumulators that fit the registers of AVX-512 beside the operands.
constexpr int R = 12, V = 2;
constexpr int64_t PANEL = V * LANES;
// Rows, and in the forward pass columns, of weights that are masked at a time.
constexpr int64_t BLOCK_ROWS = 8 * R, BLOCK_COLUMNS = 512;

inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Microkernel: `R` rows of `V` vectors of a product.
struct Accumulators {
  f32x16 at[R][V];
  Accumulators() : at{} {}
  Accumulators(const float* from, int64_t stride) {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) at[r][v] = load(from + r * stride + v * LANES);
  }
  void write(float* to, int64_t stride) const {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) store(to + r * stride + v * LANES, at[r][v]);
  }
  // at[r] += sum over k of a[r * row_stride + k * stride] * b[k], with consecutive rows of b.
  __attribute__((always_inline)) void add(const float* a, int64_t row_stride, int64_t stride, const float* b,
                                          int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
      f32x16 row[V];
      for (int v = 0; v < V; ++v) row[v] = load(b + k * PANEL + v * LANES);
      for (int r = 0; r < R; ++r) {
        const f32x16 factor = broadcast(a[r * row_stride + k * stride]);
        for (int v = 0; v < V; ++v) at[r][v] += factor * row[v];
      }
    }
  }
};

// Transposes sixteen rows of as many numbers, ``from_stride`` apart, of which rows from ``rows`` on are zero. Writes
// ``columns`` numbers of each of the first ``wanted`` columns.
inline void transpose_block(const float* from, int64_t from_stride, int64_t rows, float* to, int64_t to_stride,
                            int64_t columns, int64_t wanted) {
  f32x16 block[LANES];
  for (int i = 0; i < LANES; ++i) block[i] = i < rows ? load(from + i * from_stride) : f32x16{};
  transpose<LANES>(block);
  for (int i = 0; i < wanted; ++i) {
    if (columns >= LANES) store(to + i * to_stride, block[i]);
    else std::memcpy(to + i * to_stride, block + i, 4 * columns);
  }
}

// Copies ``count`` numbers; for `N`, the usual count, the size is a compile-time constant.
template <int64_t N> inline void copy(const float* from, int64_t count, float* to) {
  if (count == N) std::memcpy(to, from, 4 * N);
  else std::memcpy(to, from, 4 * count);
}

// Computes the outputs of rows from ``first`` up to ``last``, and the sum of squares of the masked weights of each. The
// inputs are packed as [panels][columns][PANEL].
void forward_rows(const MaskedLayer& a, int64_t first, int64_t last, const float* inputs, int64_t tokens,
                  float* outputs, double* norms) {
  constexpr int64_t STRIDE = BLOCK_COLUMNS + LANES;  // distributes the rows over the sets of a cache
  const int64_t panels = ceil_div(tokens, PANEL), wide = panels * PANEL;
  Buffer weights(BLOCK_ROWS * STRIDE), products(BLOCK_ROWS * wide);
  for (; first < last; first += BLOCK_ROWS) {
    const int64_t height = std::min(BLOCK_ROWS, last - first), padded = ceil_div(height, R) * R;
    std::fill_n(products.data, padded * wide, 0.0f);
    for (int64_t begin = 0; begin < a.columns; begin += BLOCK_COLUMNS) {
      const int64_t depth = std::min(BLOCK_COLUMNS, a.columns - begin);
      for (int64_t r = 0; r < padded; ++r) {
        float* to = weights.data + r * STRIDE;
        if (r >= height) {
          std::fill_n(to, depth, 0.0f);
          continue;
        }
        const float* fractions = a.fractions + (first + r) / a.tile_height * a.tile_columns;
        f32x16 squares{};
        for (int64_t i = 0; i < depth;) {
          const int64_t tile = (begin + i) / a.tile_width, end = std::min(depth, (tile + 1) * a.tile_width - begin);
          for (const float fraction = fractions[tile]; i < end; i += LANES) {
            const int64_t place = (first + r) * a.columns + begin + i;
            __builtin_prefetch(a.weight + place + BLOCK_COLUMNS, 0, 2);
            const f32x16 w = load(a.weight + place), value = select(keep_mask(a.bits, place), w, w * fraction);
            squares += value * value;
            store(to + i, value);
          }
        }
        norms[first + r] += sum(squares);
      }
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t r = 0; r < padded; r += R) {
          Accumulators sums(products.data + r * wide + panel * PANEL, wide);
          sums.add(weights.data + r * STRIDE, STRIDE, 1, inputs + (panel * a.columns + begin) * PANEL, depth);
          sums.write(products.data + r * wide + panel * PANEL, wide);
        }
    }
    for (int64_t r = 0; r < height; r += LANES)
      for (int64_t t = 0; t < tokens; t += LANES)
        transpose_block(products.data + r * wide + t, wide, height - r, outputs + t * a.rows + first + r, a.rows,
                        height - r, std::min<int64_t>(LANES, tokens - t));
  }
}

// Computes the gradients of `PANEL` columns of the inputs, unless null, and the sums of the gradient of the dense
// fractions over each row of tiles and sixteen columns. The gradient of the outputs is packed as [row panels][padded
// tokens][R].
void backward_columns(const MaskedLayer& a, int64_t begin, const float* gradient, int64_t padded_tokens,
                      const float* inputs, int64_t tokens, float norm_gradient, float* inputs_gradient,
                      double* fraction_sums) {
  const int64_t width = std::min(PANEL, a.columns - begin), vectors = width / LANES;
  Buffer gathered(tokens * PANEL), weights(BLOCK_ROWS * PANEL), products(padded_tokens * PANEL);
  for (int64_t t = 0; t < tokens; ++t) {
    copy<PANEL>(inputs + t * a.columns + begin, width, gathered.data + t * PANEL);
    std::fill_n(gathered.data + t * PANEL + width, PANEL - width, 0.0f);
  }
  std::fill_n(products.data, padded_tokens * PANEL, 0.0f);
  std::fill_n(weights.data, BLOCK_ROWS * PANEL, 0.0f);
  f32x16 tile_sums[V] = {};
  int64_t tile_row = 0, tile_column[V];
  for (int64_t v = 0; v < vectors; ++v) tile_column[v] = (begin + v * LANES) / a.tile_width;
  for (int64_t first = 0; first < a.rows; first += BLOCK_ROWS) {
    const int64_t height = std::min(BLOCK_ROWS, a.rows - first), padded = ceil_div(height, R) * R;
    for (int64_t r = 0; r < padded; r += R) {
      Accumulators weight_gradient;
      weight_gradient.add(gradient + (first + r) * padded_tokens, 1, R, gathered.data, tokens);
      for (int64_t i = 0; i < R; ++i) {
        const int64_t row = first + r + i;
        float* to = weights.data + (r + i) * PANEL;
        if (row >= a.rows) {
          std::fill_n(to, PANEL, 0.0f);
          continue;
        }
        const float* fractions = a.fractions + tile_row * a.tile_columns;
        for (int64_t v = 0; v < vectors; ++v) {
          const int64_t place = row * a.columns + begin + v * LANES;
          __builtin_prefetch(a.weight + place + BLOCK_ROWS * a.columns, 0, 2);
          const float fraction = fractions[tile_column[v]];
          const f32x16 w = load(a.weight + place);
          const i32x16 kept = keep_mask(a.bits, place);
          store(to + v * LANES, select(kept, w, w * fraction));
          tile_sums[v] += select(kept, f32x16{}, w * (weight_gradient.at[i][v] + 2 * norm_gradient * fraction * w));
        }
        if (row + 1 < (tile_row + 1) * a.tile_height) continue;
        for (int64_t v = 0; v < vectors; ++v) {
          fraction_sums[tile_row * (a.columns / LANES) + begin / LANES + v] = sum(tile_sums[v]);
          tile_sums[v] = f32x16{};
        }
        ++tile_row;
      }
    }
    for (int64_t t = 0; inputs_gradient && t < padded_tokens; t += R) {
      Accumulators sums(products.data + t * PANEL, PANEL);
      for (int64_t r = 0; r < padded; r += R)
        sums.add(gradient + (first + r) * padded_tokens + t * R, R, 1, weights.data + r * PANEL, R);
      sums.write(products.data + t * PANEL, PANEL);
    }
  }
  for (int64_t t = 0; inputs_gradient && t < tokens; ++t)
    copy<PANEL>(products.data + t * PANEL, width, inputs_gradient + t * a.columns + begin);
}

}  // namespace

// Computes outputs [tokens, rows] of inputs [tokens, columns], and returns the sum of squares of the masked weight.
extern "C" double tile_products_forward(const MaskedLayer* layer, const float* inputs, int64_t tokens, float* outputs) {
  const MaskedLayer& a = *layer;
  const int64_t panels = ceil_div(tokens, PANEL), row_panels = ceil_div(a.rows, R);
  Buffer packed(panels * a.columns * PANEL);
  std::vector<double> norms(a.rows);
#pragma omp parallel num_threads(a.threads)
  {
    const FlushDenormals flush;
#pragma omp for schedule(static) collapse(2)
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int64_t column = 0; column < a.columns; column += LANES)
        for (int64_t t = 0; t < PANEL; t += LANES)
          transpose_block(inputs + (panel * PANEL + t) * a.columns + column, a.columns, tokens - panel * PANEL - t,
                          packed.data + (panel * a.columns + column) * PANEL + t, PANEL, LANES, LANES);
#pragma omp for schedule(static)
    for (int64_t thread = 0; thread < a.threads; ++thread)
      forward_rows(a, row_panels * thread / a.threads * R, std::min(a.rows, row_panels * (thread + 1) / a.threads * R),
                   packed.data, tokens, outputs, norms.data());
  }
  return std::accumulate(norms.begin(), norms.end(), 0.0);
}

// Sets the gradient of the inputs, unless null, and adds that of the dense fractions, given those of the outputs
// [tokens, rows] and of the sum of squares.
extern "C" void tile_products_backward(const MaskedLayer* layer, const float* gradient, const float* inputs,
                                       int64_t tokens, float norm_gradient, float* inputs_gradient,
                                       float* fractions_gradient) {
  const MaskedLayer& a = *layer;
  const int64_t padded_tokens = ceil_div(tokens, R) * R, row_panels = ceil_div(a.rows, R), vectors = a.columns / LANES;
  Buffer packed(row_panels * padded_tokens * R);
  std::vector<double> fraction_sums(a.rows / a.tile_height * vectors);
#pragma omp parallel num_threads(a.threads)
  {
    const FlushDenormals flush;
#pragma omp for schedule(static)
    for (int64_t row_panel = 0; row_panel < row_panels; ++row_panel) {
      float* to = packed.data + row_panel * padded_tokens * R;
      std::fill_n(to, padded_tokens * R, 0.0f);
      for (int64_t t = 0; t < tokens; ++t)
        copy<R>(gradient + t * a.rows + row_panel * R, std::min<int64_t>(R, a.rows - row_panel * R), to + t * R);
    }
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < a.columns; begin += PANEL)
      backward_columns(a, begin, packed.data, padded_tokens, inputs, tokens, norm_gradient, inputs_gradient,
                       fraction_sums.data());
  }
  const int64_t vectors_per_tile = a.tile_width / LANES;
  for (size_t tile = 0; tile < fraction_sums.size() / vectors_per_tile; ++tile)
    fractions_gradient[tile] += float(std::accumulate(fraction_sums.begin() + tile * vectors_per_tile,
                                                      fraction_sums.begin() + (tile + 1) * vectors_per_tile, 0.0));
}
