// Two dimensions that trade places, in square tiles through shared memory. The input is contiguous
// along `columns`, the output along `rows`; all other dimensions are in `outer`.
// Macros: T (an unsigned type of the element's size).
#define SIDE 32
GLOBAL(KERNEL, MAX_THREADS)(u32 rows, u32 columns, i64 row_step, i64 column_step, dims outer, strides in, strides out,
                            const T* x, T* y) {
    __shared__ T tile[SIDE][SIDE + 4 / sizeof(T) + (sizeof(T) > 4)];
    release_successor();
    u32 rest = blockIdx.z;
    for (int d = outer.rank - 1; d >= 0; d--) {
        u32 next = divide(rest, outer.magic[d], outer.shift[d]), index = rest - next * outer.size[d];
        x += index * in.step[d];
        y += index * out.step[d];
        rest = next;
    }
    const u32 lane = threadIdx.x & 31, line = threadIdx.x >> 5;
    const u32 column0 = blockIdx.x * SIDE;
    wait_predecessor();
    for (u32 row0 = blockIdx.y * SIDE; row0 < rows; row0 += gridDim.y * SIDE) {
        __syncthreads();
#pragma unroll
        for (u32 i = line; i < SIDE; i += MAX_THREADS / 32)
            if (row0 + i < rows && column0 + lane < columns) tile[i][lane] = x[(row0 + i) * row_step + column0 + lane];
        __syncthreads();
#pragma unroll
        for (u32 i = line; i < SIDE; i += MAX_THREADS / 32)
            if (column0 + i < columns && row0 + lane < rows) y[(column0 + i) * column_step + row0 + lane] = tile[lane][i];
    }
}
