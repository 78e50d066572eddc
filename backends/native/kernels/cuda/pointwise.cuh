// A tree of pointwise operators over strided operands; also every copy that only moves elements.
//
// Macros: VEC elements a thread and step, RANK dimensions (0: all operands lie alike and `shape` is
// not looked at; -1: as many as `shape` says). The last dimension counts units of VEC elements.
GLOBAL(KERNEL, MAX_THREADS)(u32 units, dims shape POINTWISE_PARAMS) {
    release_successor();
    wait_predecessor();
    for (u32 unit = blockIdx.x * MAX_THREADS + threadIdx.x; unit < units; unit += gridDim.x * MAX_THREADS) {
        POINTWISE_PLACES
#if RANK
        u32 rest = unit;
#if RANK > 0
#pragma unroll
        for (int d = RANK - 1; d >= 0; d--) {
#else
        for (int d = shape.rank - 1; d >= 0; d--) {
#endif
            u32 next = d ? divide(rest, shape.magic[d], shape.shift[d]) : 0;
            u32 index = rest - next * shape.size[d];
            POINTWISE_ADVANCE
            rest = next;
        }
#endif
        tree(POINTWISE_ARGS);
    }
}
