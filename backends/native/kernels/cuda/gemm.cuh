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
    // division by the tiles of eight rows of tiles, by the rows of tiles left at the end, by ranks
    u32 wide_magic, wide_shift, tail_magic, tail_shift, ranks_magic, ranks_shift;
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
        const u32 group = divide(blockIdx.x, g.wide_magic, g.wide_shift), first = group * 8;
        const u32 inside = blockIdx.x - first * g.tiles_n, high = min(g.tiles_m - (int)first, 8);
        tile_n = high == 8 ? inside >> 3 : divide(inside, g.tail_magic, g.tail_shift);
        tile_m = first + inside - tile_n * high;
    }
    const int m0 = tile_m * BM, n0 = tile_n * BN, batch = blockIdx.y;
    a += batch * g.batch_a;
    b += batch * g.batch_b;

    const int slices = (g.k + BK - 1) / BK;
    const int begin = divide(slices * rank, g.ranks_magic, g.ranks_shift);
    const int end = divide(slices * (rank + 1), g.ranks_magic, g.ranks_shift);
    const int chunk = tid & 7, row0 = tid >> 3;
    // where this thread's first 16 bytes of a stage go; its further rows are multiples of eight away
    const shared_place base = place_of(swizzled(shared, row0, chunk));

    // Slices are loaded in order, so pointers advance: a thread takes the same chunk of several rows.
    // What is not there has no bytes to copy; its address is never read.
    const T_IN* b_now = b + (n0 + row0) * g.ldb + begin * BK + chunk * PER_CHUNK;
    const i64 b_step = ROW_STEP * g.ldb;
    int b_k = g.k - begin * BK - chunk * PER_CHUNK;
    const int b_rows = g.n - n0 - row0;
    auto load_b = [&](shared_place stage) {
#pragma unroll
        for (int i = 0; i < B_STEPS; i++)
            if (BN % ROW_STEP == 0 || row0 + i * ROW_STEP < BN)
                copy_async16(stage + (BM + i * ROW_STEP) * 128, b_now + i * b_step, i * ROW_STEP < b_rows && b_k > 0);
        b_now += BK;
        b_k -= BK;
    };

#if IMAGE == 0
    const T_IN* a_now = a + (m0 + row0) * g.lda + begin * BK + chunk * PER_CHUNK;
    const i64 a_step = ROW_STEP * g.lda;
    int a_k = b_k;
    const int a_rows = g.m - m0 - row0;
    auto load_a = [&](shared_place stage) {
#pragma unroll
        for (int i = 0; i < A_STEPS; i++)
            copy_async16(stage + i * ROW_STEP * 128, a_now + i * a_step, i * ROW_STEP < a_rows && a_k > 0);
        a_now += BK;
        a_k -= BK;
    };
#else
    const T_IN* a_pixel[A_STEPS];  // under the first tap
    int a_h[A_STEPS], a_w[A_STEPS];
#pragma unroll
    for (int i = 0; i < A_STEPS; i++) {
        const int row = m0 + row0 + i * ROW_STEP, m = min(row, g.m - 1);
        const u32 line = divide(m, g.q_magic, g.q_shift), x = m - line * g.q;
        const u32 image = divide(line, g.p_magic, g.p_shift), y = line - image * g.p;
        const int h = (int)y * g.stride_h - g.pad_h, w = (int)x * g.stride_w - g.pad_w;
        a_pixel[i] = a + ((i64)(int)(image * g.height) + h) * g.width * g.pixel + (i64)w * g.pixel;
        a_h[i] = row < g.m ? h : -(1 << 28);
        a_w[i] = w;
    }
#if IMAGE == 2
    // the place of the next slice: tap and channel
    int a_r, a_s, a_column, a_c, a_at;
    {
        const int per_tap = g.channels / BK, tap = divide(begin, g.c_magic, g.c_shift);
        const int line = divide(tap, g.s_magic, g.s_shift);
        a_column = tap - line * g.kernel_w;
        a_c = (begin - tap * per_tap) * BK;
        a_r = line * g.dilation_h;
        a_s = a_column * g.dilation_w;
        a_at = (a_r * g.width + a_s) * g.pixel + a_c + chunk * PER_CHUNK;
    }
    auto load_a = [&](shared_place stage) {
#pragma unroll
        for (int i = 0; i < A_STEPS; i++) {
            const bool valid = (u32)(a_h[i] + a_r) < (u32)g.height && (u32)(a_w[i] + a_s) < (u32)g.width;
            copy_async16(stage + i * ROW_STEP * 128, a_pixel[i] + a_at, valid);
        }
        a_c += BK;
        a_at += BK;
        if (a_c == g.channels) {
            a_c = 0;
            a_s += g.dilation_w;
            a_at += g.dilation_w * g.pixel - g.channels;
            if (++a_column == g.kernel_w) {
                a_column = a_s = 0;
                a_r += g.dilation_h;
                a_at += (g.dilation_h * g.width - g.kernel_w * g.dilation_w) * g.pixel;
            }
        }
    };
#else
    int a_k = begin * BK + chunk * PER_CHUNK;
    auto load_a = [&](shared_place stage) {
        const int tap = divide(a_k, g.c_magic, g.c_shift), c = a_k - tap * g.channels;
        const int line = divide(tap, g.s_magic, g.s_shift);
        const int r = line * g.dilation_h, s = (tap - line * g.kernel_w) * g.dilation_w;
        const int at = (r * g.width + s) * g.pixel + c;
#pragma unroll
        for (int i = 0; i < A_STEPS; i++) {
            const bool valid = a_k < g.k && (u32)(a_h[i] + r) < (u32)g.height && (u32)(a_w[i] + s) < (u32)g.width;
            copy_async16(stage + i * ROW_STEP * 128, a_pixel[i] + at, valid);
        }
        a_k += BK;
    };
#endif
#endif

    // weights do not depend on the predecessor: fetch them while it still runs
    if (!CONSTANT_B) wait_predecessor();
    unsigned char* columns = shared + MAIN_BYTES;
    stage_columns(columns, tid, n0, g.n, batch * g.col_batch EPILOGUE_ARGS);
#pragma unroll 1
    for (int s = 0; s < AHEAD; s++)
        if (begin + s < end) load_b(base + s * STAGE_BYTES);
    if (tile_m == 0 && begin + AHEAD < end) {
        const int from = (begin + AHEAD) * BK, bytes = (min(end * BK, g.k) - from) * (int)sizeof(T_IN);
        for (int row = tid; row < BN; row += THREADS)
            if (n0 + row < g.n) prefetch_l2(b + (n0 + row) * g.ldb + from, bytes);
    }
    wait_predecessor();
#pragma unroll 1
    for (int s = 0; s < AHEAD; s++) {
        if (begin + s < end) load_a(base + s * STAGE_BYTES);
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
    shared_place fill = base + AHEAD * STAGE_BYTES;
    int stage = 0, fill_stage = AHEAD;
#if GROUP
    const matrix_place first_a = matrix_at(place_of(shared) + warp_m / 64 * 8192);
    const matrix_place first_b = matrix_at(place_of(shared) + BM * 128 + warp_n * 128);
    matrix_place tile_a = first_a, tile_b = first_b;
#endif
#pragma unroll 1
    for (int slice = begin; slice < end; slice++) {
        copy_wait<AHEAD - 1>();
#if GROUP
        fence_matrix_units();
#endif
        __syncthreads();
        if (slice + AHEAD < end) {
            load_b(fill);
            load_a(fill);
        }
        copy_commit();
#if GROUP
        group_begin();
#pragma unroll
        for (int step = 0; step < 4; step++)
#pragma unroll
            for (int i = 0; i < MI; i++)
                MMA(acc[i], matrix_step(tile_a, i * 8192 + step * 32), matrix_step(tile_b, step * 32));
        group_commit();
        group_wait<1>();
#else
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
#endif
        fill += STAGE_BYTES;
        if (++fill_stage == STAGES) fill_stage = 0, fill = base;
#if GROUP
        tile_a = matrix_step(tile_a, STAGE_BYTES);
        tile_b = matrix_step(tile_b, STAGE_BYTES);
        if (++stage == STAGES) stage = 0, tile_a = first_a, tile_b = first_b;
#else
        if (++stage == STAGES) stage = 0;
#endif
    }
#if GROUP
    group_wait<0>();
    PIN_SUMS
#endif
    copy_wait<0>();

    // operands that lie like the output, on their way while the blocks wait for each other
    const int first = divide(BM * rank, g.ranks_magic, g.ranks_shift);
    const int rows = divide(BM * (rank + 1), g.ranks_magic, g.ranks_shift) - first;
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
