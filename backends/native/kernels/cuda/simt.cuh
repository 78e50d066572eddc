// D = epilogue(A B) on ordinary arithmetic, any strides, any batch broadcast: true float32, float64,
// integers, and every shape that the matrix units do not take. Blocks of 64 x 64, 4 x 4 a thread.
// Macros: T_A, T_B, T_OUT, ACC, VEC (1).
struct simt_shape {
    int m, n, k;
    dims batch;
    strides batch_a, batch_b, batch_d;
    i64 a_row, a_col, b_row, b_col, d_row;
};
#define SIDE 64
#define DEEP 16
GLOBAL(KERNEL, 256)(const T_A* a, const T_B* b, T_OUT* d, simt_shape g EPILOGUE_PARAMS) {
    __shared__ ACC left[DEEP][SIDE + 4], right[DEEP][SIDE + 4];
    release_successor();
    u32 rest = blockIdx.z;
    i64 batch = 0;
    for (int i = g.batch.rank - 1; i >= 0; i--) {
        u32 next = divide(rest, g.batch.magic[i], g.batch.shift[i]), index = rest - next * g.batch.size[i];
        a += index * g.batch_a.step[i];
        b += index * g.batch_b.step[i];
        batch += index * g.batch_d.step[i];
        rest = next;
    }
    const int tid = threadIdx.x, row = tid / 16 * 4, col = tid % 16 * 4;
    const int m0 = blockIdx.y * SIDE, n0 = blockIdx.x * SIDE;
    wait_predecessor();
    ACC sum[4][4] = {};
    for (int k0 = 0; k0 < g.k; k0 += DEEP) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // neighbouring threads read along the operand's contiguous side
            int e = tid + i * 256;
            int am = g.a_col == 1 ? e / DEEP : e % SIDE, ak = g.a_col == 1 ? e % DEEP : e / SIDE;
            int bn = g.b_col == 1 ? e % SIDE : e / DEEP, bk = g.b_col == 1 ? e / SIDE : e % DEEP;
            ACC va = 0, vb = 0;
            if (m0 + am < g.m && k0 + ak < g.k) va = (ACC)widen(a[(m0 + am) * g.a_row + (k0 + ak) * g.a_col]);
            if (n0 + bn < g.n && k0 + bk < g.k) vb = (ACC)widen(b[(k0 + bk) * g.b_row + (n0 + bn) * g.b_col]);
            left[ak][am] = va;
            right[bk][bn] = vb;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEEP; k++) {
            ACC x[4], y[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[i] = left[k][row + i];
                y[i] = right[k][col + i];
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] += x[i] * y[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (m0 + row + i >= g.m || n0 + col + j >= g.n) continue;
            const i64 at = batch + (m0 + row + i) * g.d_row + n0 + col + j;
            operands beside;
            fetch(beside, at, m0 + row + i EPILOGUE_ARGS);
            pack<T_OUT, 1> out;
            epilogue(&sum[i][j], beside, nullptr, 0, n0 + col + j, out EPILOGUE_ARGS);
            d[at] = out.at[0];
        }
}
