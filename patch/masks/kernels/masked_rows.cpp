// Masked weights of some rows of a linear layer, and their gradients, computed in registers.
//
// A vector is sixteen groups of four weights. Their weights are split into four vectors, one for each position in a
// group, and the six probabilities of the patterns stay in registers. No result depends on the number of threads: a
// thread has whole rows, and sums over rows are formed in order.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "vectors.h"

namespace {

inline f32x16 maximum(f32x16 a, f32x16 b) { return select(a > b, a, b); }

// The polynomial with coefficients from the highest power to the constant.
template <int N> inline f32x16 polynomial(f32x16 x, const float (&coefficients)[N]) {
  f32x16 p = broadcast(coefficients[0]);
  for (int i = 1; i < N; ++i) p = p * x + coefficients[i];
  return p;
}

// e^x for x <= 0, zero below -87; a polynomial of 2^f on [-1/2, 1/2], relative error below 2e-7.
inline f32x16 exp_(f32x16 x) {
  const f32x16 y = x * 1.44269504088896341f;
  const f32x16 rounded = (y + 12582912.0f) - 12582912.0f;
  const f32x16 f = (x - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
  f32x16 p = polynomial(f, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                            5.0000001201e-1f});
  p = p * f * f + f + 1.0f;
  const i32x16 exponent = (__builtin_convertvector(rounded, i32x16) + 127) << 23;
  return select(x <= -87.0f, f32x16{}, p * (f32x16)exponent);
}

// Natural logarithm of a positive normal number, relative error below 2e-7.
inline f32x16 log_(f32x16 x) {
  i32x16 bits = (i32x16)x;
  // The mantissa in [sqrt(1/2), sqrt(2)).
  const i32x16 exponent = (bits - 0x3f3504f3) >> 23;
  bits -= exponent << 23;
  const f32x16 m = (f32x16)bits - 1.0f, e = __builtin_convertvector(exponent, f32x16);
  const f32x16 z = m * m;
  f32x16 p = polynomial(m, {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                            -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f});
  p = p * m * z - e * 2.12194440e-4f - 0.5f * z;
  return m + p + e * 0.693359375f;
}

// A keyed 32-bit hash of sixteen indices from ``index`` on; patch/masks/noise.py is the same in PyTorch.
inline u32x16 mix(uint32_t index, uint32_t first, uint32_t second) {
  const u32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  u32x16 x = lane * 0x9E3779B9u + (index * 0x9E3779B9u + first);
  x ^= x >> 16; x *= 0x7FEB352Du; x ^= x >> 15; x *= 0x846CA68Bu; x ^= x >> 16;
  x += second;
  x ^= x >> 16;
  return x * 0x21F0AAADu;
}

// -log(u) of uniform u from the upper 23 bits: a standard exponential variable.
inline f32x16 exponential(uint32_t index, uint32_t first, uint32_t second) {
  const i32x16 upper = (i32x16)(mix(index, first, second) >> 9);
  return -log_((__builtin_convertvector(upper, f32x16) + 0.5f) * 1.1920928955078125e-7f);
}

// Sixteen groups of four weights, a vector for each position in a group.
struct Groups { f32x16 at[4]; };

inline Groups deinterleave(const f32x16 a, const f32x16 b, const f32x16 c, const f32x16 d) {
  const f32x16 ab02 = __builtin_shufflevector(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 2, 6, 10, 14, 18, 22, 26, 30);
  const f32x16 ab13 = __builtin_shufflevector(a, b, 1, 5, 9, 13, 17, 21, 25, 29, 3, 7, 11, 15, 19, 23, 27, 31);
  const f32x16 cd02 = __builtin_shufflevector(c, d, 0, 4, 8, 12, 16, 20, 24, 28, 2, 6, 10, 14, 18, 22, 26, 30);
  const f32x16 cd13 = __builtin_shufflevector(c, d, 1, 5, 9, 13, 17, 21, 25, 29, 3, 7, 11, 15, 19, 23, 27, 31);
  return {__builtin_shufflevector(ab02, cd02, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
          __builtin_shufflevector(ab13, cd13, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
          __builtin_shufflevector(ab02, cd02, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31),
          __builtin_shufflevector(ab13, cd13, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)};
}

inline void interleave(const Groups& p, f32x16 out[4]) {
  const f32x16 ab = p.at[0], bb = p.at[1], cb = p.at[2], db = p.at[3];
  const f32x16 lo01 = __builtin_shufflevector(ab, bb, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const f32x16 hi01 = __builtin_shufflevector(ab, bb, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const f32x16 lo23 = __builtin_shufflevector(cb, db, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const f32x16 hi23 = __builtin_shufflevector(cb, db, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  out[0] = __builtin_shufflevector(lo01, lo23, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  out[1] = __builtin_shufflevector(lo01, lo23, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
  out[2] = __builtin_shufflevector(hi01, hi23, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  out[3] = __builtin_shufflevector(hi01, hi23, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
}

// Reads and writes sixteen groups, of which the first ``n`` exist; the others are read as zero and not written.
template <typename T>
inline Groups read_groups(const T* from, int n) {
  if (n < LANES) {
    T padded[4 * LANES] = {};
    std::memcpy(padded, from, 4 * n * sizeof(T));
    return read_groups(padded, LANES);
  }
  return deinterleave(load_f32(from), load_f32(from + 16), load_f32(from + 32), load_f32(from + 48));
}
template <typename T>
inline void write_groups(T* to, const Groups& groups, int n) {
  T part[4 * LANES], *all = n < LANES ? part : to;
  f32x16 vectors[4];
  interleave(groups, vectors);
  for (int i = 0; i < 4; ++i) store_f32(all + i * LANES, vectors[i]);
  if (n < LANES) std::memcpy(to, part, 4 * n * sizeof(T));
}

inline f32x16 load_partial(const float* from, int n) {
  if (n == LANES) return load(from);
  float padded[LANES] = {};
  std::memcpy(padded, from, 4 * n);
  return load(padded);
}

inline void store_partial(float* to, f32x16 v, int n) {
  if (n == LANES) store(to, v);
  else std::memcpy(to, &v, 4 * n);
}

// The sum in fp32, by halves.
inline float horizontal_sum(f32x16 v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  return v[0];
}

// The mask of six patterns with weights p, in the order of the logits: 1100 1010 1001 0110 0101 0011.
inline Groups pattern_mask(const f32x16 p[6]) {
  return {{p[0] + p[1] + p[2], p[0] + p[3] + p[4], p[1] + p[3] + p[5], p[2] + p[4] + p[5]}};
}

// Replaces six probabilities by one for the largest, the first among equals, and zero for the others.
inline void harden(f32x16 p[6]) {
  f32x16 best = p[0];
  for (int k = 1; k < 6; ++k) best = maximum(best, p[k]);
  i32x16 open = broadcast(0) == f32x16{};
  for (int k = 0; k < 6; ++k) {
    const i32x16 chosen = (p[k] == best) & open;
    open &= ~chosen;
    p[k] = select(chosen, broadcast(1), f32x16{});
  }
}

// The frozen mask of sixteen groups from ``group`` on: bit i of byte b is weight 8 b + i. Reads nine bytes.
inline Groups frozen_pattern(const uint8_t* bits, int64_t group) {
  uint64_t low;
  std::memcpy(&low, bits + group / 2, 8);
  if (group % 2) low = low >> 4 | uint64_t(bits[group / 2 + 8]) << 60;
  const u32x16 words = __builtin_shufflevector(u32x16{} + uint32_t(low), u32x16{} + uint32_t(low >> 32), 0, 1, 2, 3, 4,
                                               5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  const u32x16 shift = {0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28};
  Groups mask;
  for (uint32_t j = 0; j < 4; ++j) mask.at[j] = __builtin_convertvector((i32x16)((words >> (shift + j)) & 1), f32x16);
  return mask;
}

}  // namespace

// A layer and the rows of one call; pointers are null for parts that the layer lacks. All are contiguous.
extern "C" struct Rows {
  const void* weight;      // [out, 4 groups] fp32 or bf16
  const float* logits;     // [6, plane] for the groups from ``first_group`` on, or null for a frozen mask
  const uint8_t* bits;     // frozen mask of all rows, a bit for each weight, and eight bytes more
  const float* fractions;  // [tile rows, tile columns], dense fraction of each tile of the whole layer
  int64_t rows, groups, first_row, plane, first_group, all_groups;
  int64_t tile_height, tile_groups, tile_columns;
  float scale, temperature;
  uint32_t key0, key1;
  int32_t hard, bf16, threads;
};

namespace {

// The dense fractions along a row, one for each group; zeros for a layer without tiles.
struct GroupFractions {
  const Rows& a;
  std::vector<float> fractions;
  int64_t tile_row = -1;
  explicit GroupFractions(const Rows& rows) : a(rows), fractions(rows.groups, 0.0f) {}
  const float* at(int64_t row) {
    if (a.fractions && row / a.tile_height != tile_row) {
      tile_row = row / a.tile_height;
      const float* from = a.fractions + tile_row * a.tile_columns;
      for (int64_t column = 0; column < a.tile_columns; ++column)
        std::fill_n(fractions.begin() + column * a.tile_groups, a.tile_groups, from[column]);
    }
    return fractions.data();
  }
};

// Calls a function for each whole vector, compiled for a fixed count, and for the remainder.
template <typename Function>
inline void for_each_vector(int64_t groups, const Function& call) {
  int64_t group = 0;
  for (; group + LANES <= groups; group += LANES) call(group, LANES);
  if (group < groups) call(group, int(groups - group));
}

// Sets p to the Gumbel-softmax of the six logits of up to sixteen groups, from group ``index`` of the layer on.
inline __attribute__((always_inline)) void pattern_probabilities(const Rows& a, int64_t index, int n, f32x16 p[6]) {
  const float factor = a.scale / a.temperature, inverse = 1 / a.temperature;
#pragma GCC unroll 6
  for (int k = 0; k < 6; ++k) {
    const f32x16 noise = log_(exponential(uint32_t(index + k * a.all_groups), a.key0, a.key1));
    p[k] = load_partial(a.logits + k * a.plane + (index - a.first_group), n) * factor - noise * inverse;
  }
  f32x16 top = p[0];
  for (int k = 1; k < 6; ++k) top = maximum(top, p[k]);
  f32x16 total{};
#pragma GCC unroll 6
  for (int k = 0; k < 6; ++k) total += p[k] = exp_(p[k] - top);
  total = 1.0f / total;
  for (int k = 0; k < 6; ++k) p[k] *= total;
}

template <typename T>
void forward(const Rows& a, T* masked, double* norms) {
#pragma omp parallel num_threads(a.threads)
  {
    FlushDenormals flushed;
    GroupFractions group_fractions(a);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) {
      const float* fractions = group_fractions.at(a.first_row + row);
      const T* from = static_cast<const T*>(a.weight) + (a.first_row + row) * 4 * a.groups;
      T* to = masked + row * 4 * a.groups;
      f32x16 squares{};
      const auto add = [&](int64_t group, const int n) __attribute__((always_inline)) {
        const int64_t index = (a.first_row + row) * a.groups + group;
        Groups pattern;
        if (a.logits) {
          f32x16 p[6];
          pattern_probabilities(a, index, n, p);
          if (a.hard) harden(p);
          pattern = pattern_mask(p);
        } else {
          pattern = frozen_pattern(a.bits, index);
        }
        const f32x16 dense = load_partial(fractions + group, n);
        Groups w = read_groups(from + 4 * group, n);
        for (int j = 0; j < 4; ++j) {
          w.at[j] *= dense + (1.0f - dense) * pattern.at[j];
          squares += w.at[j] * w.at[j];
        }
        write_groups(to + 4 * group, w, n);
      };
      for_each_vector(a.groups, add);
      norms[row] = sum(squares);
    }
  }
}

template <typename T>
void backward(const Rows& a, const T* gradient, T* masked, float norm_gradient, float* logits_gradient,
              bool accumulate, float* group_sums) {
  const float factor = a.scale / a.temperature;
#pragma omp parallel num_threads(a.threads)
  {
    FlushDenormals flushed;
    GroupFractions group_fractions(a);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) {
      const float* fractions = group_fractions.at(a.first_row + row);
      const auto add = [&](int64_t group, const int n) __attribute__((always_inline)) {
        const int64_t index = (a.first_row + row) * a.groups + group, local = row * a.groups + group;
        f32x16 p[6];
        Groups pattern;
        if (a.logits) {
          pattern_probabilities(a, index, n, p);
          f32x16 choice[6] = {p[0], p[1], p[2], p[3], p[4], p[5]};
          if (a.hard) harden(choice);
          pattern = pattern_mask(choice);
        } else {
          pattern = frozen_pattern(a.bits, index);
        }
        const f32x16 dense = load_partial(fractions + group, n);
        const Groups w = read_groups(static_cast<const T*>(a.weight) + 4 * index, n);
        Groups g = read_groups(gradient + 4 * local, n), product;
        f32x16 fraction_gradient{};
        for (int j = 0; j < 4; ++j) {
          const f32x16 mask = dense + (1.0f - dense) * pattern.at[j];
          product.at[j] = w.at[j] * mask;
          g.at[j] = w.at[j] * (g.at[j] + 2.0f * norm_gradient * mask * w.at[j]);
          fraction_gradient += g.at[j] * (1.0f - pattern.at[j]);
          g.at[j] *= 1.0f - dense;
        }
        if (masked) write_groups(masked + 4 * local, product, n);
        if (group_sums) store_partial(group_sums + local, fraction_gradient, n);
        if (!logits_gradient) return;
        const f32x16 sums[6] = {g.at[0] + g.at[1], g.at[0] + g.at[2], g.at[0] + g.at[3],
                            g.at[1] + g.at[2], g.at[1] + g.at[3], g.at[2] + g.at[3]};
        f32x16 mean{};
        for (int k = 0; k < 6; ++k) mean += sums[k] * p[k];
        for (int k = 0; k < 6; ++k) {
          float* to = logits_gradient + k * a.plane + (index - a.first_group);
          const f32x16 value = p[k] * (sums[k] - mean) * factor;
          store_partial(to, accumulate ? load_partial(to, n) + value : value, n);
        }
      };
      for_each_vector(a.groups, add);
    }
  }
}

// Adds sums of [rows, groups] over each tile, in order, to [tile rows, tile columns].
void add_tile_sums(const Rows& a, const float* group_sums, float* total) {
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t column = 0; column < a.tile_columns; ++column)
    for (int64_t row = 0; row < a.rows;) {
      const int64_t tile = (a.first_row + row) / a.tile_height;
      const int64_t stop = std::min(a.rows, (tile + 1) * a.tile_height - a.first_row);
      double sum = 0;
      for (; row < stop; ++row)
        for (int64_t i = 0; i < a.tile_groups; ++i) sum += group_sums[row * a.groups + column * a.tile_groups + i];
      total[tile * a.tile_columns + column] += float(sum);
    }
}

// A frozen mask needs no groups if tiles are whole vectors wide: a weight whose bit is set stays, and another is
// multiplied by the dense fraction of its tile.
template <typename T>
void forward_frozen(const Rows& a, T* masked, double* norms) {
  const int64_t width = 4 * a.tile_groups, columns = 4 * a.groups;
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t row = 0; row < a.rows; ++row) {
    const float* fractions = a.fractions + (a.first_row + row) / a.tile_height * a.tile_columns;
    const T* from = static_cast<const T*>(a.weight) + (a.first_row + row) * columns;
    f32x16 squares{};
    for (int64_t column = 0; column < columns; column += width)
      for (int64_t i = column; i < column + width; i += LANES) {
        prefetch_ahead(from + i, LANES * sizeof(T));
        const i32x16 kept = keep_mask(a.bits, (a.first_row + row) * columns + i);
        const f32x16 w = load_f32(from + i), value = select(kept, w, w * fractions[column / width]);
        squares += value * value;
        store_f32(masked + row * columns + i, value);
      }
    norms[row] = sum(squares);
  }
}

template <typename T>
void backward_frozen(const Rows& a, const T* gradient, T* masked, float norm_gradient, float* tile_sums,
                     float* total) {
  const int64_t width = 4 * a.tile_groups, columns = 4 * a.groups;
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t row = 0; row < a.rows; ++row) {
    const float* fractions = a.fractions + (a.first_row + row) / a.tile_height * a.tile_columns;
    const T* weights = static_cast<const T*>(a.weight) + (a.first_row + row) * columns;
    for (int64_t column = 0; column < columns; column += width) {
      f32x16 fraction_gradient{};
      const float factor = 2 * norm_gradient * fractions[column / width];
      for (int64_t i = column; i < column + width; i += LANES) {
        prefetch_ahead(weights + i, LANES * sizeof(T));
        const i32x16 kept = keep_mask(a.bits, (a.first_row + row) * columns + i);
        const f32x16 w = load_f32(weights + i), value = w * (load_f32(gradient + row * columns + i) + factor * w);
        fraction_gradient += select(kept, f32x16{}, value);
        if (masked) store_f32(masked + row * columns + i, select(kept, w, w * fractions[column / width]));
      }
      tile_sums[row * a.tile_columns + column / width] = horizontal_sum(fraction_gradient);
    }
  }
  for (int64_t row = 0; row < a.rows; ++row)
    for (int64_t column = 0; column < a.tile_columns; ++column)
      total[(a.first_row + row) / a.tile_height * a.tile_columns + column] += tile_sums[row * a.tile_columns + column];
}

bool whole_vectors(const Rows& a) { return !a.logits && a.fractions && 4 * a.tile_groups % LANES == 0; }

}  // namespace

// Computes masked weights and returns the sum of their squares.
extern "C" double masked_rows_forward(const Rows* a, void* masked) {
  std::vector<double> norms(a->rows);
  dispatch(a->bf16, [&](auto type) {
    auto* to = static_cast<decltype(type)*>(masked);
    if (whole_vectors(*a)) forward_frozen(*a, to, norms.data());
    else forward(*a, to, norms.data());
  });
  return std::accumulate(norms.begin(), norms.end(), 0.0);
}

// Sets, or adds to, the gradient of the logits, and adds that of the dense fractions, given those of the masked weights
// and of the sum of squares. Computes the masked weights again unless ``masked`` is null. ``group_sums`` is a buffer of
// [rows, groups].
extern "C" void masked_rows_backward(const Rows* a, const void* gradient, void* masked, float norm_gradient,
                                     float* logits_gradient, int accumulate, float* group_sums,
                                     float* fractions_gradient) {
  dispatch(a->bf16, [&](auto type) {
    const auto* from = static_cast<const decltype(type)*>(gradient);
    auto* to = static_cast<decltype(type)*>(masked);
    if (whole_vectors(*a)) backward_frozen(*a, from, to, norm_gradient, group_sums, fractions_gradient);
    else backward(*a, from, to, norm_gradient, logits_gradient, accumulate, group_sums);
  });
  if (a->fractions && !whole_vectors(*a)) add_tile_sums(*a, group_sums, fractions_gradient);
}
