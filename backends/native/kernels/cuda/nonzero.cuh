// NonZero in three launches: how many in each block, where each block starts, the positions.
// PHASE 0, 1, 2; `positions` holds the flat index of each element that is not zero, in order.
// Macros: T, PHASE.
GLOBAL(KERNEL, MAX_THREADS)(u32 count, u32 blocks, const T* x, u32* starts, i64* positions, i64* total) {
    __shared__ u32 part[MAX_THREADS];
    release_successor();
    wait_predecessor();
    const u32 t = threadIdx.x;
    u32 carry = 0;
    const u32 rounds = PHASE == 1 ? (blocks + MAX_THREADS - 1) / MAX_THREADS : 1;
    for (u32 round = 0; round < rounds; round++) {
        const u32 i = (PHASE == 1 ? round : blockIdx.x) * MAX_THREADS + t;
        u32 own;
        if (PHASE == 1) own = i < blocks ? starts[i] : 0;
        else own = i < count && widen(x[i]) != 0;
        part[t] = own;
        for (int d = 1; d < MAX_THREADS; d *= 2) {
            __syncthreads();
            u32 other = t >= d ? part[t - d] : 0;
            __syncthreads();
            if (t >= d) part[t] += other;
        }
        __syncthreads();
#if PHASE == 0
        if (t == 0) starts[blockIdx.x] = part[MAX_THREADS - 1];
#elif PHASE == 1
        if (i < blocks) starts[i] = carry + part[t] - own;
        carry += part[MAX_THREADS - 1];
        if (t == 0 && round == rounds - 1) *total = carry;
        __syncthreads();
#else
        if (own) positions[starts[blockIdx.x] + part[t] - 1] = i;
#endif
    }
}
