// Products with a packed weight, which is read tile by tile. Compiled once for each instruction set. No result depends
// on the number of threads.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "gemm.h"
#include "gemm_bf16.h"
#include "gemv.h"

// Computes outputs [n, out] of inputs [n, in], of the type of the values, for small n; the width of a tile is a multiple
// of 32.
extern "C" void packed_gemv(const Packed* a, const void* inputs, void* outputs, int64_t n) {
  dispatch(a->bf16, [&](auto type) {
    typedef decltype(type) T;
    gemv<Numbers<T>>(*a, static_cast<const T*>(inputs), static_cast<T*>(outputs), n);
  });
}

template <typename T>
void multiply_many(const Packed& a, const T* inputs, T* outputs, int64_t n) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == sizeof(uint16_t))
    if (a.width % STEP == 0) {
#if defined(__AMX_BF16__)
      if (amx_available()) return gemm_bf16<AmxMicrokernel>(a, inputs, outputs, n);
#endif
      return gemm_bf16<VectorMicrokernel>(a, inputs, outputs, n);
    }
#endif
  gemm(a, inputs, outputs, n);
}

// Computes the same for any n; height and width of a tile are multiples of 16.
extern "C" void packed_gemm(const Packed* a, const void* inputs, void* outputs, int64_t n) {
  dispatch(a->bf16, [&](auto type) {
    typedef decltype(type) T;
    multiply_many(*a, static_cast<const T*>(inputs), static_cast<T*>(outputs), n);
  });
}

extern "C" void packed_unpack(const Packed* a, int64_t first, int64_t last, void* to) {
  dispatch(a->bf16, [&](auto type) { unpack(*a, first, last, static_cast<decltype(type)*>(to)); });
}

// The same for codes, whose inputs and outputs are fp32 or bf16. For small n: width and group size are multiples of 32.
extern "C" void codes_gemv(const Packed* a, const void* inputs, void* outputs, int64_t n, int32_t bf16) {
  dispatch(bf16, [&](auto type) {
    typedef decltype(type) T;
    multiply_codes(*a, static_cast<const T*>(inputs), static_cast<T*>(outputs), n);
  });
}

// For any n: height and width are multiples of 16, and the group size of 4. Some rows of tiles are decoded at a time.
extern "C" void codes_gemm(const Packed* a, const void* inputs, void* outputs, int64_t n, int32_t bf16) {
  constexpr int64_t WEIGHTS = 1 << 20;
  const int64_t step = std::min(std::max<int64_t>(WEIGHTS / (a->tile_columns * a->height * a->width), a->threads),
                                a->tile_rows);
  dispatch(bf16, [&](auto type) {
    typedef decltype(type) T;
    DecodedRows<T> rows(*a, step);
    for (int64_t first = 0; first < a->tile_rows; first += step) {
      rows.decode(*a, first, std::min(first + step, a->tile_rows));
      multiply_many(rows.weight, static_cast<const T*>(inputs), static_cast<T*>(outputs) + first * a->height, n);
    }
  });
}

extern "C" void codes_unpack(const Packed* a, int64_t first, int64_t last, void* to, int32_t bf16) {
  dispatch(bf16, [&](auto type) {
    typedef decltype(type) T;
    DecodedRows<T> rows(*a, last - first);
    rows.decode(*a, first, last);
    unpack(rows.weight, 0, last - first, static_cast<T*>(to));
  });
}

// Moves memory to large pages at once if the system can: address translation is faster, and prefetching does not end at
// the end of a small page.
extern "C" void use_large_pages(void* from, int64_t bytes) {
#if defined(__linux__)
  constexpr int COLLAPSE = 25;  // MADV_COLLAPSE of Linux 6.1, which older headers lack
  constexpr uintptr_t PAGE = uintptr_t(2) << 20;
  const uintptr_t begin = (uintptr_t(from) + PAGE - 1) / PAGE * PAGE, end = (uintptr_t(from) + bytes) / PAGE * PAGE;
  if (end <= begin) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  madvise(reinterpret_cast<void*>(begin), end - begin, COLLAPSE);
#endif
}
