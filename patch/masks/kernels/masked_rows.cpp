// Masks of some rows of a linear layer, made and differentiated in registers.
//
// A vector is sixteen groups of four weights. Their weights are split into four vectors, one for each place in a group,
// and the six probabilities of the patterns stay in the caches. GCC and Clang compile the vector types to the
// instructions of the target processor. No result depends on the number of threads: a thread
// has whole rows, and sums over rows are formed in order.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "vectors.h"

namespace {

inline vf larger(vf a, vf b) { return select(a > b, a, b); }

// e^x for x <= 0, zero below -87; a polynomial of 2^f on [-1/2, 1/2], relative error below 2e-7.
inline vf exp_(vf x) {
  const vf y = x * 1.44269504088896341f;
  const vf rounded = (y + 12582912.0f) - 12582912.0f;
  const vf f = (x - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const vi exponent = (__builtin_convertvector(rounded, vi) + 127) << 23;
  return select(x <= -87.0f, vf{}, p * (vf)exponent);
}

// Natural logarithm of a positive normal number, relative error below 2e-7.
inline vf log_(vf x) {
  vi bits = (vi)x;
  // The mantissa in [sqrt(1/2), sqrt(2)).
  const vi exponent = (bits - 0x3f3504f3) >> 23;
  bits -= exponent << 23;
  const vf m = (vf)bits - 1.0f, e = __builtin_convertvector(exponent, vf);
  const vf z = m * m;
  vf p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * z - e * 2.12194440e-4f - 0.5f * z;
  return m + p + e * 0.693359375f;
}

// A keyed 32-bit mixer of sixteen indices from ``index`` on: see patch/masks/noise.py, which has the same in PyTorch.
inline vu mix(uint32_t index, uint32_t first, uint32_t second) {
  const vu lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vu x = lane * 0x9E3779B9u + (index * 0x9E3779B9u + first);
  x ^= x >> 16; x *= 0x7FEB352Du; x ^= x >> 15; x *= 0x846CA68Bu; x ^= x >> 16;
  x += second;
  x ^= x >> 16;
  return x * 0x21F0AAADu;
}

// -log(u) of uniform u from the upper 23 bits: a standard exponential variable.
inline vf exponential(uint32_t index, uint32_t first, uint32_t second) {
  const vi upper = (vi)(mix(index, first, second) >> 9);
  return -log_((__builtin_convertvector(upper, vf) + 0.5f) * 1.1920928955078125e-7f);
}

struct Places { vf at[4]; };

inline Places apart(const vf a, const vf b, const vf c, const vf d) {
  const vf ab02 = __builtin_shufflevector(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 2, 6, 10, 14, 18, 22, 26, 30);
  const vf ab13 = __builtin_shufflevector(a, b, 1, 5, 9, 13, 17, 21, 25, 29, 3, 7, 11, 15, 19, 23, 27, 31);
  const vf cd02 = __builtin_shufflevector(c, d, 0, 4, 8, 12, 16, 20, 24, 28, 2, 6, 10, 14, 18, 22, 26, 30);
  const vf cd13 = __builtin_shufflevector(c, d, 1, 5, 9, 13, 17, 21, 25, 29, 3, 7, 11, 15, 19, 23, 27, 31);
  return {__builtin_shufflevector(ab02, cd02, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
          __builtin_shufflevector(ab13, cd13, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
          __builtin_shufflevector(ab02, cd02, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31),
          __builtin_shufflevector(ab13, cd13, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)};
}

inline void together(const Places& p, vf out[4]) {
  const vf ab = p.at[0], bb = p.at[1], cb = p.at[2], db = p.at[3];
  const vf lo01 = __builtin_shufflevector(ab, bb, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const vf hi01 = __builtin_shufflevector(ab, bb, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const vf lo23 = __builtin_shufflevector(cb, db, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const vf hi23 = __builtin_shufflevector(cb, db, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  out[0] = __builtin_shufflevector(lo01, lo23, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  out[1] = __builtin_shufflevector(lo01, lo23, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
  out[2] = __builtin_shufflevector(hi01, hi23, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  out[3] = __builtin_shufflevector(hi01, hi23, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
}

// Sixteen groups of four weights, of which the first ``n`` exist; the others are read as zero and not written.
template <typename T>
inline Places read_groups(const T* from, int n) {
  if (n < LANES) {
    T padded[4 * LANES] = {};
    std::memcpy(padded, from, 4 * n * sizeof(T));
    return read_groups(padded, LANES);
  }
  return apart(wide_vector(from), wide_vector(from + 16), wide_vector(from + 32), wide_vector(from + 48));
}
template <typename T>
inline void write_groups(T* to, const Places& places, int n) {
  T part[4 * LANES], *all = n < LANES ? part : to;
  vf vectors[4];
  together(places, vectors);
  for (int i = 0; i < 4; ++i) narrow_vector(all + i * LANES, vectors[i]);
  if (n < LANES) std::memcpy(to, part, 4 * n * sizeof(T));
}

inline vf load_part(const float* from, int n) {
  if (n == LANES) return load(from);
  float padded[LANES] = {};
  std::memcpy(padded, from, 4 * n);
  return load(padded);
}

inline void store_part(float* to, vf v, int n) {
  if (n == LANES) store(to, v);
  else std::memcpy(to, &v, 4 * n);
}

// The sum in fp32, by halves: fast for few numbers.
inline float short_sum(vf v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  return v[0];
}

// The weights that each pattern keeps, in the order of the logits: 1100 1010 1001 0110 0101 0011.
inline Places pattern_of(const vf p[6]) {
  return {{p[0] + p[1] + p[2], p[0] + p[3] + p[4], p[1] + p[3] + p[5], p[2] + p[4] + p[5]}};
}

// One for the likeliest of six, the first among equals; zero for the others.
inline void harden(vf p[6]) {
  vf best = p[0];
  for (int k = 1; k < 6; ++k) best = larger(best, p[k]);
  vi free_ = splat(0) == vf{};
  for (int k = 0; k < 6; ++k) {
    const vi hit = (p[k] == best) & free_;
    free_ &= ~hit;
    p[k] = select(hit, splat(1), vf{});
  }
}

// Frozen patterns of sixteen groups from bit ``4 * group`` on: bit i of byte b is weight 8 b + i. Reads nine bytes.
inline Places frozen(const uint8_t* bits, int64_t group) {
  uint64_t low;
  std::memcpy(&low, bits + group / 2, 8);
  if (group % 2) low = low >> 4 | uint64_t(bits[group / 2 + 8]) << 60;
  const vu halves = __builtin_shufflevector(vu{} + uint32_t(low), vu{} + uint32_t(low >> 32), 0, 1, 2, 3, 4, 5, 6, 7,
                                            16, 17, 18, 19, 20, 21, 22, 23);
  const vu shift = {0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28};
  Places places;
  for (uint32_t j = 0; j < 4; ++j) places.at[j] = __builtin_convertvector((vi)((halves >> (shift + j)) & 1), vf);
  return places;
}

struct Tiles {
  const float* shares = nullptr;  // [tile rows, tile columns], or none
  int64_t columns = 0, height = 1, groups = 1;  // groups of four along a tile's width
};

// The shares of the tiles along a row, one a group of four; zeros where there are no tiles.
struct Line {
  const Tiles& tiles;
  std::vector<float> shares;
  int64_t tile_row = -1;
  Line(const Tiles& of, int64_t groups) : tiles(of), shares(groups, 0.0f) {}
  const float* at(int64_t row) {
    if (tiles.shares && row / tiles.height != tile_row) {
      tile_row = row / tiles.height;
      const float* from = tiles.shares + tile_row * tiles.columns;
      for (int64_t column = 0; column < tiles.columns; ++column)
        std::fill_n(shares.begin() + column * tiles.groups, tiles.groups, from[column]);
    }
    return shares.data();
  }
};


}  // namespace

// A layer, and the rows of one call; pointers are null for parts that the layer lacks. All are contiguous.
extern "C" struct Rows {
  const void* weight;      // [out, 4 groups] float, or bfloat16 where ``half`` says so
  const float* logits;     // [6, plane], of the groups from ``first_group`` on, or null: then
  const uint8_t* bits;     // the frozen pattern of all rows, a bit a weight, and eight bytes more
  const float* shares;     // [tile rows, tile columns] of the whole layer
  int64_t rows, groups, first_row, plane, first_group, all_groups;
  int64_t tile_height, tile_groups, tile_columns;
  float scale, temperature;
  uint32_t key0, key1;
  int32_t hard, half, threads;
};

namespace {

// Whole vectors, compiled for a fixed count, and the remainder.
template <typename Some>
inline void each_vector(int64_t groups, const Some& some) {
  int64_t group = 0;
  for (; group + LANES <= groups; group += LANES) some(group, LANES);
  if (group < groups) some(group, int(groups - group));
}

Tiles tiles_of(const Rows& a) { return {a.shares, a.tile_columns, a.tile_height, a.tile_groups}; }

template <typename T>
void forward(const Rows& a, T* masked, float* probabilities, double* norms) {
  const Tiles tiles = tiles_of(a);
  const float factor = a.scale / a.temperature, inverse = 1 / a.temperature;
#pragma omp parallel num_threads(a.threads)
  {
    FlushDenormals flushed;
    Line line(tiles, a.groups);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) {
      const float* shares = line.at(a.first_row + row);
      const T* from = static_cast<const T*>(a.weight) + (a.first_row + row) * 4 * a.groups;
      T* to = masked + row * 4 * a.groups;
      vf squares{};
      const auto some = [&](int64_t group, const int n) __attribute__((always_inline)) {
        const int64_t index = (a.first_row + row) * a.groups + group;
        Places pattern;
        if (a.logits) {
          vf p[6];
#pragma GCC unroll 6
          for (int k = 0; k < 6; ++k) {
            const vf noise = log_(exponential(uint32_t(index + k * a.all_groups), a.key0, a.key1));
            p[k] = load_part(a.logits + k * a.plane + (index - a.first_group), n) * factor - noise * inverse;
          }
          vf top = p[0];
          for (int k = 1; k < 6; ++k) top = larger(top, p[k]);
          vf total{};
#pragma GCC unroll 6
          for (int k = 0; k < 6; ++k) total += p[k] = exp_(p[k] - top);
          total = 1.0f / total;
          for (int k = 0; k < 6; ++k) p[k] *= total;
          if (probabilities)
            for (int k = 0; k < 6; ++k) store_part(probabilities + (k * a.rows + row) * a.groups + group, p[k], n);
          if (a.hard) harden(p);
          pattern = pattern_of(p);
        } else {
          pattern = frozen(a.bits, index);
        }
        const vf dense = load_part(shares + group, n);
        Places w = read_groups(from + 4 * group, n);
        for (int j = 0; j < 4; ++j) {
          w.at[j] *= dense + (1.0f - dense) * pattern.at[j];
          squares += w.at[j] * w.at[j];
        }
        write_groups(to + 4 * group, w, n);
      };
      each_vector(a.groups, some);
      norms[row] = sum(squares);
    }
  }
}

template <typename T>
void backward(const Rows& a, const T* gradient, const float* probabilities, float norm_gradient,
              float* logits_gradient, bool add, float* by_group) {
  const Tiles tiles = tiles_of(a);
  const float factor = a.scale / a.temperature;
#pragma omp parallel num_threads(a.threads)
  {
    FlushDenormals flushed;
    Line line(tiles, a.groups);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) {
      const float* shares = line.at(a.first_row + row);
      const auto some = [&](int64_t group, const int n) __attribute__((always_inline)) {
        const int64_t index = (a.first_row + row) * a.groups + group, here = row * a.groups + group;
        vf p[6];
        Places pattern;
        if (a.logits) {
          vf choice[6];
          for (int k = 0; k < 6; ++k)
            choice[k] = p[k] = load_part(probabilities + k * a.rows * a.groups + here, n);
          if (a.hard) harden(choice);
          pattern = pattern_of(choice);
        } else {
          pattern = frozen(a.bits, index);
        }
        const vf dense = load_part(shares + group, n);
        const Places w = read_groups(static_cast<const T*>(a.weight) + 4 * index, n);
        Places g = read_groups(gradient + 4 * here, n);
        vf share{};
        for (int j = 0; j < 4; ++j) {
          const vf mask = dense + (1.0f - dense) * pattern.at[j];
          g.at[j] = w.at[j] * (g.at[j] + 2.0f * norm_gradient * mask * w.at[j]);
          share += g.at[j] * (1.0f - pattern.at[j]);
          g.at[j] *= 1.0f - dense;
        }
        if (by_group) store_part(by_group + here, share, n);
        if (!logits_gradient) return;
        const vf sums[6] = {g.at[0] + g.at[1], g.at[0] + g.at[2], g.at[0] + g.at[3],
                            g.at[1] + g.at[2], g.at[1] + g.at[3], g.at[2] + g.at[3]};
        vf mean{};
        for (int k = 0; k < 6; ++k) mean += sums[k] * p[k];
        for (int k = 0; k < 6; ++k) {
          float* place = logits_gradient + k * a.plane + (index - a.first_group);
          const vf value = p[k] * (sums[k] - mean) * factor;
          store_part(place, add ? load_part(place, n) + value : value, n);
        }
      };
      each_vector(a.groups, some);
    }
  }
}

// Adds the sums of [rows, groups] over tiles to [tile rows, tile columns], each in order.
void add_tiles(const Rows& a, const float* by_group, float* total) {
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t column = 0; column < a.tile_columns; ++column)
    for (int64_t row = 0; row < a.rows;) {
      const int64_t tile = (a.first_row + row) / a.tile_height;
      const int64_t stop = std::min(a.rows, (tile + 1) * a.tile_height - a.first_row);
      double sum = 0;
      for (; row < stop; ++row)
        for (int64_t i = 0; i < a.tile_groups; ++i) sum += by_group[row * a.groups + column * a.tile_groups + i];
      total[tile * a.tile_columns + column] += float(sum);
    }
}

// A frozen mask under tiles whose width is a multiple of a vector's needs no groups: a weight whose bit is set stays as
// it is, another is multiplied by its tile's share.
template <typename T>
void forward_frozen(const Rows& a, T* masked, double* norms) {
  const int64_t width = 4 * a.tile_groups, columns = 4 * a.groups;
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t row = 0; row < a.rows; ++row) {
    const float* shares = a.shares + (a.first_row + row) / a.tile_height * a.tile_columns;
    const T* from = static_cast<const T*>(a.weight) + (a.first_row + row) * columns;
    vf squares{};
    for (int64_t column = 0; column < columns; column += width)
      for (int64_t i = column; i < column + width; i += LANES) {
        ahead(from + i, LANES * sizeof(T));
        const vf w = wide_vector(from + i);
        const vf value = select(kept(a.bits, (a.first_row + row) * columns + i), w, w * shares[column / width]);
        squares += value * value;
        narrow_vector(masked + row * columns + i, value);
      }
    norms[row] = sum(squares);
  }
}

template <typename T>
void backward_frozen(const Rows& a, const T* gradient, float norm_gradient, float* by_tile, float* total) {
  const int64_t width = 4 * a.tile_groups, columns = 4 * a.groups;
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t row = 0; row < a.rows; ++row) {
    const float* shares = a.shares + (a.first_row + row) / a.tile_height * a.tile_columns;
    const T* weights = static_cast<const T*>(a.weight) + (a.first_row + row) * columns;
    for (int64_t column = 0; column < columns; column += width) {
      vf share{};
      const float factor = 2 * norm_gradient * shares[column / width];
      for (int64_t i = column; i < column + width; i += LANES) {
        ahead(weights + i, LANES * sizeof(T));
        const vf w = wide_vector(weights + i), value = w * (wide_vector(gradient + row * columns + i) + factor * w);
        share += select(kept(a.bits, (a.first_row + row) * columns + i), vf{}, value);
      }
      by_tile[row * a.tile_columns + column / width] = short_sum(share);
    }
  }
  for (int64_t row = 0; row < a.rows; ++row)
    for (int64_t column = 0; column < a.tile_columns; ++column)
      total[(a.first_row + row) / a.tile_height * a.tile_columns + column] += by_tile[row * a.tile_columns + column];
}

bool simple(const Rows& a) { return !a.logits && a.shares && 4 * a.tile_groups % LANES == 0; }

}  // namespace

// Computes masked weights and the sum of their squares, and the probabilities [6, rows, groups] if they are wanted.
extern "C" double masked_rows_forward(const Rows* a, void* masked, float* probabilities) {
  std::vector<double> of_rows(a->rows);
  double* norms = of_rows.data();
  if (simple(*a) && a->half) forward_frozen(*a, static_cast<uint16_t*>(masked), norms);
  else if (simple(*a)) forward_frozen(*a, static_cast<float*>(masked), norms);
  else if (a->half) forward(*a, static_cast<uint16_t*>(masked), probabilities, norms);
  else forward(*a, static_cast<float*>(masked), probabilities, norms);
  return std::accumulate(of_rows.begin(), of_rows.end(), 0.0);
}

// Sets, or adds to, the gradient of the logits, and adds that of the shares, from those of the masked weights and of
// the sum of squares; by_group is a buffer of [rows, groups].
extern "C" void masked_rows_backward(const Rows* a, const void* gradient, const float* probabilities,
                                     float norm_gradient, float* logits_gradient, int add, float* by_group,
                                     float* shares_gradient) {
  if (simple(*a)) {
    if (a->half) backward_frozen(*a, static_cast<const uint16_t*>(gradient), norm_gradient, by_group, shares_gradient);
    else backward_frozen(*a, static_cast<const float*>(gradient), norm_gradient, by_group, shares_gradient);
    return;
  }
  if (a->half)
    backward(*a, static_cast<const uint16_t*>(gradient), probabilities, norm_gradient, logits_gradient, add, by_group);
  else
    backward(*a, static_cast<const float*>(gradient), probabilities, norm_gradient, logits_gradient, add, by_group);
  if (a->shares) add_tiles(*a, by_group, shares_gradient);
}
