// ScatterElements (MODE 1) and ScatterND (MODE 2) into a copy of the data, always in order: updates
// that meet are applied by one thread, so results do not depend on scheduling.
// Macros: T, T_INDEX, MODE, REDUCTION(a, b) (the stored value from the present one and the update).
struct scatter_shape {
    dims lines;        // ELEMENTS: the updates without the axis; ND: slice elements
    strides y, updates;
    u32 size[8];
    int depth;
    u32 count;         // ELEMENTS: updates along the axis; ND: index rows
    i64 axis_step, update_step;
};
// -1 for an index outside, whose update is dropped: a wrong one must not end the process
DEVICE i64 wrapped(i64 index, u32 size) {
    if (index < 0) index += size;
    return index < 0 || index >= (i64)size ? -1 : index;
}

GLOBAL(KERNEL, MAX_THREADS)(u32 units, scatter_shape g, const T_INDEX* indices, const T* updates, T* y) {
    release_successor();
    wait_predecessor();
    for (u32 unit = blockIdx.x * MAX_THREADS + threadIdx.x; unit < units; unit += gridDim.x * MAX_THREADS) {
#if MODE == 1
        i64 to = 0, from = 0;
        u32 rest = unit;
        for (int d = g.lines.rank - 1; d >= 0; d--) {
            u32 next = divide(rest, g.lines.magic[d], g.lines.shift[d]), index = rest - next * g.lines.size[d];
            to += index * g.y.step[d];
            from += index * g.updates.step[d];
            rest = next;
        }
        for (u32 i = 0; i < g.count; i++, from += g.update_step) {
            const i64 index = wrapped(indices[from], g.size[0]);
            if (index < 0) continue;
            T* at = y + to + index * g.axis_step;
            *at = REDUCTION(*at, updates[from]);
        }
#else
        for (u32 i = 0; i < g.count; i++) {
            i64 to = unit;
            bool inside = true;
            for (int d = 0; d < g.depth; d++) {
                const i64 index = wrapped(indices[(i64)i * g.depth + d], g.size[d]);
                inside &= index >= 0;
                to += index * g.y.step[d];
            }
            if (inside) y[to] = REDUCTION(y[to], updates[(i64)i * units + unit]);
        }
#endif
    }
}
