#include "bf16_products.h"

#include <string.h>

#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum {
  panel = qe_bf16_panel,
  half = panel / 2,
  step = qe_bf16_step,
  /// Steps of the inner dimension that are summed up before C is stored: a panel of B of so many stays in the first
  /// level of cache, and those of A that are multiplied by it in the second.
  steps_at_once = 20,
};

// A block of C, 32 × 32, from so many steps of a panel of A and one of B.
typedef void block_kernel(
    ptrdiff_t steps, const uint16_t *a, const uint16_t *b, float *c, ptrdiff_t stride, int keep);

INLINED float from_bf16(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

QE_DISPATCH static void plain_block(
    ptrdiff_t steps, const uint16_t *a, const uint16_t *b, float *c, ptrdiff_t stride, int keep) {
#pragma clang fp contract(fast)
  enum { rows_at_once = 4 };
  for (int first_row = 0; first_row < panel; first_row += rows_at_once) {
    for (int first_column = 0; first_column < panel; first_column += half) {
      float sums[rows_at_once][half];
      for (int row = 0; row < rows_at_once; row++)
        for (int column = 0; column < half; column++)
          sums[row][column] = keep ? c[(first_row + row) * stride + first_column + column] : 0;
      const uint16_t *left = a + first_row * panel;
      const uint16_t *right = b + first_column * panel;
      for (ptrdiff_t s = 0; s < steps; s++, left += step, right += step) {
        for (int pair = 0; pair < half; pair++) {
          float even[half], odd[half];
          for (int column = 0; column < half; column++) {
            even[column] = from_bf16(right[(pair * half + column) * 2]);
            odd[column] = from_bf16(right[(pair * half + column) * 2 + 1]);
          }
          for (int row = 0; row < rows_at_once; row++) {
            const float first = from_bf16(left[row * panel + pair * 2]);
            const float second = from_bf16(left[row * panel + pair * 2 + 1]);
            for (int column = 0; column < half; column++)
              sums[row][column] += first * even[column] + second * odd[column];
          }
        }
      }
      for (int row = 0; row < rows_at_once; row++)
        for (int column = 0; column < half; column++)
          c[(first_row + row) * stride + first_column + column] = sums[row][column];
    }
  }
}

#if defined(__x86_64__)

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) static void avx512_block(
    ptrdiff_t steps, const uint16_t *a, const uint16_t *b, float *c, ptrdiff_t stride, int keep) {
  // Sixteen sums hide the latency of the instruction on two ports; with the two rows of B and what is broadcast of A
  // they leave registers to spare.
  enum { rows_at_once = 8 };
  for (int first_row = 0; first_row < panel; first_row += rows_at_once) {
    __m512 low[rows_at_once], high[rows_at_once];
    float *block = c + first_row * stride;
    for (int row = 0; row < rows_at_once; row++) {
      low[row] = keep ? _mm512_loadu_ps(block + row * stride) : _mm512_setzero_ps();
      high[row] = keep ? _mm512_loadu_ps(block + row * stride + half) : _mm512_setzero_ps();
    }
    const uint16_t *left = a + first_row * panel;
    const uint16_t *right = b;
    for (ptrdiff_t s = 0; s < steps; s++, left += step, right += step) {
      for (int pair = 0; pair < half; pair++) {
        const __m512bh first = (__m512bh)_mm512_load_si512(right + pair * panel);
        const __m512bh second = (__m512bh)_mm512_load_si512(right + step / 2 + pair * panel);
        for (int row = 0; row < rows_at_once; row++) {
          int32_t bits;
          memcpy(&bits, left + row * panel + pair * 2, sizeof bits);
          const __m512bh value = (__m512bh)_mm512_set1_epi32(bits);
          low[row] = _mm512_dpbf16_ps(low[row], value, first);
          high[row] = _mm512_dpbf16_ps(high[row], value, second);
        }
      }
    }
    for (int row = 0; row < rows_at_once; row++) {
      _mm512_storeu_ps(block + row * stride, low[row]);
      _mm512_storeu_ps(block + row * stride + half, high[row]);
    }
  }
}

// Eight tiles of 16 rows of 64 bytes: 0 to 3 are C, 4 and 5 A, 6 and 7 B.
__attribute__((target("amx-tile"))) static void configure_tiles(void) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } tiles = {.palette = 1};
  for (int tile = 0; tile < 8; tile++) {
    tiles.row_bytes[tile] = 64;
    tiles.rows[tile] = half;
  }
  _tile_loadconfig(&tiles);
}

__attribute__((target("amx-tile"))) static void release_tiles(void) { _tile_release(); }

__attribute__((target("amx-tile,amx-bf16"))) static void amx_block(
    ptrdiff_t steps, const uint16_t *a, const uint16_t *b, float *c, ptrdiff_t stride, int keep) {
  const ptrdiff_t row_bytes = stride * (ptrdiff_t)sizeof(float);
  float *below = c + half * stride;
  if (keep) {
    _tile_loadd(0, c, row_bytes);
    _tile_loadd(1, c + half, row_bytes);
    _tile_loadd(2, below, row_bytes);
    _tile_loadd(3, below + half, row_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (ptrdiff_t s = 0; s < steps; s++, a += step, b += step) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + step / 2, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + step / 2, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, row_bytes);
  _tile_stored(1, c + half, row_bytes);
  _tile_stored(2, below, row_bytes);
  _tile_stored(3, below + half, row_bytes);
}

static int has_leaf(unsigned leaf, unsigned subleaf, unsigned registers[4]) {
  return __get_cpuid_count(
      leaf, subleaf, &registers[0], &registers[1], &registers[2], &registers[3]);
}

// The state that the operating system saves.
__attribute__((target("xsave"))) static uint64_t saved_state(void) {
  unsigned registers[4];
  if (!has_leaf(1, 0, registers) || !(registers[2] >> 27 & 1)) return 0;
  return _xgetbv(0);
}

static int has_avx512_bf16(void) {
  enum { avx512_state = 0xE6 };
  unsigned registers[4];
  if ((saved_state() & avx512_state) != avx512_state) return 0;
  // Foundation, BW and VL.
  if (!has_leaf(7, 0, registers) || !(registers[1] >> 16 & registers[1] >> 30 & registers[1] >> 31 & 1))
    return 0;
  return has_leaf(7, 1, registers) && (registers[0] >> 5 & 1);
}

static int has_amx_bf16(void) {
#if defined(__linux__)
  enum { tile_state = 3 << 17, request_permission = 0x1023, tile_data = 18 };
  unsigned registers[4];
  if ((saved_state() & tile_state) != tile_state) return 0;
  // Tiles, and their products of bfloat16.
  if (!has_leaf(7, 0, registers) || !(registers[3] >> 24 & registers[3] >> 22 & 1)) return 0;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return 0;
#endif
}

#endif

int qe_bf16_available(qe_bf16_kernels kernels) {
  switch (kernels) {
  case qe_bf16_plain: return 1;
#if defined(__x86_64__)
  case qe_bf16_avx512: return has_avx512_bf16();
  case qe_bf16_amx: return has_amx_bf16();
#endif
  default: return 0;
  }
}

static block_kernel *block_of(qe_bf16_kernels kernels) {
  switch (kernels) {
#if defined(__x86_64__)
  case qe_bf16_avx512: return avx512_block;
  case qe_bf16_amx: return amx_block;
#endif
  default: return plain_block;
  }
}

// A block that reaches beyond C, or across its diagonal.
static void multiply_partly(
    block_kernel *block, ptrdiff_t steps, const uint16_t *a, const uint16_t *b, ptrdiff_t rows,
    ptrdiff_t columns, float *c, ptrdiff_t stride, int keep, int lower) {
  _Alignas(64) float sums[panel * panel] = {0};
  for (int isResult = !keep; isResult < 2; isResult++) {
    if (isResult) block(steps, a, b, sums, panel, keep);
    for (ptrdiff_t row = 0; row < rows; row++) {
      const size_t byte_count = (size_t)(lower ? row + 1 : columns) * sizeof(float);
      float *inside = c + row * stride, *copy = sums + row * panel;
      memcpy(isResult ? inside : copy, isResult ? copy : inside, byte_count);
    }
  }
}

void qe_bf16_multiply(
    qe_bf16_kernels kernels, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t steps, const uint16_t *a,
    ptrdiff_t a_steps, const uint16_t *b, ptrdiff_t b_steps, float *c, ptrdiff_t stride, int keep,
    qe_bf16_part part) {
  block_kernel *block = block_of(kernels);
#if defined(__x86_64__)
  if (kernels == qe_bf16_amx) configure_tiles();
#endif
  // At least once, for a product without inner elements is zero.
  for (ptrdiff_t first = 0; first == 0 || first < steps; first += steps_at_once) {
    const ptrdiff_t count = steps - first < steps_at_once ? steps - first : steps_at_once;
    const int keeps = keep || first > 0;
    for (ptrdiff_t column = 0; column < columns; column += panel) {
      const uint16_t *right = b + (column / panel * b_steps + first) * step;
      for (ptrdiff_t row = part == qe_bf16_lower ? column : 0; row < rows; row += panel) {
        const uint16_t *left = a + (row / panel * a_steps + first) * step;
        float *place = c + row * stride + column;
        const int crosses = part == qe_bf16_lower && row == column;
        const ptrdiff_t height = rows - row < panel ? rows - row : panel;
        const ptrdiff_t width = columns - column < panel ? columns - column : panel;
        if (height == panel && width == panel && !crosses)
          block(count, left, right, place, stride, keeps);
        else
          multiply_partly(block, count, left, right, height, width, place, stride, keeps, crosses);
      }
    }
  }
#if defined(__x86_64__)
  if (kernels == qe_bf16_amx) release_tiles();
#endif
}
