// D = epilogue(A B^T) on tensor cores: A [m, k] (or the pixels of an NHWC image, gathered as a
// convolution reads them), B [n, k], both with k contiguous; float32 (int32) accumulation.
//
// A block computes BM x BN; k goes through shared memory in slices of 128 bytes, STAGES deep. The
// blocks of a cluster share one tile: each sums its part of k, and they add up over distributed
// shared memory in a fixed order, each finishing its share of the rows.
//
// Macros: T_IN, T_OUT, ACC, MMA, BM, BN, WARPS_M, WARPS_N, STAGES, VEC (columns a store),
// IMAGE (0: matrix, 1: convolution, 2: convolution whose channels fill whole slices), GROUP (1: the
// four warps of a warpgroup multiply 64 rows straight from shared memory; WARPS_M is a multiple of 4),
// CONSTANT_B (1: B and the column operands were there before the predecessor began).

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
#define ROW_BLOCK (GROUP ? 64 : 16)
#define PER_CHUNK (16 / (int)sizeof(T_IN))
#define BK (128 / (int)sizeof(T_IN))
#define ROW_STEP (THREADS / 8)
#define A_STEPS (BM / ROW_STEP)
#define B_STEPS ((BN + ROW_STEP - 1) / ROW_STEP)
#define STAGE_BYTES ((BM + BN) * 128)
#define PITCH (BN + 8)
#define UNITS ((BM * BN / 8 + THREADS - 1) / THREADS)
#define HELD (BESIDE == 0 ? 1 : UNITS < 4 ? UNITS : 4)
// slices on their way; warpgroups are still reading the one before
#define AHEAD (GROUP ? STAGES - 2 : STAGES - 1)
#define MAIN_BYTES (STAGES * STAGE_BYTES > BM * PITCH * 4 ? STAGES * STAGE_BYTES : BM * PITCH * 4)

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

    // weights do not depend on the predecessor: fetch them while it still runs
    if (!CONSTANT_B) wait_predecessor();
    unsigned char* columns = shared + MAIN_BYTES;
    stage_columns(columns, tid, n0, g.n, batch * g.col_batch EPILOGUE_ARGS);
#pragma unroll 1
    for (int s = 0; s < AHEAD; s++)
        if (begin + s < end) load_b(begin + s, s);
    if (tile_m == 0 && begin + AHEAD < end) {
        const int from = (begin + AHEAD) * BK, bytes = (min(end * BK, g.k) - from) * (int)sizeof(T_IN);
        for (int row = tid; row < BN; row += THREADS)
            if (n0 + row < g.n) prefetch_l2(b + (n0 + row) * g.ldb + from, bytes);
    }
    wait_predecessor();
#pragma unroll 1
    for (int s = 0; s < AHEAD; s++) {
        if (begin + s < end) load_a(begin + s, s);
        copy_commit();
    }

#if GROUP
    const int warp_m = warp / 4 / WARPS_N * MI * 64 + warp % 4 * 16, warp_n = warp / 4 % WARPS_N * WN;
#else
    const int warp_m = warp / WARPS_N * WM, warp_n = warp % WARPS_N * WN;
#endif
    ACC acc[MI][NI][4] = {};
#define PIN_SUMS                                                                                  \
    _Pragma("unroll") for (int i = 0; i < MI; i++) _Pragma("unroll") for (int j = 0; j < NI; j++) \
        _Pragma("unroll") for (int e = 0; e < 4; e++) pin(acc[i][j][e]);
#pragma unroll 1
    for (int slice = begin, stage = 0, fill = AHEAD; slice < end; slice++) {
        copy_wait<AHEAD - 1>();
#if GROUP
        fence_matrix_units();
#endif
        __syncthreads();
        if (slice + AHEAD < end) {
            load_b(slice + AHEAD, fill);
            load_a(slice + AHEAD, fill);
        }
        copy_commit();
        unsigned char* tile_a = shared + stage * STAGE_BYTES;
        unsigned char* tile_b = tile_a + BM * 128;
#if GROUP
        group_begin();
#pragma unroll
        for (int step = 0; step < 4; step++)
#pragma unroll
            for (int i = 0; i < MI; i++)
                MMA(acc[i], tile_a + (warp_m / 64 + i) * 8192 + step * 32, tile_b + warp_n * 128 + step * 32);
        group_commit();
        group_wait<1>();
#else
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
#endif
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        fill = fill + 1 == STAGES ? 0 : fill + 1;
    }
#if GROUP
    group_wait<0>();
    PIN_SUMS
#endif
    copy_wait<0>();

    // operands that lie like the output, on their way while the blocks wait for each other
    const int first = BM * rank / ranks, rows = BM * (rank + 1) / ranks - first;
    operands held[HELD];
    auto fetch_units = [&](int base) {
#pragma unroll
        for (int u = 0; u < HELD; u++) {
            int unit = tid + (base + u) * THREADS, row = m0 + first + unit / (BN / 8), col = n0 + unit % (BN / 8) * 8;
            if (VEC == 8 && unit < rows * (BN / 8) && row < g.m && col < g.n)
                fetch(held[u], batch * g.batch_d + row * g.ldd + col, row EPILOGUE_ARGS);
        }
    };
    fetch_units(0);
    __syncthreads();

    // through shared memory, so that rows are stored, and epilogue operands read, in whole vectors
    ACC* tile = (ACC*)shared;
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NI; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = warp_m + i * ROW_BLOCK + half * 8 + (lane >> 2), col = warp_n + j * 8 + (lane & 3) * 2;
                pack<ACC, 2> pair = {{acc[i][j][half * 2], acc[i][j][half * 2 + 1]}};
                store_pack<ACC, 2>(tile + row * PITCH + col, pair);
            }
    if (ranks > 1) cluster_sync();
    else __syncthreads();
    auto finish_unit = [&](int unit, operands& beside) {
        int row = first + unit / (BN / 8), col = unit % (BN / 8) * 8;
        if (unit >= rows * (BN / 8) || m0 + row >= g.m || n0 + col >= g.n) return;
        ACC sum[8];
        const ACC* mine = tile + row * PITCH + col;
        if (ranks > 1) {
#pragma unroll
            for (int e = 0; e < 8; e++) sum[e] = 0;
#pragma unroll 1
            for (int from = 0; from < ranks; from += 4) {
                float4 parts[4][2];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (from + i < ranks) {
                        parts[i][0] = cluster_load((const float*)mine, from + i);
                        parts[i][1] = cluster_load((const float*)mine + 4, from + i);
                    }
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (from + i < ranks)
#pragma unroll
                        for (int e = 0; e < 8; e++) sum[e] += ((const ACC*)&parts[i][e / 4])[e % 4];
            }
        } else {
#pragma unroll
            for (int e = 0; e < 8; e++) sum[e] = mine[e];
        }
        const i64 at = batch * g.batch_d + (m0 + row) * g.ldd + n0 + col;
#pragma unroll
        for (int e = 0; e < 8; e += VEC) {
            if (n0 + col + e >= g.n) break;
            if (VEC < 8) fetch(beside, at + e, m0 + row EPILOGUE_ARGS);
            pack<T_OUT, VEC> out;
            epilogue(sum + e, beside, columns, col + e, batch * g.col_batch + n0 + col + e, out EPILOGUE_ARGS);
            store_pack<T_OUT, VEC>(d + at + e, out);
        }
    };
#pragma unroll 1
    for (int base = 0; base < UNITS; base += HELD) {
#pragma unroll
        for (int u = 0; u < HELD; u++) finish_unit(tid + (base + u) * THREADS, held[u]);
        if (base + HELD < UNITS) fetch_units(base + HELD);
    }
    if (ranks > 1) cluster_leave();  // others may still read this block's sums
}
