// Gather, GatherElements, GatherND: MODE 0, 1, 2. VEC elements a thread where slices allow it.
// Macros: T (an unsigned type of the element's size), T_INDEX, MODE, VEC.
struct gather_shape {
    dims out;          // GATHER: outer, indices, inner units; ELEMENTS: the result; ND: batch, rows, slice units
    strides x;         // of the data, in elements; ND: of the indexed dimensions
    u32 size[8];       // of the data along the indexed dimensions
    int axis, depth;   // ELEMENTS: the axis; ND: length of an index
};
// an index outside reads the nearest element: a wrong one must not end the process
DEVICE i64 wrapped(i64 index, u32 size) {
    if (index < 0) index += size;
    return index < 0 ? 0 : index < (i64)size ? index : (i64)size - 1;
}

GLOBAL(KERNEL, MAX_THREADS)(u32 units, gather_shape g, i64 batch_step, const T* x, const T_INDEX* indices, T* y) {
    release_successor();
    wait_predecessor();
    for (u32 unit = blockIdx.x * MAX_THREADS + threadIdx.x; unit < units; unit += gridDim.x * MAX_THREADS) {
        i64 from = 0;
        u32 rest = unit;
#if MODE == 1
        for (int d = g.out.rank - 1; d >= 0; d--) {
            u32 next = divide(rest, g.out.magic[d], g.out.shift[d]);
            from += (d == g.axis ? wrapped(indices[unit], g.size[0]) : (i64)(rest - next * g.out.size[d])) * g.x.step[d];
            rest = next;
        }
#else
        u32 next = divide(rest, g.out.magic[2], g.out.shift[2]), inner = rest - next * g.out.size[2];
        u32 batch = divide(next, g.out.magic[1], g.out.shift[1]), row = next - batch * g.out.size[1];
#if MODE == 0
        from = (batch * (i64)g.size[0] + wrapped(indices[row], g.size[0])) * g.out.size[2] * VEC;
#else
        from = batch * batch_step;
        for (int d = 0; d < g.depth; d++)
            from += wrapped(indices[(i64)next * g.depth + d], g.size[d]) * g.x.step[d];
#endif
        from += (i64)inner * VEC;
#endif
        store_pack<T, VEC>(y + (i64)unit * VEC, load_pack<T, VEC>(x + from));
    }
}
