// Vectors of sixteen numbers in the vector types of GCC and Clang, which compile to the instructions of the target
// processor.

#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

constexpr int LANES = 16;
template <int N> struct Vectors {
  typedef float Floats __attribute__((vector_size(4 * N)));
  typedef int32_t Integers __attribute__((vector_size(4 * N)));
  typedef uint32_t Words __attribute__((vector_size(4 * N)));
  typedef uint16_t Halves __attribute__((vector_size(2 * N)));
};
typedef Vectors<LANES>::Floats f32x16;
typedef Vectors<LANES>::Integers i32x16;
typedef Vectors<LANES>::Words u32x16;
typedef Vectors<LANES>::Halves u16x16;

// Uninitialized numbers, aligned so that no vector crosses a cache line.
struct Buffer {
  std::unique_ptr<float[]> owner;
  float* data;
  explicit Buffer(int64_t size)
      : owner(new float[size + LANES]),
        data(owner.get() + -reinterpret_cast<uintptr_t>(owner.get()) % (4 * LANES) / 4) {}
};

// Low temperatures lead to underflow, and denormal numbers make a processor several times slower.
struct FlushDenormals {
#if defined(__SSE__)
  unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

// Calls a generic function with a number of the stored type: uint16_t for bf16, else float.
template <typename Function> inline void dispatch(bool bf16, Function function) {
  if (bf16) function(uint16_t());
  else function(float());
}

// Prefetches into the L1 cache (3) or the L2 cache (2).
template <int LOCALITY = 2>
inline void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i, 0, LOCALITY);
}

// Prefetch distances of weights in bytes.
constexpr int L2_DISTANCE = 4096, L1_DISTANCE = 1024;
inline void prefetch_ahead(const void* from, int64_t bytes) {
  prefetch(static_cast<const char*>(from) + L2_DISTANCE, bytes);
  prefetch<3>(static_cast<const char*>(from) + L1_DISTANCE, bytes);
}

inline f32x16 broadcast(float value) { return value - f32x16{}; }
template <typename V = f32x16> inline V load(const float* from) { V v; std::memcpy(&v, from, sizeof v); return v; }
template <typename V> inline void store(float* to, V v) { std::memcpy(to, &v, sizeof v); }

// Loads N numbers of fp32 or bf16 as fp32, and stores them with rounding to nearest, ties to even.
template <int N = LANES> inline typename Vectors<N>::Floats load_f32(const float* from) {
  return load<typename Vectors<N>::Floats>(from);
}
template <int N = LANES> inline typename Vectors<N>::Floats load_f32(const uint16_t* from) {
  typename Vectors<N>::Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (typename Vectors<N>::Floats)(__builtin_convertvector(halves, typename Vectors<N>::Words) << 16);
}
template <int N = LANES> inline void store_f32(float* to, typename Vectors<N>::Floats v) { store(to, v); }
template <int N = LANES> inline void store_f32(uint16_t* to, typename Vectors<N>::Floats v) {
  typedef typename Vectors<N>::Words Words;
  const Words bits = (Words)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = Words{} + 0x7fc0;
  const auto halves = __builtin_convertvector(v == v ? rounded : nan, typename Vectors<N>::Halves);
  std::memcpy(to, &halves, sizeof halves);
}

inline f32x16 select(i32x16 condition, f32x16 yes, f32x16 no) { return condition ? yes : no; }

inline double sum(f32x16 v) {
  float lanes[LANES];
  double total = 0;
  store(lanes, v);
  for (float lane : lanes) total += lane;
  return total;
}

// Lanes of a frozen mask for sixteen weights from ``weight`` on: bit i of byte b is weight 8 b + i.
inline i32x16 keep_mask(const uint8_t* bits, int64_t weight) {
  uint16_t word;
  std::memcpy(&word, bits + weight / 8, 2);
  const u32x16 lane = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return ((u32x16{} + word) & lane) != 0;
}

template <int N, int... I>
inline typename Vectors<N>::Floats shuffle(typename Vectors<N>::Floats a, typename Vectors<N>::Floats b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, typename Vectors<N>::Words{I...});
#endif
}

// Swaps blocks of D numbers above the diagonal with those below, in two rows that are D apart.
template <int N, int D, int... I>
inline void exchange(typename Vectors<N>::Floats& a, typename Vectors<N>::Floats& b, std::integer_sequence<int, I...>) {
  const auto upper = shuffle<N, (I & D ? N + I - D : I)...>(a, b);
  b = shuffle<N, (I & D ? N + I : I + D)...>(a, b);
  a = upper;
}

// Transposes N rows of N numbers.
template <int N, int D = N / 2>
inline __attribute__((always_inline)) void transpose(typename Vectors<N>::Floats (&rows)[N]) {
  for (int i = 0; i < N; ++i)
    if (!(i & D)) exchange<N, D>(rows[i], rows[i + D], std::make_integer_sequence<int, N>());
  if constexpr (D > 1) transpose<N, D / 2>(rows);
}
