// Normalisations over rows: LayerNorm, RMSNorm, softmax, log-softmax, with a tree before (bias,
// residual, scale, mask) and a tree after (gamma, beta). ROW_THREADS threads share a row; CACHE
// vectors a thread stay in registers, longer rows are read again. While a row is computed, a block's next
// one is on its way.
//
// Macros: REAL (float or double), MODE, VEC, ROW_THREADS, CACHE, FULL (1: rows are just CACHE vectors a
// thread), T_OUT, and T_SUM when the value before is stored as well. MODE: 0 layernorm, 1 rmsnorm,
// 2 softmax, 3 log-softmax, 4 softmax with zeros for rows of -infinity.

#define ROWS_PER_BLOCK (MAX_THREADS / ROW_THREADS)
typedef pack<REAL, VEC> values;

DEVICE float exponential(float v) { return expf(v); }
DEVICE double exponential(double v) { return exp(v); }
DEVICE float logarithm(float v) { return logf(v); }
DEVICE double logarithm(double v) { return log(v); }
DEVICE float root(float v) { return sqrtf(v); }
DEVICE double root(double v) { return sqrt(v); }

template <bool MAXIMUM> DEVICE REAL combine(REAL a, REAL b) { return MAXIMUM ? propagating_max(a, b) : a + b; }

// the same value in every thread of the row
template <bool MAXIMUM> DEVICE REAL reduce_row(REAL v) {
#pragma unroll
    for (int d = ROW_THREADS < 32 ? ROW_THREADS / 2 : 16; d; d >>= 1) v = combine<MAXIMUM>(v, __shfl_xor_sync(0xffffffffu, v, d));
    if (ROW_THREADS > 32) {
        __shared__ REAL part[MAX_THREADS / 32];
        const int warps = ROW_THREADS / 32, base = threadIdx.x / ROW_THREADS * warps;
        __syncthreads();
        if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
        __syncthreads();
        v = part[base];
        for (int i = 1; i < warps; i++) v = combine<MAXIMUM>(v, part[base + i]);
    }
    return v;
}

GLOBAL(KERNEL, MAX_THREADS)(u32 rows, int length, float epsilon, T_OUT* out ROW_PARAMS) {
    release_successor();
    ROW_PREFETCH
    wait_predecessor();
    const int t = threadIdx.x % ROW_THREADS;
    const int units = length / VEC;
    operands ahead[CACHE];
    auto fetch_row = [&](u32 row) {
#pragma unroll
        for (int j = 0; j < CACHE; j++)
            if (FULL || j * ROW_THREADS + t < units) {
                const int col = (j * ROW_THREADS + t) * VEC;
                fetch(ahead[j], row, col, (i64)row * length + col, length ROW_ARGS);
            }
    };
#if FULL && BESIDE_STAYS
    further stay[CACHE];
#pragma unroll
    for (int j = 0; j < CACHE; j++) fetch_beside(stay[j], 0, (j * ROW_THREADS + t) * VEC, 0, length ROW_ARGS);
#endif
    // the row that a thread is given; one beyond the last is computed again, and not stored
    auto own = [&](u32 first) { return min(first + threadIdx.x / ROW_THREADS, rows - 1); };
    u32 first = blockIdx.x * ROWS_PER_BLOCK;
    fetch_row(own(first));
    for (;;) {
        const u32 row = own(first), next = first + gridDim.x * ROWS_PER_BLOCK;
        const bool live = first + threadIdx.x / ROW_THREADS < rows;
        const i64 start = (i64)row * length;
        values held[CACHE];
#pragma unroll
        for (int j = 0; j < CACHE; j++)
            if (FULL || j * ROW_THREADS + t < units) held[j] = before(ahead[j]);
        if (next < rows) fetch_row(own(next));  // on its way meanwhile
        // every pass visits (thread's vectors in registers, then the rest from memory)
#define EACH(...)                                                                                 \
    {                                                                                             \
        _Pragma("unroll") for (int j = 0; j < CACHE; j++) if (FULL || j * ROW_THREADS + t < units) { \
            const int unit = j * ROW_THREADS + t;                                                 \
            values x = held[j];                                                                   \
            __VA_ARGS__                                                                           \
        }                                                                                         \
        if (!FULL) for (int unit = CACHE * ROW_THREADS + t, j = 0; unit < units; unit += ROW_THREADS) { \
            operands again;                                                                       \
            fetch(again, row, unit * VEC, start + unit * VEC, length ROW_ARGS);                   \
            values x = before(again);                                                             \
            __VA_ARGS__                                                                           \
        }                                                                                         \
    }
#define LANES _Pragma("unroll") for (int e = 0; e < VEC; e++)

#if MODE == 0
        REAL sum = 0, square = 0;
        EACH(LANES sum += x.at[e];)
        const REAL mean = reduce_row<false>(sum) / length;
        EACH(LANES { REAL d = x.at[e] - mean; square += d * d; })
        const REAL scale = 1 / root(reduce_row<false>(square) / length + epsilon);
#define RESULT ((x.at[e] - mean) * scale)
#elif MODE == 1
        REAL square = 0;
        EACH(LANES square += x.at[e] * x.at[e];)
        const REAL scale = 1 / root(reduce_row<false>(square) / length + epsilon);
#define RESULT (x.at[e] * scale)
#else
        REAL high = -INFINITY, sum = 0;
        EACH(LANES high = propagating_max(high, x.at[e]);)
        high = reduce_row<true>(high);
#if MODE == 4
        if (high == -INFINITY) high = 0;
#endif
        EACH(LANES sum += exponential(x.at[e] - high);)
        sum = reduce_row<false>(sum);
#if MODE == 2 || MODE == 4
        const REAL scale = MODE == 4 && sum == 0 ? (REAL)0 : 1 / sum;
#define RESULT (exponential(x.at[e] - high) * scale)
#else
        const REAL shift = logarithm(sum);
#define RESULT ((x.at[e] - high) - shift)
#endif
#endif
#if FULL && BESIDE_STAYS
#define BESIDE const further& beside = stay[j];
#else
#define BESIDE further beside; fetch_beside(beside, row, unit * VEC, at, length ROW_ARGS);
#endif
        if (live) EACH(
            const i64 at = start + unit * VEC;
            (void)j;
#ifdef T_SUM
            pack<T_SUM, VEC> s; LANES s.at[e] = narrow<T_SUM>(x.at[e]); store_pack<T_SUM, VEC>(sums + at, s);
#endif
            BESIDE
            values y; LANES y.at[e] = RESULT;
            pack<T_OUT, VEC> p; after(y, beside, p); store_pack<T_OUT, VEC>(out + at, p);
        )
        if (next >= rows) break;
        first = next;
    }
}
