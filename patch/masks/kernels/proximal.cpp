// ProxSparse's proximal operator on the CPU. The method, its constants, which the compiler gets as macros, and the order
// of all operations are those of ../proximal.py, so that both give equal bits.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

// Weight k of sixteen groups of four.
struct Groups { f32x16 at[4]; };

// Groups of a unit of work, whose results and sums do not depend on the number of threads.
constexpr int64_t BLOCK = 1024;

template <int STEP, int FIRST, int... I>
inline f32x16 pick(f32x16 a, f32x16 b, std::integer_sequence<int, I...>) {
  return shuffle<LANES, (FIRST + I * STEP)...>(a, b);
}
template <int FIRST, int... I>
inline f32x16 interleave(f32x16 a, f32x16 b, std::integer_sequence<int, I...>) {
  return shuffle<LANES, (FIRST + I / 2 + I % 2 * LANES)...>(a, b);
}
constexpr auto EACH = std::make_integer_sequence<int, LANES>();

inline Groups load_groups(const float* from) {
  const f32x16 a = load(from), b = load(from + LANES), c = load(from + 2 * LANES), d = load(from + 3 * LANES);
  const f32x16 even = pick<2, 0>(a, b, EACH), odd = pick<2, 1>(a, b, EACH);
  const f32x16 next_even = pick<2, 0>(c, d, EACH), next_odd = pick<2, 1>(c, d, EACH);
  return {{pick<2, 0>(even, next_even, EACH), pick<2, 0>(odd, next_odd, EACH), pick<2, 1>(even, next_even, EACH),
           pick<2, 1>(odd, next_odd, EACH)}};
}

inline void store_groups(float* to, const Groups& w) {
  constexpr int HALF = LANES / 2;
  const f32x16 even = interleave<0>(w.at[0], w.at[2], EACH), odd = interleave<0>(w.at[1], w.at[3], EACH);
  const f32x16 next_even = interleave<HALF>(w.at[0], w.at[2], EACH), next_odd = interleave<HALF>(w.at[1], w.at[3], EACH);
  store(to, interleave<0>(even, odd, EACH));
  store(to + LANES, interleave<HALF>(even, odd, EACH));
  store(to + 2 * LANES, interleave<0>(next_even, next_odd, EACH));
  store(to + 3 * LANES, interleave<HALF>(next_even, next_odd, EACH));
}

inline f32x16 absolute(f32x16 v) { return (f32x16)((i32x16)v & 0x7fffffff); }
inline f32x16 with_sign(f32x16 size, f32x16 sign) { return (f32x16)((i32x16)size | ((i32x16)sign & INT32_MIN)); }
inline f32x16 larger(f32x16 a, f32x16 b) { return select(a > b, a, b); }
// NaN stays.
inline f32x16 positive(f32x16 v) { return select(v < f32x16{}, f32x16{}, v); }

inline bool any(i32x16 condition) {
  int32_t found = 0;
  for (int lane = 0; lane < LANES; ++lane) found |= condition[lane];
  return found;
}

inline Groups blend(i32x16 condition, const Groups& yes, const Groups& no) {
  Groups result;
  for (int k = 0; k < 4; ++k) result.at[k] = select(condition, yes.at[k], no.at[k]);
  return result;
}

inline f32x16 triples(const Groups& w) {
  const auto& [a, b, c, d] = w.at;
  return a * b * (c + d) + c * d * (a + b);
}

// Minimises over each weight in turn, `count` times.
inline __attribute__((always_inline)) void sweep(Groups& w, const Groups& z, f32x16 strength, int count) {
  auto& [a, b, c, d] = w.at;
  for (int i = 0; i < count; ++i) {
    f32x16 pair = c * d * strength, reach = (c + d) * strength;
    a = positive(z.at[0] - (b * reach + pair));
    b = positive(z.at[1] - (a * reach + pair));
    pair = a * b * strength, reach = (a + b) * strength;
    c = positive(z.at[2] - (d * reach + pair));
    d = positive(z.at[3] - (c * reach + pair));
  }
}

// The local minimum that groups in descending order keep while they grow from zero to `z`.
Groups grow(const Groups& z, f32x16 strength, i32x16 left) {
  Groups w = {};
  for (int step = 1; step < GROWTH; ++step) {
    Groups part = z;
    for (f32x16& each : part.at) each *= static_cast<float>(step) / GROWTH;
    sweep(w, part, strength, 1);
  }
  for (int repeat = 0; repeat < REPEATS && any(left); ++repeat) {
    Groups before = w;
    sweep(before, z, strength, SWEEPS - 1);
    Groups after = before;
    sweep(after, z, strength, 1);
    w = blend(left, after, w);
    f32x16 moved = {};
    for (int k = 0; k < 4; ++k) moved = larger(moved, absolute(after.at[k] - before.at[k]));
    left &= moved > static_cast<float>(STILL) * z.at[0];
  }
  return w;
}

inline f32x16 objective(const Groups& w, const Groups& z, f32x16 strength) {
  f32x16 squares[4];
  for (int k = 0; k < 4; ++k) squares[k] = (w.at[k] - z.at[k]) * (w.at[k] - z.at[k]);
  return (squares[0] + squares[1] + squares[2] + squares[3]) / 2.0f + strength * triples(w);
}

// The best of the minima with two, three and four weights, of absolute values.
Groups choose(const Groups& size, f32x16 strength) {
  // In descending order; of equals the later comes first.
  Groups z;
  i32x16 place[4];
  for (int k = 0; k < 4; ++k) z.at[k] = size.at[3 - k], place[k] = i32x16{} + (3 - k);
  constexpr int NETWORK[][2] = {{0, 1}, {2, 3}, {0, 2}, {1, 3}, {1, 2}};
  for (const auto& [i, j] : NETWORK) {
    const f32x16 x = z.at[i], y = z.at[j];
    const i32x16 a = place[i], b = place[j], swap = (x < y) | ((x == y) & (a < b));
    z.at[i] = select(swap, y, x), z.at[j] = select(swap, x, y);
    place[i] = swap ? b : a, place[j] = swap ? a : b;
  }
  Groups best = {{z.at[0], z.at[1]}}, three = {{z.at[0], z.at[1], z.at[2]}};
  const i32x16 left = z.at[0] * strength <= static_cast<float>(LARGEST);
  if (any(left)) {
    f32x16 least = objective(best, z, strength);
    for (const Groups& grown : {grow(three, strength, left), grow(z, strength, left)}) {
      const f32x16 value = objective(grown, z, strength);
      const i32x16 better = left & (value < least);
      best = blend(better, grown, best), least = select(better, value, least);
    }
  }
  Groups result = {};
  for (int k = 0; k < 4; ++k)
    for (int i = 0; i < 4; ++i) result.at[k] = select(place[i] == k, best.at[i], result.at[k]);
  return result;
}

// Results of some groups: written, added to the regularizer, and counted where at most two weights stay.
struct Sums {
  double penalty = 0;
  int64_t sparse = 0;
  void add(const Groups& w, i32x16 wanted) {
    i32x16 zeros = {};
    for (const f32x16& each : w.at) zeros -= each == f32x16{};
    const i32x16 two_four = wanted & (zeros >= 2);
    penalty += sum(select(wanted, triples(w), f32x16{}));
    for (int lane = 0; lane < LANES; ++lane) sparse -= two_four[lane];
  }
};

// Groups with several minima, collected until they fill a vector.
struct Candidates {
  float weights[4 * LANES] = {};
  float* to[LANES];
  int count = 0;
  void add(const float* group, float* result) {
    std::copy_n(group, 4, weights + 4 * count);
    to[count++] = result;
  }
  void finish(f32x16 strength, Sums& sums) {
    const Groups z = load_groups(weights);
    Groups size;
    for (int k = 0; k < 4; ++k) size.at[k] = absolute(z.at[k]);
    const Groups w = choose(size, strength);
    i32x16 used;
    for (int lane = 0; lane < LANES; ++lane) used[lane] = lane < count ? -1 : 0;
    sums.add(w, used);
    Groups signs;
    for (int k = 0; k < 4; ++k) signs.at[k] = with_sign(w.at[k], z.at[k]);
    store_groups(weights, signs);
    for (int lane = 0; lane < count; ++lane) std::copy_n(weights + 4 * lane, 4, to[lane]);
    count = 0;
  }
};

// Sixteen groups, of which those with several minima are left to `candidates`.
inline void shrink(const float* from, float* to, int64_t count, f32x16 strength, Candidates& candidates, Sums& sums) {
  float weights[4 * LANES] = {};
  std::copy_n(from, 4 * count, weights);
  const Groups z = load_groups(weights);
  Groups size;
  for (int k = 0; k < 4; ++k) size.at[k] = absolute(z.at[k]);
  const auto& [a, b, c, d] = size.at;
  // A group with NaN has one minimum, NaN.
  const f32x16 total = a + b + c + d, largest = larger(larger(a, b), larger(c, d)) * strength;
  const i32x16 number = total == total;
  const i32x16 some = number & (largest > static_cast<float>(SMALL)), many = number & (largest > static_cast<float>(CONVEX));
  Groups w = size;
  sweep(w, size, strength, SMALL_SWEEPS);
  if (any(some)) {
    Groups more = size;
    sweep(more, size, strength, CONVEX_SWEEPS);
    w = blend(some, more, w);
  }
  i32x16 wanted = many == 0;
  if (count < LANES)
    for (int64_t lane = count; lane < LANES; ++lane) wanted[lane] = 0;
  sums.add(w, wanted);
  for (int k = 0; k < 4; ++k) w.at[k] = with_sign(w.at[k], z.at[k]);
  float results[4 * LANES];
  store_groups(results, w);
  std::copy_n(results, 4 * count, to);
  if (!any(many)) return;
  for (int lane = 0; lane < count; ++lane)
    if (many[lane]) {
      candidates.add(weights + 4 * lane, to + 4 * lane);
      if (candidates.count == LANES) candidates.finish(strength, sums);
    }
}

}  // namespace

// Shrinks `groups` groups of four from `weight` to `result`, which may be the same. Returns the regularizer's sum over
// the results, and the number of 2:4 groups in `sparse`.
extern "C" double proximal_two_four(const float* weight, float* result, int64_t groups, float strength, int32_t threads,
                                    int64_t* sparse) {
  std::vector<Sums> blocks((groups + BLOCK - 1) / BLOCK);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < static_cast<int64_t>(blocks.size()); ++block) {
    const int64_t end = std::min(groups, (block + 1) * BLOCK);
    Candidates candidates;
    Sums sums;
    for (int64_t group = block * BLOCK; group < end; group += LANES)
      shrink(weight + 4 * group, result + 4 * group, std::min<int64_t>(LANES, end - group), broadcast(strength),
             candidates, sums);
    if (candidates.count) candidates.finish(broadcast(strength), sums);
    blocks[block] = sums;
  }
  double penalty = 0;
  *sparse = 0;
  for (const Sums& sums : blocks) penalty += sums.penalty, *sparse += sums.sparse;
  return penalty;
}
