#if !defined(__ARM_FEATURE_MVE)
#error "this model is for a core with vector instructions: build with -mcpu=cortex-m55, for example"
#endif
#include <arm_mve.h>

/*
 * GCC takes a gather for a load of the vector at its base, so it would drop or move the stores of
 * all other entries: around the gathers from a table stands what may read and write all of it.
 */
#define TBN_MVE_MEMORY(table) __asm__ volatile("" : : "r"(table) : "memory")

/* The 16 signed sums of four values; bit b of an entry's number is set where value b adds. */
static inline void tbn_mve_fill_f32(float *to, float a, float b, float c, float d)
{
  const float32x4_t first = {-1.0f, 1.0f, -1.0f, 1.0f};
  const float32x4_t second = {-1.0f, -1.0f, 1.0f, 1.0f};
  const float32x4_t low = vfmaq_n_f32(vmulq_n_f32(first, a), second, b);
  const float32x4_t less = vsubq_n_f32(low, d);
  const float32x4_t more = vaddq_n_f32(low, d);
  vst1q_f32(to, vsubq_n_f32(less, c));
  vst1q_f32(to + 4, vaddq_n_f32(less, c));
  vst1q_f32(to + 8, vsubq_n_f32(more, c));
  vst1q_f32(to + 12, vaddq_n_f32(more, c));
}

static inline void tbn_mve_fill_s16(int16_t *to, int32_t a, int32_t b, int32_t c, int32_t d)
{
  const int16x8_t first = {-1, 1, -1, 1, -1, 1, -1, 1};
  const int16x8_t second = {-1, -1, 1, 1, -1, -1, 1, 1};
  const int16x8_t third = {-1, -1, -1, -1, 1, 1, 1, 1};
  int16x8_t low = vmulq_n_s16(first, (int16_t)a);
  low = vmlaq_n_s16(low, second, (int16_t)b);
  low = vmlaq_n_s16(low, third, (int16_t)c);
  vst1q_s16(to, vsubq_n_s16(low, (int16_t)d));
  vst1q_s16(to + 8, vaddq_n_s16(low, (int16_t)d));
}

/*
 * Adds to the sum of each row the entries that the nibbles of its word name, each of a table of
 * its own. Four rows at once: rows is a multiple of 4; count, at most 8, says how many nibbles.
 */
static inline void tbn_mve_look_up_f32(float *sums, const uint32_t *words, const float *tables,
                                       int32_t rows, int32_t count)
{
  const uint32x4_t nibble = vdupq_n_u32(15u);
  TBN_MVE_MEMORY(tables);
  for (int32_t row = 0; row < rows; row += 4) {
    uint32x4_t word = vld1q_u32(words + row);
    float32x4_t sum = vld1q_f32(sums + row);
#pragma GCC unroll 8
    for (int32_t t = 0; t < count; t++) {
      const uint32x4_t entry = t < 7 ? vandq_u32(word, nibble) : word;
      sum = vaddq_f32(sum, vldrwq_gather_shifted_offset_f32(tables + 16 * t, entry));
      word = vshrq_n_u32(word, 4);
    }
    vst1q_f32(sums + row, sum);
  }
  TBN_MVE_MEMORY(tables);
}

/*
 * The same for 16-bit entries, eight rows at once: rows is a multiple of 8. Words of 16 bits are
 * row-minor, then by group of four tables, then by eight rows. At most 32 tables, so that sums of
 * entries below 1024 fit 16 bits until they are added to the rows' own.
 */
static inline void tbn_mve_look_up_s16(int32_t *sums, const uint16_t *words, const int16_t *tables,
                                       int32_t rows, int32_t count)
{
  const uint16x8_t nibble = vdupq_n_u16(15u);
  TBN_MVE_MEMORY(tables);
  for (int32_t row = 0; row < rows; row += 8) {
    int16x8_t sum = vdupq_n_s16(0);
    const int16_t *table = tables;
    for (int32_t quad = 0; quad < count / 4; quad++) {
      uint16x8_t word = vld1q_u16(words);
#pragma GCC unroll 4
      for (int32_t t = 0; t < 4; t++) {
        const uint16x8_t entry = t < 3 ? vandq_u16(word, nibble) : word;
        sum = vaddq_s16(sum, vldrhq_gather_shifted_offset_s16(table + 16 * t, entry));
        word = vshrq_n_u16(word, 4);
      }
      words += 8;
      table += 64;
    }
    if (count % 4 != 0) {
      uint16x8_t word = vld1q_u16(words);
#pragma GCC unroll 4
      for (int32_t t = 0; t < count % 4; t++) {
        const uint16x8_t entry = vandq_u16(word, nibble);
        sum = vaddq_s16(sum, vldrhq_gather_shifted_offset_s16(table + 16 * t, entry));
        word = vshrq_n_u16(word, 4);
      }
      words += 8;
    }
    int32x4x2_t wide = vld2q_s32(sums + row);
    wide.val[0] = vaddq_s32(wide.val[0], vmovlbq_s16(sum));
    wide.val[1] = vaddq_s32(wide.val[1], vmovltq_s16(sum));
    vst2q_s32(sums + row, wide);
  }
  TBN_MVE_MEMORY(tables);
}
