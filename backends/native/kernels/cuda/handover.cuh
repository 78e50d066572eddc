// Tensors between memory of the caller and an arena, as the first and the last launch of a graph.
// The caller's addresses stand in a table that the host writes, one row for each launch that is on
// its way; `turn` counts the launches that are done.
// Macros: ROWS of the table; DELIVER (from the arena to the caller) or not.
struct places { u64 at[8]; u64 bytes[8]; };

DEVICE void transfer(char* to, const char* from, u64 bytes) {
    const u64 thread = blockIdx.x * (u64)MAX_THREADS + threadIdx.x, all = gridDim.x * (u64)MAX_THREADS;
    const bool wide = (((u64)to | (u64)from) & 15) == 0;
    const u64 words = wide ? bytes / 16 : 0;
    u64 i = thread;
    for (; i + 3 * all < words; i += 4 * all) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = ((const uint4*)from)[i + j * all];
#pragma unroll
        for (int j = 0; j < 4; j++) ((uint4*)to)[i + j * all] = v[j];
    }
    for (; i < words; i += all) ((uint4*)to)[i] = ((const uint4*)from)[i];
    for (i = words * 16 + thread; i < bytes; i += all) to[i] = from[i];
}

#if DELIVER
// grid.y: the tensors from `first` on
GLOBAL(KERNEL, MAX_THREADS)(const places arena, int first, bool last, const u64* targets, u32* turn) {
    wait_predecessor();
    const int which = blockIdx.y;
    transfer((char*)targets[first + which], (const char*)arena.at[which], arena.bytes[which]);
    if (last && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *turn = *turn + 1;
}
#else
// a row holds `columns` addresses: of the inputs, and from `outputs` on of the outputs
GLOBAL(KERNEL, MAX_THREADS)(const places arena, int first, int outputs, int columns, const u64* table, u64* targets,
                            const u32* turn) {
    release_successor();
    wait_predecessor();
    const volatile u64* row = table + (u64)(*(const volatile u32*)turn % ROWS) * columns;
    const int which = blockIdx.y;
    if (first == 0 && blockIdx.x == 0 && blockIdx.y == 0)
        for (int i = outputs + threadIdx.x; i < columns; i += MAX_THREADS) targets[i - outputs] = row[i];
    if (arena.bytes[which]) transfer((char*)arena.at[which], (const char*)row[first + which], arena.bytes[which]);
}
#endif
