// Floats of eight bits and fewer, and integers of two and four bits; each lies in a byte of its own.
DEVICE double power_of_two(int e) { return __longlong_as_double((i64)(e + 1023) << 52); }
// KIND: what the largest codes are. 0: infinity and NaN as in IEEE; 1: the very largest is NaN; 2:
// NaN is minus zero; 3: there is neither
template <int E, int M, int BIAS, int KIND> struct small_float {
    unsigned char bits;
    static DEVICE float decode(u32 v) {
        const u32 sign = v >> (E + M) & 1, code = v & ((1 << (E + M)) - 1), e = code >> M, m = code & ((1 << M) - 1);
        if (KIND == 0 && e == (1 << E) - 1) return m ? NAN : (sign ? -INFINITY : INFINITY);
        if (KIND == 1 && code == (1 << (E + M)) - 1) return NAN;
        if (KIND == 2 && sign && !code) return NAN;
        const double size = (double)(e ? m | 1 << M : m) * power_of_two((int)(e ? e : 1) - BIAS - M);
        return (float)(sign ? -size : size);
    }
    static DEVICE u32 encode(double v) {
        const u32 sign = (u32)(__double_as_longlong(v) < 0) << (E + M), largest = KIND == 0 ? ((1 << E) - 1 << M) - 1 : KIND == 1 ? (1 << (E + M)) - 2 : (1 << (E + M)) - 1;
        const u32 nan = KIND == 2 ? 1 << (E + M) : KIND == 3 ? sign | 0 : KIND == 0 ? sign | ((1 << E) - 1 << M | 1 << (M - 1)) : sign | (1 << (E + M)) - 1;
        if (v != v) return KIND == 3 ? 1 << (E + M) : nan;
        const double a = fabs(v);
        if (a > 1e30) return KIND == 0 ? sign | ((1 << E) - 1 << M) : KIND == 3 ? sign | largest : nan;
        int e = (int)(__double_as_longlong(a) >> 52 & 2047) - 1023;
        if (e < 1 - BIAS) e = 1 - BIAS;
        u32 q = (u32)rint(a * power_of_two(M - e));
        u32 code = q >= (1u << M) ? ((u32)(e + BIAS) << M) + (q - (1u << M)) : q;
        if (code > largest) return KIND == 0 ? sign | ((1 << E) - 1 << M) : KIND == 3 ? sign | largest : nan;
        return KIND == 2 && !code ? 0 : sign | code;
    }
};
#define SMALL_FLOAT(name, e, m, bias, kind)                                                       \
    typedef small_float<e, m, bias, kind> name;                                                   \
    template <> struct compute<name> { typedef float type; };                                     \
    template <> DEVICE float widen<name>(name v) { return name::decode(v.bits); }                 \
    template <> struct narrow_to<name> {                                                          \
        template <typename S> static DEVICE name of(S v) { name r; r.bits = (unsigned char)name::encode((double)v); return r; } \
    };
SMALL_FLOAT(float8e4m3fn_t, 4, 3, 7, 1)
SMALL_FLOAT(float8e4m3fnuz_t, 4, 3, 8, 2)
SMALL_FLOAT(float8e5m2_t, 5, 2, 15, 0)
SMALL_FLOAT(float8e5m2fnuz_t, 5, 2, 16, 2)
SMALL_FLOAT(float4e2m1_t, 2, 1, 1, 3)
SMALL_FLOAT(float6e2m3_t, 2, 3, 1, 3)
SMALL_FLOAT(float6e3m2_t, 3, 2, 3, 3)

struct float8e8m0_t { unsigned char bits; };
template <> struct compute<float8e8m0_t> { typedef float type; };
template <> DEVICE float widen<float8e8m0_t>(float8e8m0_t v) { return v.bits == 255 ? NAN : (float)power_of_two((int)v.bits - 127); }
// the power of two above (MODE 0), nearest (1) or below (2); the sign is ignored
template <int MODE, bool SATURATE> DEVICE float8e8m0_t to_e8m0(double v) {
    float8e8m0_t r = {255};
    if (v != v) return r;
    const float a = round_odd(fabs(v));
    int power = -1;
    if (a == INFINITY) power = 255;
    else if (a > 0) {
        const i64 bits = __double_as_longlong((double)a);
        const i64 fraction = bits & 0xfffffffffffffll;
        power = (int)(bits >> 52) - 1023 + 127;
        power += MODE == 0 ? fraction > 0 : MODE == 1 ? fraction > 0x7ffffe0000000ll : 0;
    }
    if (SATURATE) power = min(max(power, 0), 254);
    else if (power < 0 || power > 254) power = 255;
    r.bits = (unsigned char)power;
    return r;
}
template <> struct narrow_to<float8e8m0_t> { template <typename S> static DEVICE float8e8m0_t of(S v) { return to_e8m0<1, false>((double)v); } };

template <int BITS, bool SIGNED> struct small_integer { signed char bits; };
#define SMALL_INTEGER(name, count, sign)                                                          \
    typedef small_integer<count, sign> name;                                                      \
    template <> struct compute<name> { typedef int type; };                                       \
    template <> DEVICE int widen<name>(name v) {                                                  \
        const int raw = v.bits & ((1 << count) - 1);                                              \
        return sign && raw >> (count - 1) ? raw - (1 << count) : raw;                             \
    }                                                                                             \
    template <> struct narrow_to<name> {                                                          \
        template <typename S> static DEVICE name of(S v) {                                        \
            name r;                                                                               \
            r.bits = (signed char)((int)(i64)v & ((1 << count) - 1));                             \
            r.bits = (signed char)widen(r);                                                       \
            return r;                                                                             \
        }                                                                                         \
    };
SMALL_INTEGER(int4_t, 4, true)
SMALL_INTEGER(uint4_t, 4, false)
SMALL_INTEGER(int2_t, 2, true)
SMALL_INTEGER(uint2_t, 2, false)
