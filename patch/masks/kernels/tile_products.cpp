// Products with a weight under a frozen 2:4 mask and learnable tiles, fp32: a weight is masked while it is packed for
// its product, and the gradient of a masked weight stays in registers.
//
// A weight whose bit is set stays as it is, another is multiplied by its tile's share. Products are cut into registers'
// worth of `R` rows times `V` vectors, as in Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
// (2008). No result depends on the number of threads: each has whole rows, or whole columns.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "vectors.h"

// A layer: see the module that calls this. The width of a tile in weights is a multiple of sixteen.
struct Masked {
  const float* weight;
  const uint8_t* bits;
  const float* shares;
  int64_t rows, columns, tile_height, tile_width, tile_columns;
  int32_t threads;
};

namespace {

// Sums that the registers of AVX-512 hold, beside the operands.
constexpr int R = 12, V = 2;
constexpr int64_t WIDE = V * LANES;
// Weights that are masked at a time: of so many rows, so many columns forward and `WIDE` backward.
constexpr int64_t HIGH = 8 * R, DEEP = 512;

inline int64_t blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }

// `R` rows of `V` vectors of a product.
struct Sums {
  vf at[R][V];
  Sums() : at{} {}
  Sums(const float* from, int64_t stride) {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) at[r][v] = load(from + r * stride + v * LANES);
  }
  void write(float* to, int64_t stride) const {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) store(to + r * stride + v * LANES, at[r][v]);
  }
  // at[r] += sum over k of a[r * across + k * along] * b[k], rows of b following each other.
  __attribute__((always_inline)) void add(const float* a, int64_t across, int64_t along, const float* b,
                                          int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
      vf factor[V];
      for (int v = 0; v < V; ++v) factor[v] = load(b + k * WIDE + v * LANES);
      for (int r = 0; r < R; ++r) {
        const vf one = splat(a[r * across + k * along]);
        for (int v = 0; v < V; ++v) at[r][v] += one * factor[v];
      }
    }
  }
};

template <int S> constexpr int upper(int j) { return j & S ? LANES + j - S : j; }
template <int S> constexpr int lower(int j) { return j & S ? LANES + j : j + S; }

// Swaps, in blocks of `S` by `S` numbers, those above the diagonal with those below.
template <int S> inline void exchange(vf rows[LANES]) {
#define EACH(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
  for (int i = 0; i < LANES; ++i) {
    if (i & S) continue;
    const vf a = rows[i], b = rows[i + S];
    rows[i] = __builtin_shufflevector(a, b, EACH(upper<S>));
    rows[i + S] = __builtin_shufflevector(a, b, EACH(lower<S>));
  }
#undef EACH
}

// Sixteen rows of as many numbers, of which some are there and others zero, become columns; ``columns`` of the first
// ``wanted`` are written.
inline void turn(const float* from, int64_t apart, int64_t rows, float* to, int64_t stride, int64_t columns,
                 int64_t wanted) {
  vf held[LANES];
  for (int i = 0; i < LANES; ++i) held[i] = i < rows ? load(from + i * apart) : vf{};
  exchange<8>(held);
  exchange<4>(held);
  exchange<2>(held);
  exchange<1>(held);
  for (int i = 0; i < wanted; ++i) {
    if (columns >= LANES) store(to + i * stride, held[i]);
    else std::memcpy(to + i * stride, held + i, 4 * columns);
  }
}

// Copies ``count`` numbers, most often `N`, for which the size is a compile-time constant.
template <int64_t N> inline void copy(const float* from, int64_t count, float* to) {
  if (count == N) std::memcpy(to, from, 4 * N);
  else std::memcpy(to, from, 4 * count);
}

// Outputs of the rows from ``first`` to ``last``, and the sum of the squares of each one's masked weights. The inputs
// come as [panels][columns][WIDE].
void forward_rows(const Masked& a, int64_t first, int64_t last, const float* inputs, int64_t tokens, float* outputs,
                  double* norms) {
  constexpr int64_t APART = DEEP + LANES;  // so that not all rows fall into the same places of a cache
  const int64_t panels = blocks(tokens, WIDE), wide = panels * WIDE;
  Room weights(HIGH * APART), products(HIGH * wide);
  for (; first < last; first += HIGH) {
    const int64_t height = std::min(HIGH, last - first), padded = blocks(height, R) * R;
    std::fill_n(products.at, padded * wide, 0.0f);
    for (int64_t begin = 0; begin < a.columns; begin += DEEP) {
      const int64_t depth = std::min(DEEP, a.columns - begin);
      for (int64_t r = 0; r < padded; ++r) {
        float* to = weights.at + r * APART;
        if (r >= height) {
          std::fill_n(to, depth, 0.0f);
          continue;
        }
        const float* shares = a.shares + (first + r) / a.tile_height * a.tile_columns;
        vf squares{};
        for (int64_t i = 0; i < depth;) {
          const int64_t tile = (begin + i) / a.tile_width, end = std::min(depth, (tile + 1) * a.tile_width - begin);
          for (const float share = shares[tile]; i < end; i += LANES) {
            const int64_t place = (first + r) * a.columns + begin + i;
            __builtin_prefetch(a.weight + place + DEEP, 0, 2);
            const vf w = load(a.weight + place), value = select(kept(a.bits, place), w, w * share);
            squares += value * value;
            store(to + i, value);
          }
        }
        norms[first + r] += sum(squares);
      }
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t r = 0; r < padded; r += R) {
          Sums sums(products.at + r * wide + panel * WIDE, wide);
          sums.add(weights.at + r * APART, APART, 1, inputs + (panel * a.columns + begin) * WIDE, depth);
          sums.write(products.at + r * wide + panel * WIDE, wide);
        }
    }
    for (int64_t r = 0; r < height; r += LANES)
      for (int64_t t = 0; t < tokens; t += LANES)
        turn(products.at + r * wide + t, wide, height - r, outputs + t * a.rows + first + r, a.rows, height - r,
             std::min<int64_t>(LANES, tokens - t));
  }
}

// Gradients of `WIDE` columns of the inputs, where they are wanted, and of the shares: of each tile row and sixteen
// columns, to be added up. The outputs' gradient comes as [stacks][high][R].
void backward_columns(const Masked& a, int64_t begin, const float* gradient, int64_t high, const float* inputs,
                      int64_t tokens, float norm_gradient, float* inputs_gradient, double* of_shares) {
  const int64_t width = std::min(WIDE, a.columns - begin), vectors = width / LANES;
  Room gathered(tokens * WIDE), weights(HIGH * WIDE), products(high * WIDE);
  for (int64_t t = 0; t < tokens; ++t) {
    copy<WIDE>(inputs + t * a.columns + begin, width, gathered.at + t * WIDE);
    std::fill_n(gathered.at + t * WIDE + width, WIDE - width, 0.0f);
  }
  std::fill_n(products.at, high * WIDE, 0.0f);
  std::fill_n(weights.at, HIGH * WIDE, 0.0f);
  vf of_tiles[V] = {};
  int64_t tile_row = 0, tile_column[V];
  for (int64_t v = 0; v < vectors; ++v) tile_column[v] = (begin + v * LANES) / a.tile_width;
  for (int64_t first = 0; first < a.rows; first += HIGH) {
    const int64_t height = std::min(HIGH, a.rows - first), padded = blocks(height, R) * R;
    for (int64_t r = 0; r < padded; r += R) {
      Sums of_weights;
      of_weights.add(gradient + (first + r) * high, 1, R, gathered.at, tokens);
      for (int64_t i = 0; i < R; ++i) {
        const int64_t row = first + r + i;
        float* to = weights.at + (r + i) * WIDE;
        if (row >= a.rows) {
          std::fill_n(to, WIDE, 0.0f);
          continue;
        }
        const float* shares = a.shares + tile_row * a.tile_columns;
        for (int64_t v = 0; v < vectors; ++v) {
          const int64_t place = row * a.columns + begin + v * LANES;
          __builtin_prefetch(a.weight + place + HIGH * a.columns, 0, 2);
          const float share = shares[tile_column[v]];
          const vf w = load(a.weight + place);
          const vi whole = kept(a.bits, place);
          store(to + v * LANES, select(whole, w, w * share));
          of_tiles[v] += select(whole, vf{}, w * (of_weights.at[i][v] + 2 * norm_gradient * share * w));
        }
        if (row + 1 < (tile_row + 1) * a.tile_height) continue;
        for (int64_t v = 0; v < vectors; ++v) {
          of_shares[tile_row * (a.columns / LANES) + begin / LANES + v] = sum(of_tiles[v]);
          of_tiles[v] = vf{};
        }
        ++tile_row;
      }
    }
    for (int64_t t = 0; inputs_gradient && t < high; t += R) {
      Sums sums(products.at + t * WIDE, WIDE);
      for (int64_t r = 0; r < padded; r += R)
        sums.add(gradient + (first + r) * high + t * R, R, 1, weights.at + r * WIDE, R);
      sums.write(products.at + t * WIDE, WIDE);
    }
  }
  for (int64_t t = 0; inputs_gradient && t < tokens; ++t)
    copy<WIDE>(products.at + t * WIDE, width, inputs_gradient + t * a.columns + begin);
}

}  // namespace

// Computes outputs [tokens, rows] = inputs [tokens, columns] times the masked weight, and the sum of its squares.
extern "C" double tile_products_forward(const Masked* of, const float* inputs, int64_t tokens, float* outputs) {
  const Masked& a = *of;
  const int64_t panels = blocks(tokens, WIDE), stacks = blocks(a.rows, R);
  Room turned(panels * a.columns * WIDE);
  std::vector<double> norms(a.rows);
#pragma omp parallel num_threads(a.threads)
  {
    const FlushDenormals flush;
#pragma omp for schedule(static) collapse(2)
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int64_t column = 0; column < a.columns; column += LANES)
        for (int64_t t = 0; t < WIDE; t += LANES)
          turn(inputs + (panel * WIDE + t) * a.columns + column, a.columns, tokens - panel * WIDE - t,
               turned.at + (panel * a.columns + column) * WIDE + t, WIDE, LANES, LANES);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < a.threads; ++part)
      forward_rows(a, stacks * part / a.threads * R, std::min(a.rows, stacks * (part + 1) / a.threads * R), turned.at,
                   tokens, outputs, norms.data());
  }
  return std::accumulate(norms.begin(), norms.end(), 0.0);
}

// Sets the gradient of the inputs, if wanted, and adds that of the shares, from those of the outputs [tokens, rows] and
// of the sum of squares.
extern "C" void tile_products_backward(const Masked* of, const float* gradient, const float* inputs, int64_t tokens,
                                       float norm_gradient, float* inputs_gradient, float* shares_gradient) {
  const Masked& a = *of;
  const int64_t high = blocks(tokens, R) * R, stacks = blocks(a.rows, R), vectors = a.columns / LANES;
  Room turned(stacks * high * R);
  std::vector<double> parts(a.rows / a.tile_height * vectors);
#pragma omp parallel num_threads(a.threads)
  {
    const FlushDenormals flush;
#pragma omp for schedule(static)
    for (int64_t stack = 0; stack < stacks; ++stack) {
      float* to = turned.at + stack * high * R;
      std::fill_n(to, high * R, 0.0f);
      for (int64_t t = 0; t < tokens; ++t)
        copy<R>(gradient + t * a.rows + stack * R, std::min<int64_t>(R, a.rows - stack * R), to + t * R);
    }
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < a.columns; begin += WIDE)
      backward_columns(a, begin, turned.at, high, inputs, tokens, norm_gradient, inputs_gradient, parts.data());
  }
  const int64_t across = a.tile_width / LANES;
  for (size_t tile = 0; tile < parts.size() / across; ++tile)
    shares_gradient[tile] += float(std::accumulate(parts.begin() + tile * across, parts.begin() + (tile + 1) * across,
                                                   0.0));
}
