// Reductions over any axes of a strided tensor. COLUMN: neighbouring threads take neighbouring
// results, else neighbouring elements of one reduction. RT threads share a result.
//
// Macros: T_IN, T_OUT, T_INDEX (arg reductions), ACC (type of the sum), KIND, COLUMN, RT, KEEP_LAST.
#define SUM 0
#define MEAN 1
#define MAXIMUM 2
#define MINIMUM 3
#define PRODUCT 4
#define L1 5
#define L2 6
#define SUM_SQUARE 7
#define LOG_SUM 8
#define LOG_SUM_EXP 9
#define ARG_MAX 10
#define ARG_MIN 11
#define KT (MAX_THREADS / RT)
#define ARG (KIND == ARG_MAX || KIND == ARG_MIN)

#if KIND == LOG_SUM_EXP
struct partial { ACC high, sum; };
#elif ARG
struct partial { ACC value; i64 index; };
#else
struct partial { ACC value; };
#endif

DEVICE bool before(ACC a, ACC b) {  // NaN comes first, as in NumPy
    if (a != a) return !(b != b);
    return KIND == ARG_MIN ? a < b : a > b;
}
DEVICE partial merged(partial a, partial b) {
#if KIND == LOG_SUM_EXP
    ACC high = propagating_max(a.high, b.high), base = high == -INFINITY ? (ACC)0 : high;
    return {high, a.sum * (ACC)exp(a.high - base) + b.sum * (ACC)exp(b.high - base)};
#elif ARG
    if (b.index < 0) return a;
    if (a.index < 0 || before(b.value, a.value)) return b;
    if (before(a.value, b.value)) return a;
    return (KEEP_LAST ? a.index > b.index : a.index < b.index) ? a : b;
#elif KIND == MAXIMUM
    return {EXTREME_MAX(a.value, b.value)};
#elif KIND == MINIMUM
    return {EXTREME_MIN(a.value, b.value)};
#elif KIND == PRODUCT
    return {a.value * b.value};
#else
    return {a.value + b.value};
#endif
}
DEVICE partial single(ACC x, i64 index) {
#if KIND == LOG_SUM_EXP
    return {x, x == -INFINITY ? (ACC)0 : (ACC)1};
#elif ARG
    return {x, index};
#elif KIND == L1
    return {x < 0 ? (ACC)-x : x};
#elif KIND == L2 || KIND == SUM_SQUARE
    return {x * x};
#else
    return {x};
#endif
}
#if KIND == LOG_SUM_EXP
#define NEUTRAL {-INFINITY, 0}
#elif ARG
#define NEUTRAL {0, -1}
#endif

GLOBAL(KERNEL, MAX_THREADS)(u32 results, u32 length, dims kept, strides kept_steps, dims reduced, strides reduced_steps,
                            const T_IN* x, T_OUT* y) {
    __shared__ partial parts[MAX_THREADS];
    release_successor();
    wait_predecessor();
    const int t = COLUMN ? threadIdx.x / KT : threadIdx.x % RT, mine = COLUMN ? threadIdx.x % KT : threadIdx.x / RT;
    const u32 result = blockIdx.x * KT + mine;
    partial sum = NEUTRAL;
    if (result < results) {
        u32 rest = result;
        for (int d = kept.rank - 1; d >= 0; d--) {
            u32 next = divide(rest, kept.magic[d], kept.shift[d]);
            x += (i64)(rest - next * kept.size[d]) * kept_steps.step[d];
            rest = next;
        }
        if (reduced.rank == 1) {
            for (u32 i = t; i < length; i += RT) sum = merged(sum, single((ACC)widen(x[i * reduced_steps.step[0]]), i));
        } else {
            for (u32 i = t; i < length; i += RT) {
                i64 at = 0;
                u32 left = i;
                for (int d = reduced.rank - 1; d >= 0; d--) {
                    u32 next = divide(left, reduced.magic[d], reduced.shift[d]);
                    at += (i64)(left - next * reduced.size[d]) * reduced_steps.step[d];
                    left = next;
                }
                sum = merged(sum, single((ACC)widen(x[at]), i));
            }
        }
    }
    parts[threadIdx.x] = sum;
    const int step = COLUMN ? KT : 1;
    for (int half = RT / 2; half; half /= 2) {
        __syncthreads();
        if (t < half) parts[threadIdx.x] = merged(parts[threadIdx.x], parts[threadIdx.x + half * step]);
    }
    if (t || result >= results) return;
    sum = parts[threadIdx.x];
#if ARG
    y[result] = narrow<T_OUT>(sum.index);
#elif KIND == MEAN
    y[result] = narrow<T_OUT>(sum.value / (ACC)length);
#elif KIND == L2
    y[result] = narrow<T_OUT>(sqrt(sum.value));
#elif KIND == LOG_SUM
    y[result] = narrow<T_OUT>(log(sum.value));
#elif KIND == LOG_SUM_EXP
    y[result] = narrow<T_OUT>((sum.high == -INFINITY ? (ACC)0 : sum.high) + (ACC)log(sum.sum));
#else
    y[result] = narrow<T_OUT>(sum.value);
#endif
}
