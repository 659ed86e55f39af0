// Sixteen numbers at a time, in the vector types of GCC and Clang, which compile to the instructions of the target
// processor.

#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
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
typedef Vectors<LANES>::Floats vf;
typedef Vectors<LANES>::Integers vi;
typedef Vectors<LANES>::Words vu;
typedef Vectors<LANES>::Halves vh;

// Uninitialized numbers, aligned for vectors, so that no vector lies across two cache lines.
struct Room {
  std::unique_ptr<float[]> all;
  float* at;
  explicit Room(int64_t size)
      : all(new float[size + LANES]), at(all.get() + -reinterpret_cast<uintptr_t>(all.get()) % (4 * LANES) / 4) {}
};

// With low temperatures numbers underflow, and denormals make a processor several times slower.
struct FlushDenormals {
#if defined(__SSE__)
  unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

// Prefetches into the first cache (3) or the second (2).
template <int NEARNESS = 2>
inline void fetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i, 0, NEARNESS);
}

// Prefetch distance of weights in bytes, into the second cache and into the first.
constexpr int FAR = 4096, NEAR = 1024;
inline void ahead(const void* from, int64_t bytes) {
  fetch(static_cast<const char*>(from) + FAR, bytes);
  fetch<3>(static_cast<const char*>(from) + NEAR, bytes);
}

inline vf splat(float value) { return value - vf{}; }
template <typename V = vf> inline V load(const float* from) { V v; std::memcpy(&v, from, sizeof v); return v; }
template <typename V> inline void store(float* to, V v) { std::memcpy(to, &v, sizeof v); }

// N weights of fp32 or bf16 in fp32, and back: to the nearest, ties to even.
template <int N = LANES> inline typename Vectors<N>::Floats wide_vector(const float* from) {
  return load<typename Vectors<N>::Floats>(from);
}
template <int N = LANES> inline typename Vectors<N>::Floats wide_vector(const uint16_t* from) {
  typename Vectors<N>::Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (typename Vectors<N>::Floats)(__builtin_convertvector(halves, typename Vectors<N>::Words) << 16);
}
template <int N = LANES> inline void narrow_vector(float* to, typename Vectors<N>::Floats v) { store(to, v); }
template <int N = LANES> inline void narrow_vector(uint16_t* to, typename Vectors<N>::Floats v) {
  typedef typename Vectors<N>::Words Words;
  const Words bits = (Words)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = Words{} + 0x7fc0;
  const auto halves = __builtin_convertvector(v == v ? rounded : nan, typename Vectors<N>::Halves);
  std::memcpy(to, &halves, sizeof halves);
}

inline vf select(vi where, vf yes, vf no) { return where ? yes : no; }

inline double sum(vf v) {
  float parts[LANES];
  double total = 0;
  store(parts, v);
  for (float part : parts) total += part;
  return total;
}

// Which of sixteen weights from ``weight`` on a frozen mask keeps: bit i of byte b is weight 8 b + i.
inline vi kept(const uint8_t* bits, int64_t weight) {
  uint16_t word;
  std::memcpy(&word, bits + weight / 8, 2);
  const vu lane = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return ((vu{} + word) & lane) != 0;
}
