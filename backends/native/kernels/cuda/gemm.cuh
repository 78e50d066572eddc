// D = epilogue(A B^T) on tensor cores: A [m, k] (or the pixels of an NHWC image, gathered as a
// convolution reads them), B [n, k], both with k contiguous; float32 (int32) accumulation.
//
// A block computes BM x BN; k goes through shared memory in slices of 128 bytes, STAGES deep. The
// blocks of a cluster share one tile: each sums its part of k, and they add up over distributed
// shared memory in a fixed order, each finishing its share of the rows.
//
// Macros: T_IN, T_OUT, ACC, MMA, BM, BN, WARPS_M, WARPS_N, STAGES, VEC (columns a store),
// IMAGE (0: matrix, 1: convolution, 2: convolution whose channels fill whole slices).

struct gemm_shape {
    int m, n, k, tiles_m, tiles_n, col_batch;
    i64 lda, ldb, ldd, batch_a, batch_b, batch_d;
    // convolution
    int height, width, channels, pixel, kernel_w;
    int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    u32 q, q_magic, q_shift, p, p_magic, p_shift;
    u32 c_magic, c_shift, s_magic, s_shift;  // division by channels (or slices of them), kernel_w
};

#define THREADS (WARPS_M * WARPS_N * 32)
#define WM (BM / WARPS_M)
#define WN (BN / WARPS_N)
#define MI (WM / 16)
#define NI (WN / 8)
#define PER_CHUNK (16 / (int)sizeof(T_IN))
#define BK (128 / (int)sizeof(T_IN))
#define ROW_STEP (THREADS / 8)
#define A_STEPS (BM / ROW_STEP)
#define B_STEPS ((BN + ROW_STEP - 1) / ROW_STEP)
#define STAGE_BYTES ((BM + BN) * 128)
#define PITCH (BN + 8)

DEVICE unsigned char* swizzled(unsigned char* tile, int row, int chunk) {
    return tile + row * 128 + ((chunk ^ (row & 7)) << 4);
}

GLOBAL(KERNEL, THREADS)(const T_IN* a, const T_IN* __restrict__ b, T_OUT* d, gemm_shape g EPILOGUE_PARAMS) {
    DYNAMIC_SHARED(shared);
    release_successor();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int rank = gridDim.z > 1 ? (int)cluster_rank() : 0, ranks = gridDim.z;
    // tiles in groups of eight rows of tiles, so that neighbours share both operands in L2
    int tile_m, tile_n;
    {
        int wide = 8 * g.tiles_n, group = blockIdx.x / wide, first = group * 8;
        int high = min(g.tiles_m - first, 8), inside = blockIdx.x - group * wide;
        tile_n = inside / high;
        tile_m = first + inside - tile_n * high;
    }
    const int m0 = tile_m * BM, n0 = tile_n * BN, batch = blockIdx.y;
    a += batch * g.batch_a;
    b += batch * g.batch_b;

    const int slices = (g.k + BK - 1) / BK;
    const int begin = (int)((i64)slices * rank / ranks), end = (int)((i64)slices * (rank + 1) / ranks);
    const int chunk = tid & 7, row0 = tid >> 3;

    const T_IN* b_row[B_STEPS];
#pragma unroll
    for (int i = 0; i < B_STEPS; i++) {
        int n = n0 + row0 + i * ROW_STEP;
        b_row[i] = b + (n < g.n ? n : 0) * g.ldb;
    }
    auto load_b = [&](int slice, int stage) {
        unsigned char* tile = shared + stage * STAGE_BYTES + BM * 128;
        int k = slice * BK + chunk * PER_CHUNK;
#pragma unroll
        for (int i = 0; i < B_STEPS; i++) {
            int row = row0 + i * ROW_STEP;
            bool valid = n0 + row < g.n && k < g.k;
            if (BN % ROW_STEP == 0 || row < BN)
                copy_async16(swizzled(tile, row, chunk), valid ? b_row[i] + k : b, valid);
        }
    };

    const T_IN* a_row[A_STEPS];
#if IMAGE
    int a_h[A_STEPS], a_w[A_STEPS];
#endif
#pragma unroll
    for (int i = 0; i < A_STEPS; i++) {
        int m = m0 + row0 + i * ROW_STEP;
        if (m >= g.m) m = g.m;
#if IMAGE
        u32 line = divide(m, g.q_magic, g.q_shift), x = m - line * g.q;
        u32 image = divide(line, g.p_magic, g.p_shift), y = line - image * g.p;
        a_h[i] = m < g.m ? (int)y * g.stride_h - g.pad_h : -(1 << 28);
        a_w[i] = (int)x * g.stride_w - g.pad_w;
        a_row[i] = a + (i64)image * g.height * g.width * g.pixel;
#else
        a_row[i] = m < g.m ? a + m * g.lda : nullptr;
#endif
    }
    auto load_a = [&](int slice, int stage) {
        unsigned char* tile = shared + stage * STAGE_BYTES;
#if IMAGE == 0
        int k = slice * BK + chunk * PER_CHUNK;
#pragma unroll
        for (int i = 0; i < A_STEPS; i++) {
            bool valid = a_row[i] != nullptr && k < g.k;
            copy_async16(swizzled(tile, row0 + i * ROW_STEP, chunk), valid ? a_row[i] + k : a, valid);
        }
#else
#if IMAGE == 2
        int tap = divide(slice, g.c_magic, g.c_shift);
        int c = (slice - tap * (g.channels / BK)) * BK + chunk * PER_CHUNK;
        bool inside = true;
#else
        int k = slice * BK + chunk * PER_CHUNK;
        int tap = divide(k, g.c_magic, g.c_shift), c = k - tap * g.channels;
        bool inside = k < g.k;
#endif
        int r = divide(tap, g.s_magic, g.s_shift), s = tap - r * g.kernel_w;
        r *= g.dilation_h;
        s *= g.dilation_w;
#pragma unroll
        for (int i = 0; i < A_STEPS; i++) {
            int y = a_h[i] + r, x = a_w[i] + s;
            bool valid = inside && (u32)y < (u32)g.height && (u32)x < (u32)g.width;
            i64 at = (i64)(y * g.width + x) * g.pixel + c;
            copy_async16(swizzled(tile, row0 + i * ROW_STEP, chunk), valid ? a_row[i] + at : a, valid);
        }
#endif
    };

    // the weights do not depend on the predecessor: fetch them while it still runs
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++)
        if (begin + s < end) load_b(begin + s, s);
    wait_predecessor();
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (begin + s < end) load_a(begin + s, s);
        copy_commit();
    }

    const int warp_m = warp / WARPS_N * WM, warp_n = warp % WARPS_N * WN;
    ACC acc[MI][NI][4] = {};
    for (int slice = begin, stage = 0, fill = STAGES - 1; slice < end; slice++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (slice + STAGES - 1 < end) {
            load_b(slice + STAGES - 1, fill);
            load_a(slice + STAGES - 1, fill);
        }
        copy_commit();
        unsigned char* tile_a = shared + stage * STAGE_BYTES;
        unsigned char* tile_b = tile_a + BM * 128;
#pragma unroll
        for (int step = 0; step < 4; step++) {
            u32 fa[MI][4], fb[NI / 2][4];
#pragma unroll
            for (int i = 0; i < MI; i++)
                load_matrix4(fa[i], swizzled(tile_a, warp_m + i * 16 + (lane & 15), 2 * step + (lane >> 4)));
#pragma unroll
            for (int j = 0; j < NI / 2; j++)
                load_matrix4(fb[j], swizzled(tile_b, warp_n + j * 16 + (lane & 7) + ((lane >> 4) << 3),
                                             2 * step + ((lane >> 3) & 1)));
#ifdef ROUND_TF32
#pragma unroll
            for (int i = 0; i < MI; i++)
                for (int e = 0; e < 4; e++) fa[i][e] = round_tf32(fa[i][e]);
#pragma unroll
            for (int j = 0; j < NI / 2; j++)
                for (int e = 0; e < 4; e++) fb[j][e] = round_tf32(fb[j][e]);
#endif
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int j = 0; j < NI; j++)
                    MMA(acc[i][j], fa[i], fb[j / 2][(j & 1) * 2], fb[j / 2][(j & 1) * 2 + 1]);
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        fill = fill + 1 == STAGES ? 0 : fill + 1;
    }
    copy_wait<0>();
    __syncthreads();

    // through shared memory, so that rows are stored, and epilogue operands read, in whole vectors
    ACC* tile = (ACC*)shared;
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NI; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = warp_m + i * 16 + half * 8 + (lane >> 2), col = warp_n + j * 8 + (lane & 3) * 2;
                pack<ACC, 2> pair = {{acc[i][j][half * 2], acc[i][j][half * 2 + 1]}};
                store_pack<ACC, 2>(tile + row * PITCH + col, pair);
            }
    if (ranks > 1) cluster_sync();
    else __syncthreads();
    const int first = BM * rank / ranks, rows = BM * (rank + 1) / ranks - first;
    for (int unit = tid; unit < rows * (BN / 8); unit += THREADS) {
        int row = first + unit / (BN / 8), col = unit % (BN / 8) * 8;
        if (m0 + row >= g.m) break;
        if (n0 + col >= g.n) continue;
        ACC sum[8];
        const ACC* mine = tile + row * PITCH + col;
        if (ranks > 1) {
#pragma unroll
            for (int e = 0; e < 8; e++) sum[e] = 0;
            for (int other = 0; other < ranks; other++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float4 v = cluster_load((const float*)mine + half * 4, other);
                    const ACC* part = (const ACC*)&v;
#pragma unroll
                    for (int e = 0; e < 4; e++) sum[half * 4 + e] += part[e];
                }
        } else {
#pragma unroll
            for (int e = 0; e < 8; e++) sum[e] = mine[e];
        }
        i64 at = batch * g.batch_d + (m0 + row) * g.ldd + n0 + col;
#pragma unroll
        for (int e = 0; e < 8; e += VEC) {
            if (n0 + col + e >= g.n) break;
            pack<T_OUT, VEC> out;
            epilogue(sum + e, m0 + row, batch * g.col_batch + n0 + col + e, at + e, out EPILOGUE_ARGS);
            store_pack<T_OUT, VEC>(d + at + e, out);
        }
    }
    if (ranks > 1) cluster_sync();
}
