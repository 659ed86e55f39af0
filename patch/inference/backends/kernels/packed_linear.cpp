// Products with a packed weight, which is read tile by tile: see few.h, lanes.h and units.h. Compiled once for each set
// of instructions. No result depends on the number of threads.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "few.h"
#include "lanes.h"
#include "units.h"
#include "unpack.h"

// outputs [n, out] of inputs [n, in], fp32, or bf16 where ``half``, for small n; the width of a tile is a multiple of
// 32.
extern "C" void packed_linear_few(const Packed* a, const void* inputs, void* outputs, int64_t n) {
  if (a->half) multiply_few(*a, static_cast<const uint16_t*>(inputs), static_cast<uint16_t*>(outputs), n);
  else multiply_few(*a, static_cast<const float*>(inputs), static_cast<float*>(outputs), n);
}

// The same for any n; height and width of a tile are multiples of 16.
extern "C" void packed_linear_more(const Packed* a, const void* inputs, void* outputs, int64_t n) {
#if defined(__AMX_BF16__)
  if (a->half && a->width % STEP == 0 && have_matrix_units())
    return multiply_by_units(*a, static_cast<const uint16_t*>(inputs), static_cast<uint16_t*>(outputs), n);
#endif
  if (a->half) multiply_more(*a, static_cast<const uint16_t*>(inputs), static_cast<uint16_t*>(outputs), n);
  else multiply_more(*a, static_cast<const float*>(inputs), static_cast<float*>(outputs), n);
}

// Unpacks rows of tiles from ``first`` up to ``last``.
extern "C" void packed_unpack(const Packed* a, int64_t first, int64_t last, void* to) {
  if (a->half) unpack(*a, first, last, static_cast<uint16_t*>(to));
  else unpack(*a, first, last, static_cast<float*>(to));
}

// Moves memory to large pages at once if the system can: address translation is faster, and prefetching does
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
