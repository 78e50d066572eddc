// Moments of rows that lie in memory; a warp a row. Macros: T_IN.
GLOBAL(KERNEL, MAX_THREADS)(const T_IN* x, row_moments* moments, int rows, int columns) {
    release_successor();
    wait_predecessor();
    const int lane = threadIdx.x & 31, row = blockIdx.x * (MAX_THREADS / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    const T_IN* from = x + (i64)row * columns;
    for (int start = 0; start < columns; start += 256) {
        const int column = start + lane * 8;
        row_moments found = {};
        if (column < columns) {
            const pack<T_IN, 8> v = load_pack<T_IN, 8>(from + column);
            float wide[8];
#pragma unroll
            for (int i = 0; i < 8; i++) wide[i] = widen(v.at[i]);
            add_moments(found, wide);
        }
        found.sum += __shfl_xor_sync(0xffffffffu, found.sum, 4);
        found.square += __shfl_xor_sync(0xffffffffu, found.square, 4);
        store_moments(moments, found, row, column, rows, lane & 4 ? 0 : columns);
    }
}
