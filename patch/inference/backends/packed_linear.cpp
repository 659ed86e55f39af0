// Products with a packed weight, which is read once, tile by tile.
//
// Few inputs: their product with each row is summed in a vector, a step of 32 weights at a time; two of four values are
// expanded in a register by the bits that say where they stand. More: sixteen inputs stand side by side in a vector,
// and each value that is there is multiplied by that of its column; what is zero is passed over. Many are multiplied by
// unpacked rows elsewhere.
// Compiled once for each set of instructions; the vector types of GCC and Clang stand for those of any other processor.
// No result depends on the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

struct Packed {
  const void* values;
  const uint8_t* bits;
  const uint8_t* dense;  // [tile rows, tile columns]
  const int64_t* starts;  // [2, tiles]: where the values and the bits of a tile begin
  int64_t tile_rows, tile_columns, height, width;
  int32_t half, threads;
};

namespace {

constexpr int STEP = 32;
// How many bytes before they are needed values are fetched from memory into the second cache, and into the first.
constexpr int FAR = 4096, NEAR = 1024;
typedef float vf __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));

inline vf load(const float* from) { vf v; std::memcpy(&v, from, sizeof v); return v; }
inline void store(float* to, vf v) { std::memcpy(to, &v, sizeof v); }
inline float sum(vf v) {
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; ++i) v[i] += v[i + n];
  return v[0];
}

inline float wide(float value) { return value; }
inline float wide(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}
inline void narrow(float* to, float value) { *to = value; }
inline void narrow(uint16_t* to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  *to = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A step of weights as two vectors. Which weight stands where is the type's business: `place` tells it of the inputs.
struct Step { vf first, second; };

template <typename T> struct Reader;

template <typename T>
struct Scalar {
  static int place(int i) { return i; }
  static Step dense(const T* from) {
    alignas(64) float all[STEP];
    for (int i = 0; i < STEP; ++i) all[i] = wide(from[i]);
    return {load(all), load(all + 16)};
  }
  static Step sparse(const T* from, uint32_t bits) {
    alignas(64) float all[STEP] = {};
    for (int group = 0; group < STEP / 4; ++group, bits >>= 4) {
      const int low = __builtin_ctz(bits), high = 31 - __builtin_clz(bits & 15);
      all[4 * group + low] = wide(from[2 * group]);
      all[4 * group + high] = wide(from[2 * group + 1]);
    }
    return {load(all), load(all + 16)};
  }
};

#if defined(__AVX512F__)
inline vf as(__m512 v) { return (vf)v; }
inline __m512 widened(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }

template <> struct Reader<float> {
  static int place(int i) { return i; }
  static Step dense(const float* from) { return {load(from), load(from + 16)}; }
  static Step sparse(const float* from, uint32_t bits) {
    return {as(_mm512_maskz_expandloadu_ps(bits & 0xffff, from)),
            as(_mm512_maskz_expandloadu_ps(bits >> 16, from + 8))};
  }
};

#if defined(__AVX512VBMI2__)
// Weights at even places, and those at odd ones: a shift and a mask widen them.
template <> struct Reader<uint16_t> {
  static int place(int i) { return i % 2 * 16 + i / 2; }
  static Step apart(__m512i all) {
    return {as(_mm512_castsi512_ps(_mm512_slli_epi32(all, 16))),
            as(_mm512_castsi512_ps(_mm512_and_si512(all, _mm512_set1_epi32(int(0xffff0000)))))};
  }
  static Step dense(const uint16_t* from) { return apart(_mm512_loadu_si512(from)); }
  static Step sparse(const uint16_t* from, uint32_t bits) {
    return apart(_mm512_maskz_expand_epi16(bits, _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)from))));
  }
};
#else
template <> struct Reader<uint16_t> {
  static int place(int i) { return i; }
  static vf expanded(const uint16_t* from, uint32_t bits) {
    const __m256i halves = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)from));
    return as(_mm512_maskz_expand_ps(bits, widened(halves)));
  }
  static Step dense(const uint16_t* from) {
    return {as(widened(_mm256_loadu_si256((const __m256i*)from))),
            as(widened(_mm256_loadu_si256((const __m256i*)(from + 16))))};
  }
  static Step sparse(const uint16_t* from, uint32_t bits) {
    return {expanded(from, bits & 0xffff), expanded(from + 8, bits >> 16)};
  }
};
#endif

#elif defined(__AVX2__)
// For each byte of bits: which of four values each of eight weights is, or none (a lane that is zeroed).
struct Places {
  alignas(32) int32_t value[256][8];
  Places() {
    for (int byte = 0; byte < 256; ++byte)
      for (int i = 0, next = 0; i < 8; ++i) value[byte][i] = byte >> i & 1 ? next++ : -1;
  }
};
const Places places;

template <typename T>
struct Eights {
  static int place(int i) { return i; }
  static __m256 widened(__m128i halves) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16)); }
  static __m256 eight(const float* from) { return _mm256_loadu_ps(from); }
  static __m256 eight(const uint16_t* from) { return widened(_mm_loadu_si128((const __m128i*)from)); }
  static __m256 four(const float* from) { return _mm256_castps128_ps256(_mm_loadu_ps(from)); }
  static __m256 four(const uint16_t* from) { return widened(_mm_loadl_epi64((const __m128i*)from)); }
  static __m256 expanded(const T* from, uint32_t byte) {
    const __m256i which = _mm256_load_si256((const __m256i*)places.value[byte]);
    const __m256 moved = _mm256_permutevar8x32_ps(four(from), which);
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(which, 31)), moved);
  }
  static vf both(__m256 low, __m256 high) {
    vf v;
    std::memcpy(&v, &low, 32);
    std::memcpy((char*)&v + 32, &high, 32);
    return v;
  }
  static Step dense(const T* from) {
    return {both(eight(from), eight(from + 8)), both(eight(from + 16), eight(from + 24))};
  }
  static Step sparse(const T* from, uint32_t bits) {
    return {both(expanded(from, bits & 255), expanded(from + 4, bits >> 8 & 255)),
            both(expanded(from + 8, bits >> 16 & 255), expanded(from + 12, bits >> 24))};
  }
};
template <> struct Reader<float> : Eights<float> {};
template <> struct Reader<uint16_t> : Eights<uint16_t> {};

#else
template <> struct Reader<float> : Scalar<float> {};
template <> struct Reader<uint16_t> : Scalar<uint16_t> {};
#endif

template <typename T>
inline void ahead(const T* from, int bytes) {
  for (int i = 0; i < bytes; i += 64) {
    __builtin_prefetch((const char*)from + FAR + i, 0, 2);
    __builtin_prefetch((const char*)from + NEAR + i, 0, 3);
  }
}

// One row of a tile times N inputs, each ``stride`` numbers long, added to N sums of 16.
template <typename T, int N, bool DENSE>
inline __attribute__((always_inline)) void add_row(const T* values, const uint8_t* bits, int64_t width,
                                                   const float* inputs, int64_t stride, float* sums) {
  vf first[N], second[N];
  for (int n = 0; n < N; ++n) first[n] = load(sums + 16 * n), second[n] = vf{};
  for (int64_t i = 0; i < width; i += STEP) {
    Step w;
    if (DENSE) {
      ahead(values + i, STEP * sizeof(T));
      w = Reader<T>::dense(values + i);
    } else {
      uint32_t word;
      std::memcpy(&word, bits + i / 8, sizeof word);
      ahead(values + i / 2, STEP / 2 * sizeof(T));
      w = Reader<T>::sparse(values + i / 2, word);
    }
    for (int n = 0; n < N; ++n) {
      first[n] += w.first * load(inputs + n * stride + i);
      second[n] += w.second * load(inputs + n * stride + i + 16);
    }
  }
  for (int n = 0; n < N; ++n) store(sums + 16 * n, first[n] + second[n]);
}

// Some rows of a row of tiles.
struct Piece { int64_t tile_row, from, to; };

// Pieces of as many rows times N inputs. Their rows come in turn: memory gives more to who reads in several places.
template <typename T, int N>
void add_rows(const Packed& a, const Piece* pieces, int64_t count, const float* inputs, float* sums) {
  const int64_t tiles = a.tile_rows * a.tile_columns, stride = a.tile_columns * a.width;
  const int64_t size = pieces->to - pieces->from;
  for (int64_t column = 0; column < a.tile_columns; ++column) {
    const float* mine = inputs + column * a.width;
    for (int64_t i = 0; i < size; ++i)
      for (int64_t p = 0; p < count; ++p) {
        const int64_t tile = pieces[p].tile_row * a.tile_columns + column, first = (pieces[p].from + i) * a.width;
        const T* values = static_cast<const T*>(a.values) + a.starts[tile];
        float* to = sums + 16 * N * (p * size + i);
        if (a.dense[tile]) {
          add_row<T, N, true>(values + first, nullptr, a.width, mine, stride, to);
          continue;
        }
        const uint8_t* bits = a.bits + a.starts[tiles + tile] + first / 8;
        __builtin_prefetch(bits + FAR / 8, 0, 2);
        add_row<T, N, false>(values + first / 2, bits, a.width, mine, stride, to);
      }
  }
}

// All pieces, each by one thread, up to `TOGETHER` at a time: ``add`` adds to 16 * ``per_row`` sums for each of their rows,
// and ``finish`` takes those of a piece from its first row on.
template <int TOGETHER, typename Add, typename Finish>
void each_piece(const Packed& a, int per_row, Add add, Finish finish) {
  // Rows of tiles are cut where there are fewer than threads.
  int64_t cuts = 1;
  while (a.tile_rows * cuts < a.threads && a.height % (2 * cuts) == 0 && a.height / cuts % 32 == 0) cuts *= 2;
  const int64_t size = a.height / cuts, all = a.tile_rows * cuts;
#pragma omp parallel num_threads(a.threads)
  {
    std::unique_ptr<float[]> sums(new float[TOGETHER * 16 * per_row * size]);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < a.threads; ++part) {
      const int64_t last = all * (part + 1) / a.threads;
      for (int64_t first = all * part / a.threads, count; first < last; first += count) {
        count = std::min<int64_t>(TOGETHER, last - first);
        Piece pieces[TOGETHER];
        for (int64_t p = 0; p < count; ++p) {
          const int64_t from = (first + p) % cuts * size;
          pieces[p] = {(first + p) / cuts, from, from + size};
        }
        std::fill_n(sums.get(), count * 16 * per_row * size, 0.0f);
        add(pieces, count, sums.get());
        for (int64_t p = 0; p < count; ++p)
          finish(pieces[p].tile_row * a.height + pieces[p].from, size, sums.get() + p * 16 * per_row * size);
      }
    }
  }
}

template <typename T, int N>
void multiply(const Packed& a, const float* inputs, T* outputs) {
  const int64_t rows = a.tile_rows * a.height;
  const auto add = [&](const Piece* pieces, int64_t count, float* sums) {
    add_rows<T, N>(a, pieces, count, inputs, sums);
  };
  each_piece<4>(a, N, add, [&](int64_t first, int64_t count, const float* sums) {
    for (int64_t row = 0; row < count; ++row)
      for (int n = 0; n < N; ++n) narrow(outputs + n * rows + first + row, sum(load(sums + 16 * (N * row + n))));
  });
}

// The inputs in fp32, in the order of the steps.
template <typename T>
std::unique_ptr<float[]> arranged(const T* inputs, int64_t count) {
  std::unique_ptr<float[]> found(new float[count]);
  for (int64_t i = 0; i < count; i += STEP)
    for (int j = 0; j < STEP; ++j) found[i + Reader<T>::place(j)] = wide(inputs[i + j]);
  return found;
}

template <typename T>
void multiply_few(const Packed& a, const T* inputs, T* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width, rows = a.tile_rows * a.height;
  const auto arranged_inputs = arranged(inputs, n * columns);
  const float* from = arranged_inputs.get();
  for (; n >= 4; n -= 4, from += 4 * columns, outputs += 4 * rows) multiply<T, 4>(a, from, outputs);
  if (n == 1) multiply<T, 1>(a, from, outputs);
  if (n == 2) multiply<T, 2>(a, from, outputs);
  if (n == 3) multiply<T, 3>(a, from, outputs);
}

// For each byte of bits: where the inputs of four values begin, of eight columns of 16 numbers, in bytes.
struct Columns {
  uint64_t of[256] = {};
  Columns() {
    for (int byte = 0; byte < 256; ++byte)
      for (int i = 0, next = 0; i < 8; ++i)
        if (byte >> i & 1 && next < 4) of[byte] |= uint64_t(64 * i) << 16 * next++;
  }
};
const Columns columns_of;

inline vf input(const float* inputs, uint64_t offset) {
  return load(reinterpret_cast<const float*>(reinterpret_cast<const char*>(inputs) + (offset & 0xffff)));
}

// Values in fp32: as they are, or widened into ``room``.
inline const float* in_float(const float* values, int64_t, float*) { return values; }
inline const float* in_float(const uint16_t* values, int64_t count, float* room) {
  for (int64_t i = 0; i < count; ++i) room[i] = wide(values[i]);
  return room;
}

// A row of a sparse tile times sixteen inputs, [width, 16].
inline vf add_sparse(const float* values, const uint8_t* bits, int64_t width, const float* inputs, vf first) {
  vf second{}, third{}, fourth{};
  for (int64_t i = 0; i < width; i += 8, values += 4, inputs += 8 * 16) {
    const uint64_t at = columns_of.of[*bits++];
    first += values[0] * input(inputs, at);
    second += values[1] * input(inputs, at >> 16);
    third += values[2] * input(inputs, at >> 32);
    fourth += values[3] * input(inputs, at >> 48);
  }
  return (first + second) + (third + fourth);
}

// Four rows of a dense tile times sixteen inputs.
inline void add_dense(const float* values, int64_t width, const float* inputs, float* sums) {
  vf total[4];
  for (int r = 0; r < 4; ++r) total[r] = load(sums + 16 * r);
  for (int64_t i = 0; i < width; ++i) {
    const vf x = load(inputs + 16 * i);
    for (int r = 0; r < 4; ++r) total[r] += values[r * width + i] * x;
  }
  for (int r = 0; r < 4; ++r) store(sums + 16 * r, total[r]);
}

// A piece, its rows a multiple of four, times sixteen inputs.
template <typename T>
void add_lanes(const Packed& a, const Piece& piece, const float* inputs, float* sums) {
  const int64_t tiles = a.tile_rows * a.tile_columns;
  std::unique_ptr<float[]> room(new float[4 * a.width]);
  for (int64_t column = 0; column < a.tile_columns; ++column) {
    const int64_t tile = piece.tile_row * a.tile_columns + column;
    const T* values = static_cast<const T*>(a.values) + a.starts[tile];
    const uint8_t* bits = a.bits + a.starts[tiles + tile];
    const float* mine = inputs + 16 * column * a.width;
    for (int64_t row = piece.from; row < piece.to; row += 4) {
      float* total = sums + 16 * (row - piece.from);
      const int64_t count = a.dense[tile] ? 4 * a.width : 2 * a.width;
      const T* some = values + row / 4 * count;
      ahead(some, int(count * sizeof(T)));
      const float* found = in_float(some, count, room.get());
      if (a.dense[tile]) {
        add_dense(found, a.width, mine, total);
        continue;
      }
      for (int r = 0; r < 4; ++r) {
        const vf after = add_sparse(found + r * a.width / 2, bits + (row + r) * a.width / 8, a.width, mine, load(total + 16 * r));
        store(total + 16 * r, after);
      }
    }
  }
}

// Sums [rows, width], of which ``count`` count, as outputs [count, rows], ``stride`` apart.
template <typename T>
void turn(const float* sums, int64_t width, int64_t rows, int64_t count, T* outputs, int64_t stride) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t row = 0; row < rows; ++row) narrow(outputs + i * stride + row, sums[row * width + i]);
}

template <typename T>
void multiply_more(const Packed& a, const T* inputs, T* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width, rows = a.tile_rows * a.height;
  std::unique_ptr<float[]> lanes(new float[16 * columns]);
  for (; n > 0; n -= 16, inputs += 16 * columns, outputs += 16 * rows) {
    const int64_t count = std::min<int64_t>(n, 16);
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t lane = 0; lane < 16; ++lane)
        lanes[16 * i + lane] = lane < count ? wide(inputs[lane * columns + i]) : 0.0f;
    const auto add = [&](const Piece* piece, int64_t, float* sums) { add_lanes<T>(a, *piece, lanes.get(), sums); };
    each_piece<1>(a, 1, add, [&](int64_t first, int64_t size, const float* sums) {
      turn(sums, 16, size, count, outputs + first, rows);
    });
  }
}

// 32 weights as they are without packing.
inline void expand(const float* from, uint32_t bits, float* to) {
  const Step w = Reader<float>::sparse(from, bits);
  store(to, w.first);
  store(to + 16, w.second);
}
inline void expand(const uint16_t* from, uint32_t bits, uint16_t* to) {
#if defined(__AVX512VBMI2__)
  const __m512i values = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)from));
  _mm512_storeu_si512(to, _mm512_maskz_expand_epi16(bits, values));
#else
  const Step w = Reader<uint16_t>::sparse(from, bits);
  const vh first = __builtin_convertvector((vu)w.first >> 16, vh), second = __builtin_convertvector((vu)w.second >> 16, vh);
  std::memcpy(to, &first, sizeof first);
  std::memcpy(to + 16, &second, sizeof second);
#endif
}

#if defined(__AMX_BF16__)
// Matrix units multiply sixteen rows of weights, 32 columns of them, by sixteen inputs at a time. Registers 0 to 3 have the
// sums of up to four times sixteen inputs, 4 the weights, 5 the inputs.
constexpr int ROWS = 16;

struct MatrixUnits {
  MatrixUnits() {
    struct alignas(64) { uint8_t palette = 1, rest[15] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } shapes;
    for (int i = 0; i < 6; ++i) shapes.bytes[i] = 64, shapes.rows[i] = ROWS;
    _tile_loadconfig(&shapes);
  }
  ~MatrixUnits() { _tile_release(); }
};

// The system hands their registers out to who asks.
bool have_matrix_units() {
  constexpr int REQUEST = 0x1023, DATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, DATA) == 0;
  return granted;
}

// To the compiler, loading a register reads no memory.
inline void written() { asm volatile("" ::: "memory"); }

template <int SIXTEENS>
inline void load_sums(const float* sums) {
  written();
  _tile_loadd(0, sums, 64 * SIXTEENS);
  if constexpr (SIXTEENS > 1) _tile_loadd(1, sums + 16, 64 * SIXTEENS);
  if constexpr (SIXTEENS > 2) {
    _tile_loadd(2, sums + 32, 64 * SIXTEENS);
    _tile_loadd(3, sums + 48, 64 * SIXTEENS);
  }
}

template <int SIXTEENS>
inline void store_sums(float* sums) {
  _tile_stored(0, sums, 64 * SIXTEENS);
  if constexpr (SIXTEENS > 1) _tile_stored(1, sums + 16, 64 * SIXTEENS);
  if constexpr (SIXTEENS > 2) {
    _tile_stored(2, sums + 32, 64 * SIXTEENS);
    _tile_stored(3, sums + 48, 64 * SIXTEENS);
  }
}

// Sixteen rows of 32 weights, ``stride`` bytes apart, times inputs [16, 16, 2] each, ``next`` numbers apart.
template <int SIXTEENS>
inline void add_block(const uint16_t* weights, int64_t stride, const uint16_t* inputs, int64_t next) {
  _tile_loadd(4, weights, stride);
  _tile_loadd(5, inputs, 64);
  _tile_dpbf16ps(0, 4, 5);
  if constexpr (SIXTEENS > 1) {
    _tile_loadd(5, inputs + next, 64);
    _tile_dpbf16ps(1, 4, 5);
  }
  if constexpr (SIXTEENS > 2) {
    _tile_loadd(5, inputs + 2 * next, 64);
    _tile_dpbf16ps(2, 4, 5);
    _tile_loadd(5, inputs + 3 * next, 64);
    _tile_dpbf16ps(3, 4, 5);
  }
}

// A piece, its rows a multiple of sixteen; inputs [SIXTEENS, in / 2, 16, 2].
template <int SIXTEENS>
void add_blocks(const Packed& a, const Piece& piece, const uint16_t* inputs, float* sums) {
  const int64_t tiles = a.tile_rows * a.tile_columns, block = ROWS * STEP, next = 16 * a.tile_columns * a.width;
  const MatrixUnits units;
  const std::unique_ptr<uint16_t[], void (*)(void*)> room(
      static_cast<uint16_t*>(std::aligned_alloc(64, 4 * ROWS * a.width)), std::free);
  for (int64_t column = 0; column < a.tile_columns; ++column) {
    const int64_t tile = piece.tile_row * a.tile_columns + column;
    const bool dense = a.dense[tile];
    const uint16_t* values = static_cast<const uint16_t*>(a.values) + a.starts[tile];
    const uint8_t* bits = a.bits + a.starts[tiles + tile];
    const uint16_t* mine = inputs + 16 * column * a.width;
    for (int64_t row = piece.from; row < piece.to; row += ROWS) {
      const uint16_t* some = values + row * a.width / (dense ? 1 : 2);
      // Two rooms in turn: what is expanded next need not wait for what is multiplied.
      uint16_t* expanded = room.get() + row / ROWS % 2 * ROWS * a.width;
      ahead(some, int((dense ? 2 : 1) * ROWS * a.width));
      for (int r = 0; r < ROWS && !dense; ++r)
        for (int64_t i = 0; i < a.width; i += STEP) {
          uint32_t word;
          std::memcpy(&word, bits + ((row + r) * a.width + i) / 8, sizeof word);
          expand(some + (r * a.width + i) / 2, word, expanded + i / STEP * block + r * STEP);
        }
      load_sums<SIXTEENS>(sums + 16 * SIXTEENS * (row - piece.from));
      for (int64_t i = 0; i < a.width; i += STEP)
        add_block<SIXTEENS>(dense ? some + i : expanded + i / STEP * block, dense ? 2 * a.width : 64, mine + 16 * i, next);
      store_sums<SIXTEENS>(sums + 16 * SIXTEENS * (row - piece.from));
    }
  }
}

template <int SIXTEENS>
void multiply_blocks(const Packed& a, const uint16_t* inputs, uint16_t* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width, rows = a.tile_rows * a.height;
  std::unique_ptr<uint32_t[]> pairs(new uint32_t[SIXTEENS * 8 * columns]());
  // A step at a time: what it writes stays in the first cache.
  for (int64_t step = 0; step < columns / 2; step += STEP / 2)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t pair = step; pair < step + STEP / 2; ++pair)
        std::memcpy(&pairs[(i / 16 * columns / 2 + pair) * 16 + i % 16], inputs + i * columns + 2 * pair, 4);
  const auto* arranged = reinterpret_cast<const uint16_t*>(pairs.get());
  const auto add = [&](const Piece* piece, int64_t, float* sums) { add_blocks<SIXTEENS>(a, *piece, arranged, sums); };
  each_piece<1>(a, SIXTEENS, add, [&](int64_t first, int64_t size, const float* sums) {
    turn(sums, 16 * SIXTEENS, size, n, outputs + first, rows);
  });
}

void multiply_by_units(const Packed& a, const uint16_t* inputs, uint16_t* outputs, int64_t n) {
  const int64_t columns = a.tile_columns * a.width, rows = a.tile_rows * a.height;
  for (; n > 0; n -= 64, inputs += 64 * columns, outputs += 64 * rows) {
    if (n <= 16) multiply_blocks<1>(a, inputs, outputs, n);
    else if (n <= 32) multiply_blocks<2>(a, inputs, outputs, n);
    else multiply_blocks<4>(a, inputs, outputs, std::min<int64_t>(n, 64));
  }
}
#endif

// A row of a sparse tile; its first group is group ``place`` of the tile.
template <typename T>
void expand_row(const T* values, const uint8_t* bits, int64_t place, int64_t width, T* to) {
  if (width % STEP == 0) {
    for (int64_t i = 0; i < width; i += STEP) {
      uint32_t word;
      std::memcpy(&word, bits + place / 2 + i / 8, sizeof word);
      ahead(values + 2 * place + i / 2, STEP / 2 * sizeof(T));
      expand(values + 2 * place + i / 2, word, to + i);
    }
    return;
  }
  std::fill_n(to, width, T(0));
  for (int64_t group = 0; group < width / 4; ++group, ++place) {
    const unsigned nibble = bits[place / 2] >> place % 2 * 4 & 15;
    to[4 * group + __builtin_ctz(nibble)] = values[2 * place];
    to[4 * group + 31 - __builtin_clz(nibble)] = values[2 * place + 1];
  }
}

template <typename T>
void unpack(const Packed& a, int64_t first, int64_t last, T* to) {
  const int64_t tiles = a.tile_rows * a.tile_columns, columns = a.tile_columns * a.width;
#pragma omp parallel for num_threads(a.threads) schedule(static) collapse(2)
  for (int64_t tile_row = first; tile_row < last; ++tile_row)
    for (int64_t column = 0; column < a.tile_columns; ++column) {
      const int64_t tile = tile_row * a.tile_columns + column;
      const T* values = static_cast<const T*>(a.values) + a.starts[tile];
      const uint8_t* bits = a.bits + a.starts[tiles + tile];
      T* out = to + (tile_row - first) * a.height * columns + column * a.width;
      for (int64_t row = 0; row < a.height; ++row, out += columns)
        if (a.dense[tile]) std::memcpy(out, values + row * a.width, a.width * sizeof(T));
        else expand_row(values, bits, row * a.width / 4, a.width, out);
    }
}

}  // namespace

// outputs [n, out] of inputs [n, in], fp32, or bf16 where ``half``, in few passes over the weight if n is small; the width
// of a tile is a multiple of 32.
extern "C" void packed_linear_few(const Packed* a, const void* inputs, void* outputs, int64_t n) {
  if (a->half) multiply_few(*a, static_cast<const uint16_t*>(inputs), static_cast<uint16_t*>(outputs), n);
  else multiply_few(*a, static_cast<const float*>(inputs), static_cast<float*>(outputs), n);
}

// The same, one pass for each sixteen inputs; height and width of a tile are multiples of 16.
extern "C" void packed_linear_more(const Packed* a, const void* inputs, void* outputs, int64_t n) {
#if defined(__AMX_BF16__)
  if (a->half && a->width % STEP == 0 && have_matrix_units())
    return multiply_by_units(*a, static_cast<const uint16_t*>(inputs), static_cast<uint16_t*>(outputs), n);
#endif
  if (a->half) multiply_more(*a, static_cast<const uint16_t*>(inputs), static_cast<uint16_t*>(outputs), n);
  else multiply_more(*a, static_cast<const float*>(inputs), static_cast<float*>(outputs), n);
}

// Rows of tiles from ``first`` up to ``last``, as they are without packing.
extern "C" void packed_unpack(const Packed* a, int64_t first, int64_t last, void* to) {
  if (a->half) unpack(*a, first, last, static_cast<uint16_t*>(to));
  else unpack(*a, first, last, static_cast<float*>(to));
}

// Where the system can, moves memory to large pages at once: their addresses are found faster, and fetching ahead does
// not end with a page.
extern "C" void packed_on_large_pages(void* from, int64_t bytes) {
#if defined(__linux__)
  constexpr int COLLAPSE = 25;  // of Linux 6.1, which older headers do not name
  constexpr uintptr_t PAGE = uintptr_t(2) << 20;
  const uintptr_t begin = (uintptr_t(from) + PAGE - 1) / PAGE * PAGE, end = (uintptr_t(from) + bytes) / PAGE * PAGE;
  if (end <= begin) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  madvise(reinterpret_cast<void*>(begin), end - begin, COLLAPSE);
#endif
}
