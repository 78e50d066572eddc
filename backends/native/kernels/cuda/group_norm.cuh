// GroupNormalization and InstanceNormalization: a block a (image, group), two passes over it.
// Macros: T, T_OUT, T_SCALE, REAL, CHANNELS_LAST; AFTER(value) is the operator behind the norm.
struct group_shape { int channels, group, pixels; float epsilon; };
DEVICE REAL root(REAL v) { return sizeof(REAL) == 8 ? (REAL)sqrt((double)v) : (REAL)sqrtf((float)v); }
DEVICE REAL block_sum(REAL v) {
    __shared__ REAL part[MAX_THREADS];
    __syncthreads();
    part[threadIdx.x] = v;
    for (int half = MAX_THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    __syncthreads();
    return part[0];
}
GLOBAL(KERNEL, MAX_THREADS)(group_shape g, const T* x, const T_SCALE* scale, const T_SCALE* bias, T_OUT* y) {
    release_successor();
    wait_predecessor();
    const int first = blockIdx.x * g.group, count = g.group * g.pixels;
    const i64 base = (i64)blockIdx.y * g.channels * g.pixels;
    auto place = [&](int i) {
        return CHANNELS_LAST ? base + (i64)(i / g.group) * g.channels + first + i % g.group : base + (i64)first * g.pixels + i;
    };
    REAL sum = 0, square = 0;
    for (int i = threadIdx.x; i < count; i += MAX_THREADS) sum += (REAL)widen(x[place(i)]);
    const REAL mean = block_sum(sum) / count;
    for (int i = threadIdx.x; i < count; i += MAX_THREADS) {
        REAL d = (REAL)widen(x[place(i)]) - mean;
        square += d * d;
    }
    const REAL factor = 1 / root(block_sum(square) / count + g.epsilon);
    for (int i = threadIdx.x; i < count; i += MAX_THREADS) {
        const int c = first + (CHANNELS_LAST ? i % g.group : i / g.pixels);
        const i64 at = place(i);
        REAL v = ((REAL)widen(x[at]) - mean) * factor * (REAL)widen(scale[c]) + (REAL)widen(bias[c]);
        y[at] = narrow<T_OUT>(AFTER(v));
    }
}
