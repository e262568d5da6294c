// half and nv_bfloat16: stored in 16 bits, computed in float, rounded to nearest even.
//
// For one +, -, *, / or square root that is exact: float has more than twice the digits.
#pragma once

// The compiler's own type, where C++ has it, uses the processor's conversions.
#if defined(__x86_64__) && defined(__FLT16_MANT_DIG__)
#define TBN_HAS_FLOAT16 1
#endif

namespace tbn_emulator {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

struct Binary16 {
  static float decode(uint16_t bits) {
#if defined(TBN_HAS_FLOAT16)
    _Float16 value;
    memcpy(&value, &bits, 2);
    return value;
#else
    const uint32_t sign = uint32_t(bits & 0x8000) << 16;
    const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    const float magnitude = exponent ? std::ldexp(float(1024 + fraction), int(exponent) - 25)
                                     : std::ldexp(float(fraction), -24);
    return sign ? -magnitude : magnitude;
#endif
  }

  static uint16_t encode(float value) {
#if defined(TBN_HAS_FLOAT16)
    const _Float16 rounded = static_cast<_Float16>(value);
    uint16_t bits;
    memcpy(&bits, &rounded, 2);
    return bits;
#else
    const uint32_t bits = bits_of(value);
    const uint16_t sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00; // rounds to 65536 or more
    if (magnitude < 0x38800000) { // subnormal: a multiple of 2^-24
      return sign | uint16_t(std::nearbyint(std::ldexp(float_of(magnitude), 24)));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | uint16_t((rounded - 0x38000000) >> 13);
#endif
  }
};

struct Brain16 {
  static float decode(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

  static uint16_t encode(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};

// From double there must be one rounding, so the float in between is rounded to odd.
inline float toward_odd(double value) {
  const float near = static_cast<float>(value);
  if (!std::isfinite(value) || std::isinf(near) || double(near) == value) return near;
  if (bits_of(near) & 1) return near;
  const bool up = double(near) < value;
  return std::nextafter(near, up ? INFINITY : -INFINITY);
}

template <class Format>
struct Narrow {
  uint16_t bits;

  Narrow() = default;
  Narrow(float value) : bits(Format::encode(value)) {}
  Narrow(double value) : bits(Format::encode(toward_odd(value))) {}
  template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
  Narrow(T value) : Narrow(static_cast<double>(value)) {}
  operator float() const { return Format::decode(bits); }

  Narrow& operator+=(Narrow other) { return *this = *this + other; }
  Narrow& operator-=(Narrow other) { return *this = *this - other; }
  Narrow& operator*=(Narrow other) { return *this = *this * other; }
  Narrow& operator/=(Narrow other) { return *this = *this / other; }

  friend Narrow operator+(Narrow a, Narrow b) { return Narrow(float(a) + float(b)); }
  friend Narrow operator-(Narrow a, Narrow b) { return Narrow(float(a) - float(b)); }
  friend Narrow operator*(Narrow a, Narrow b) { return Narrow(float(a) * float(b)); }
  friend Narrow operator/(Narrow a, Narrow b) { return Narrow(float(a) / float(b)); }
  friend Narrow operator-(Narrow a) { return Narrow(-float(a)); }
  friend Narrow operator+(Narrow a) { return a; }
  friend bool operator==(Narrow a, Narrow b) { return float(a) == float(b); }
  friend bool operator!=(Narrow a, Narrow b) { return float(a) != float(b); }
  friend bool operator<(Narrow a, Narrow b) { return float(a) < float(b); }
  friend bool operator>(Narrow a, Narrow b) { return float(a) > float(b); }
  friend bool operator<=(Narrow a, Narrow b) { return float(a) <= float(b); }
  friend bool operator>=(Narrow a, Narrow b) { return float(a) >= float(b); }
};

template <class Format>
struct __attribute__((aligned(4))) Narrow2 {
  Narrow<Format> x, y;

  Narrow2() = default;
  Narrow2(Narrow<Format> x, Narrow<Format> y) : x(x), y(y) {}

  friend Narrow2 operator+(Narrow2 a, Narrow2 b) { return {a.x + b.x, a.y + b.y}; }
  friend Narrow2 operator-(Narrow2 a, Narrow2 b) { return {a.x - b.x, a.y - b.y}; }
  friend Narrow2 operator*(Narrow2 a, Narrow2 b) { return {a.x * b.x, a.y * b.y}; }
  friend Narrow2 operator/(Narrow2 a, Narrow2 b) { return {a.x / b.x, a.y / b.y}; }
  friend Narrow2 operator-(Narrow2 a) { return {-a.x, -a.y}; }
};

} // namespace tbn_emulator

using __half = tbn_emulator::Narrow<tbn_emulator::Binary16>;
using __half2 = tbn_emulator::Narrow2<tbn_emulator::Binary16>;
using __nv_bfloat16 = tbn_emulator::Narrow<tbn_emulator::Brain16>;
using __nv_bfloat162 = tbn_emulator::Narrow2<tbn_emulator::Brain16>;
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

// Conversions.

inline half __float2half(float value) { return half(value); }
inline half __float2half_rn(float value) { return half(value); }
inline half __double2half(double value) { return half(value); }
inline half __int2half_rn(int value) { return half(value); }
inline half __uint2half_rn(unsigned value) { return half(value); }
inline float __half2float(half value) { return value; }
inline nv_bfloat16 __float2bfloat16(float value) { return nv_bfloat16(value); }
inline nv_bfloat16 __float2bfloat16_rn(float value) { return nv_bfloat16(value); }
inline nv_bfloat16 __double2bfloat16(double value) { return nv_bfloat16(value); }
inline nv_bfloat16 __int2bfloat16_rn(int value) { return nv_bfloat16(value); }
inline float __bfloat162float(nv_bfloat16 value) { return value; }

inline half2 make_half2(half x, half y) { return {x, y}; }
inline half2 __halves2half2(half x, half y) { return {x, y}; }
inline half2 __half2half2(half value) { return {value, value}; }
inline half2 __float2half2_rn(float value) { return {half(value), half(value)}; }
inline half2 __floats2half2_rn(float x, float y) { return {half(x), half(y)}; }
inline half2 __float22half2_rn(float2 value) { return {half(value.x), half(value.y)}; }
inline float2 __half22float2(half2 value) { return {value.x, value.y}; }
inline nv_bfloat162 __halves2bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
inline nv_bfloat162 __bfloat162bfloat162(nv_bfloat16 value) { return {value, value}; }
inline nv_bfloat162 __float2bfloat162_rn(float value) { return {value, value}; }
inline nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline nv_bfloat162 __float22bfloat162_rn(float2 value) { return {value.x, value.y}; }
inline float2 __bfloat1622float2(nv_bfloat162 value) { return {value.x, value.y}; }

template <class Format>
inline unsigned short tbn_narrow_bits(tbn_emulator::Narrow<Format> value) {
  return value.bits;
}
inline unsigned short __half_as_ushort(half value) { return value.bits; }
inline short __half_as_short(half value) { return short(value.bits); }
inline unsigned short __bfloat16_as_ushort(nv_bfloat16 value) { return value.bits; }
inline short __bfloat16_as_short(nv_bfloat16 value) { return short(value.bits); }
inline half __ushort_as_half(unsigned short bits) {
  half value;
  value.bits = bits;
  return value;
}
inline half __short_as_half(short bits) { return __ushort_as_half(bits); }
inline nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  nv_bfloat16 value;
  value.bits = bits;
  return value;
}
inline nv_bfloat16 __short_as_bfloat16(short bits) { return __ushort_as_bfloat16(bits); }

// Arithmetic and mathematics, for both formats. TVM's own text defines some of them again, as
// ordinary functions, which are preferred.

#define TBN_NARROW_UNARY(NAME, EXPRESSION)                                                       \
  template <class Format>                                                                        \
  inline tbn_emulator::Narrow<Format> NAME(tbn_emulator::Narrow<Format> a) {                     \
    const float x = a;                                                                           \
    return tbn_emulator::Narrow<Format>(EXPRESSION);                                             \
  }
#define TBN_NARROW_BINARY(NAME, EXPRESSION)                                                      \
  template <class Format>                                                                        \
  inline tbn_emulator::Narrow<Format> NAME(tbn_emulator::Narrow<Format> a,                       \
                                           tbn_emulator::Narrow<Format> b) {                     \
    const float x = a, y = b;                                                                    \
    return tbn_emulator::Narrow<Format>(EXPRESSION);                                             \
  }                                                                                              \
  template <class Format>                                                                        \
  inline tbn_emulator::Narrow2<Format> NAME##2(tbn_emulator::Narrow2<Format> a,                  \
                                               tbn_emulator::Narrow2<Format> b) {                \
    return {NAME(a.x, b.x), NAME(a.y, b.y)};                                                     \
  }
#define TBN_NARROW_COMPARE(NAME, OPERATOR)                                                       \
  template <class Format>                                                                        \
  inline bool NAME(tbn_emulator::Narrow<Format> a, tbn_emulator::Narrow<Format> b) {             \
    return float(a) OPERATOR float(b);                                                           \
  }

TBN_NARROW_UNARY(hexp, std::exp(x))
TBN_NARROW_UNARY(hexp2, std::exp2(x))
TBN_NARROW_UNARY(hexp10, std::pow(10.0f, x))
TBN_NARROW_UNARY(hlog, std::log(x))
TBN_NARROW_UNARY(hlog2, std::log2(x))
TBN_NARROW_UNARY(hlog10, std::log10(x))
TBN_NARROW_UNARY(hsqrt, std::sqrt(x))
TBN_NARROW_UNARY(hrsqrt, 1.0 / std::sqrt(double(x)))
TBN_NARROW_UNARY(hrcp, 1.0f / x)
TBN_NARROW_UNARY(hsin, std::sin(x))
TBN_NARROW_UNARY(hcos, std::cos(x))
TBN_NARROW_UNARY(htan, std::tan(x))
TBN_NARROW_UNARY(hatan, std::atan(x))
TBN_NARROW_UNARY(htanh, std::tanh(x))
TBN_NARROW_UNARY(herf, std::erf(x))
TBN_NARROW_UNARY(hfloor, std::floor(x))
TBN_NARROW_UNARY(hceil, std::ceil(x))
TBN_NARROW_UNARY(htrunc, std::trunc(x))
TBN_NARROW_UNARY(hrint, std::nearbyint(x))
TBN_NARROW_UNARY(hround, std::round(x))
TBN_NARROW_UNARY(__habs, std::fabs(x))
TBN_NARROW_UNARY(__hneg, -x)
TBN_NARROW_BINARY(__hadd, x + y)
TBN_NARROW_BINARY(__hsub, x - y)
TBN_NARROW_BINARY(__hmul, x* y)
TBN_NARROW_BINARY(__hdiv, x / y)
TBN_NARROW_BINARY(__hmax, std::fmax(x, y))
TBN_NARROW_BINARY(__hmin, std::fmin(x, y))
TBN_NARROW_BINARY(hpow, std::pow(x, y))
TBN_NARROW_COMPARE(__heq, ==)
TBN_NARROW_COMPARE(__hne, !=)
TBN_NARROW_COMPARE(__hlt, <)
TBN_NARROW_COMPARE(__hle, <=)
TBN_NARROW_COMPARE(__hgt, >)
TBN_NARROW_COMPARE(__hge, >=)

template <class Format>
inline bool __hisnan(tbn_emulator::Narrow<Format> value) {
  return std::isnan(float(value));
}

template <class Format>
inline tbn_emulator::Narrow<Format> __hfma(tbn_emulator::Narrow<Format> a,
                                           tbn_emulator::Narrow<Format> b,
                                           tbn_emulator::Narrow<Format> c) {
  return tbn_emulator::Narrow<Format>(double(a) * double(b) + double(c));
}
template <class Format>
inline tbn_emulator::Narrow2<Format> __hfma2(tbn_emulator::Narrow2<Format> a,
                                             tbn_emulator::Narrow2<Format> b,
                                             tbn_emulator::Narrow2<Format> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <class Format>
inline tbn_emulator::Narrow2<Format> __hneg2(tbn_emulator::Narrow2<Format> a) {
  return -a;
}
inline half __low2half(half2 value) { return value.x; }
inline half __high2half(half2 value) { return value.y; }
inline nv_bfloat16 __low2bfloat16(nv_bfloat162 value) { return value.x; }
inline nv_bfloat16 __high2bfloat16(nv_bfloat162 value) { return value.y; }

#undef TBN_NARROW_UNARY
#undef TBN_NARROW_BINARY
#undef TBN_NARROW_COMPARE
