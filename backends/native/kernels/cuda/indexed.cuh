// A thread an element of `shape`: what it computes is generated. The body sees the element's flat
// number `unit` and its index `at` along each dimension.
//
// Macros: RANK, INDEXED_PARAMS, INDEXED_BODY.
GLOBAL(KERNEL, MAX_THREADS)(u32 units, dims shape INDEXED_PARAMS) {
    release_successor();
    wait_predecessor();
    for (u32 unit = blockIdx.x * MAX_THREADS + threadIdx.x; unit < units; unit += gridDim.x * MAX_THREADS) {
        u32 at[RANK > 0 ? RANK : 1], rest = unit;
#pragma unroll
        for (int d = RANK - 1; d >= 0; d--) {
            const u32 next = d ? divide(rest, shape.magic[d], shape.shift[d]) : 0;
            at[d] = rest - next * shape.size[d];
            rest = next;
        }
        INDEXED_BODY(at)
    }
}
