// Functions of the pointwise trees, for float and double, and for integers where they differ.
#ifdef HOST_EMULATION
DEVICE float propagating_max(float a, float b) { return a != a ? a : (b != b ? b : fmaxf(a, b)); }
DEVICE float propagating_min(float a, float b) { return a != a ? a : (b != b ? b : fminf(a, b)); }
#endif
DEVICE double propagating_max(double a, double b) { return a != a ? a : (b != b ? b : fmax(a, b)); }
DEVICE double propagating_min(double a, double b) { return a != a ? a : (b != b ? b : fmin(a, b)); }

// NaN stays
DEVICE double saturated(double x, double limit) { return x > limit ? limit : x < -limit ? -limit : x; }
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
DEVICE double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
DEVICE float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }
DEVICE double softplus(double x) { return fmax(x, 0.0) + log1p(exp(-fabs(x))); }
DEVICE float gelu_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
DEVICE double gelu_erf(double x) { return 0.5 * x * (1.0 + erf(x * 0.70710678118654752440)); }
DEVICE float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}
DEVICE double gelu_tanh(double x) {
    return 0.5 * x * (1.0 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
}


// for results that are rounded to 16 bits: relative errors far below that, no branches
DEVICE float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }
DEVICE float sigmoid_fast(float x) { return reciprocal_fast(1.0f + exp_fast(-x)); }
DEVICE float gelu_tanh_fast(float x) { return x * sigmoid_fast(1.5957691216057308f * (x + 0.044715f * x * x * x)); }
// x Phi(x) = max(x, 0) - |x| Phi(-|x|), where log2 Phi(-|x|) is a polynomial that errs by less than 2e-5
// of the result (minimax by Lawson's algorithm). Beyond 16 the tail is zero, also for infinities.
DEVICE float gelu_erf_fast(float x) {
    const float a = fminf(fabsf(x), 16.0f);
    float p = fmaf(-0.00042783653729493013f, a, 0.006761373920045595f);
    p = fmaf(p, a, -0.05105250742315317f);
    p = fmaf(p, a, -0.46070559698279634f);
    p = fmaf(p, a, -1.1505952913196704f);
    p = fmaf(p, a, -1.0000324105312863f);
    return fmaf(-a, exp2_fast(p), propagating_max(x, 0.0f));
}

template <typename T> DEVICE T absolute(T a) { return a < 0 ? (T)-a : a; }
// the remainder has the sign of the divisor
template <typename T> DEVICE T floor_mod(T a, T b) {
    if (b == 0) return 0;
    T r = a % b;
    return r != 0 && ((r < 0) != (b < 0)) ? (T)(r + b) : r;
}
DEVICE float floor_mod(float a, float b) {
    const float r = fmodf(a, b);
    return r == 0 ? copysignf(0.0f, b) : (r < 0) != (b < 0) ? r + b : r;
}
DEVICE double floor_mod(double a, double b) {
    const double r = fmod(a, b);
    return r == 0 ? copysign(0.0, b) : (r < 0) != (b < 0) ? r + b : r;
}
// a count outside of the type shifts everything out
template <typename T> DEVICE T shift_left(T a, T b) { return (u64)(i64)b < sizeof(T) * 8 ? (T)((u64)a << b) : (T)0; }
template <typename T> DEVICE T shift_right(T a, T b) { return (u64)(i64)b < sizeof(T) * 8 ? (T)(a >> b) : (T)(a < 0 ? -1 : 0); }
template <typename T> DEVICE T safe_divide(T a, T b) { return b == 0 ? (T)0 : (T)(a / b); }
// as a C cast on x86 does it: through 64 bits, so that negative numbers wrap in unsigned types
template <typename T, typename S> DEVICE T float_to_integer(S v) { return (T)(i64)v; }
template <> DEVICE u64 float_to_integer<u64, float>(float v) { return v < 0 ? (u64)(i64)v : (u64)v; }
template <> DEVICE u64 float_to_integer<u64, double>(double v) { return v < 0 ? (u64)(i64)v : (u64)v; }
