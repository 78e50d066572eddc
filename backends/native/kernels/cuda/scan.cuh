// CumSum and CumProd: a block a line, in chunks of one element a thread.
// Macros: T, ACC, EXCLUSIVE, REVERSE, JOIN(a, b), NEUTRAL.
GLOBAL(KERNEL, MAX_THREADS)(u32 lines, u32 length, u32 inner, const T* x, T* y) {
    __shared__ ACC part[MAX_THREADS];
    release_successor();
    wait_predecessor();
    const int t = threadIdx.x;
    for (u32 line = blockIdx.x; line < lines; line += gridDim.x) {
        const i64 base = (i64)(line / inner) * length * inner + line % inner;
        ACC carry = NEUTRAL;
        for (u32 start = 0; start < length; start += MAX_THREADS) {
            const u32 i = start + t;
            const i64 at = base + (i64)(REVERSE ? length - 1 - i : i) * inner;
            ACC own = NEUTRAL;
            if (i < length) own = (ACC)widen(x[at]);
            part[t] = own;
            for (int d = 1; d < MAX_THREADS; d *= 2) {
                __syncthreads();
                ACC other = t >= d ? part[t - d] : (ACC)NEUTRAL;
                __syncthreads();
                if (t >= d) part[t] = JOIN(part[t], other);
            }
            __syncthreads();
            ACC before = t ? part[t - 1] : (ACC)NEUTRAL;
            if (i < length) y[at] = narrow<T>(JOIN(carry, EXCLUSIVE ? before : part[t]));
            carry = JOIN(carry, part[MAX_THREADS - 1]);
            __syncthreads();
        }
    }
}
