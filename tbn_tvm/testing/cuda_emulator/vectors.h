// CUDA's vector types, with their alignments.
#pragma once

struct dim3 {
  unsigned x, y, z;
};

#define TBN_VECTORS(NAME, TYPE, BYTES)                                                           \
  struct NAME##1 {                                                                               \
    TYPE x;                                                                                      \
  };                                                                                             \
  struct __attribute__((aligned(2 * BYTES))) NAME##2 {                                           \
    TYPE x, y;                                                                                   \
  };                                                                                             \
  struct NAME##3 {                                                                               \
    TYPE x, y, z;                                                                                \
  };                                                                                             \
  struct __attribute__((aligned(4 * BYTES > 16 ? 16 : 4 * BYTES))) NAME##4 {                     \
    TYPE x, y, z, w;                                                                             \
  };                                                                                             \
  inline NAME##1 make_##NAME##1(TYPE x) { return {x}; }                                          \
  inline NAME##2 make_##NAME##2(TYPE x, TYPE y) { return {x, y}; }                               \
  inline NAME##3 make_##NAME##3(TYPE x, TYPE y, TYPE z) { return {x, y, z}; }                    \
  inline NAME##4 make_##NAME##4(TYPE x, TYPE y, TYPE z, TYPE w) { return {x, y, z, w}; }

TBN_VECTORS(char, signed char, 1)
TBN_VECTORS(uchar, unsigned char, 1)
TBN_VECTORS(short, short, 2)
TBN_VECTORS(ushort, unsigned short, 2)
TBN_VECTORS(int, int, 4)
TBN_VECTORS(uint, unsigned, 4)
TBN_VECTORS(long, long, 8)
TBN_VECTORS(ulong, unsigned long, 8)
TBN_VECTORS(longlong, long long, 8)
TBN_VECTORS(ulonglong, unsigned long long, 8)
TBN_VECTORS(float, float, 4)
TBN_VECTORS(double, double, 8)

#undef TBN_VECTORS
