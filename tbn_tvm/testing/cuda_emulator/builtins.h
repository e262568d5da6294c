// CUDA's arithmetic, bit and memory functions that need one thread only.
#pragma once

#define CUDART_INF_F (__builtin_inff())
#define CUDART_NAN_F (__builtin_nanf(""))
#define CUDART_INF (__builtin_inf())
#define CUDART_NAN (__builtin_nan(""))

// glibc declares several of these names itself.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)

inline float __tanhf_approximate(float x) { return tanhf(x); }
inline float rsqrtf(float x) { return float(1.0 / std::sqrt(double(x))); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float x, float y) { return x / y; }
inline float fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline float normcdff(float x) { return float(0.5 * std::erfc(-double(x) * M_SQRT1_2)); }

#define TBN_MINIMUM_MAXIMUM(TYPE)                                                                \
  inline TYPE max(TYPE a, TYPE b) { return a > b ? a : b; }                                      \
  inline TYPE min(TYPE a, TYPE b) { return a < b ? a : b; }
TBN_MINIMUM_MAXIMUM(int)
TBN_MINIMUM_MAXIMUM(unsigned)
TBN_MINIMUM_MAXIMUM(long)
TBN_MINIMUM_MAXIMUM(unsigned long)
TBN_MINIMUM_MAXIMUM(long long)
TBN_MINIMUM_MAXIMUM(unsigned long long)
#undef TBN_MINIMUM_MAXIMUM
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
// A NaN loses, as it does on the GPU.
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }

template <class To, class From>
inline To tbn_reinterpret(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}
inline float __int_as_float(int bits) { return tbn_reinterpret<float>(bits); }
inline float __uint_as_float(unsigned bits) { return tbn_reinterpret<float>(bits); }
inline int __float_as_int(float value) { return tbn_reinterpret<int>(value); }
inline unsigned __float_as_uint(float value) { return tbn_reinterpret<unsigned>(value); }
inline double __longlong_as_double(long long bits) { return tbn_reinterpret<double>(bits); }
inline long long __double_as_longlong(double value) { return tbn_reinterpret<long long>(value); }
inline int __float2int_rn(float value) { return int(std::nearbyint(value)); }
inline int __float2int_rz(float value) { return int(value); }
inline int __float2int_rd(float value) { return int(std::floor(value)); }
inline int __float2int_ru(float value) { return int(std::ceil(value)); }
inline unsigned __float2uint_rn(float value) { return unsigned(std::nearbyint(value)); }
inline float __int2float_rn(int value) { return float(value); }
inline float __uint2float_rn(unsigned value) { return float(value); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value ? __builtin_clz(value) : 32; }
inline int __clzll(long long value) { return value ? __builtin_clzll(value) : 64; }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline unsigned __brev(unsigned value) {
  unsigned result = 0;
  for (int bit = 0; bit < 32; ++bit) result |= (value >> bit & 1) << (31 - bit);
  return result;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = selector >> 4 * i & 15;
    unsigned byte = bytes >> 8 * (choice & 7) & 255;
    if (choice & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline int __mulhi(int a, int b) { return int(int64_t{a} * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t{a} * b >> 32); }
inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) sum += int8_t(a >> 8 * i) * int8_t(b >> 8 * i);
  return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  for (int i = 0; i < 4; ++i) sum += (a >> 8 * i & 255) * (b >> 8 * i & 255);
  return sum;
}

template <class T>
inline T __ldg(const T* address) {
  return *address;
}
template <class T>
inline T __ldcs(const T* address) {
  return *address;
}
template <class T>
inline T __ldcg(const T* address) {
  return *address;
}
template <class T>
inline void __stcs(T* address, T value) {
  *address = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
inline long long clock64() { return 0; }
inline void __trap() { tbn_emulator::fail("__trap()"); }
#define __ldcv __ldcg
#define __builtin_assume(condition)

// One thread runs at a time and gives way only at collectives, so plain code is atomic.
#define TBN_ATOMIC(NAME, EXPRESSION)                                                             \
  template <class T, class U>                                                                    \
  inline T NAME(T* address, U given) {                                                           \
    const T old = *address, value = T(given);                                                    \
    *address = EXPRESSION;                                                                       \
    return old;                                                                                  \
  }
TBN_ATOMIC(atomicAdd, old + value)
TBN_ATOMIC(atomicSub, old - value)
TBN_ATOMIC(atomicExch, value)
TBN_ATOMIC(atomicMax, old > value ? old : value)
TBN_ATOMIC(atomicMin, old < value ? old : value)
TBN_ATOMIC(atomicAnd, old & value)
TBN_ATOMIC(atomicOr, old | value)
TBN_ATOMIC(atomicXor, old ^ value)
TBN_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
TBN_ATOMIC(atomicDec, old == 0 || old > value ? value : T(old - 1))
#undef TBN_ATOMIC
template <class T>
inline T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}
