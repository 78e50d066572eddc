// D = epilogue(A B^T) for large problems: A [m, k], B [n, k], k contiguous. Blocks stay for many
// tiles. One warp fetches boxes by descriptor, GROUPS warpgroups multiply 64 rows each; the blocks of a
// cluster take neighbouring rows of tiles and share B, each fetching its part for all.
//
// Macros: T_IN, T_OUT, ACC, MMA, GROUPS (2 or 3), BN, STAGES, CLUSTER, VEC (8), BLOCKS (on a
// multiprocessor: with two, one finishes a tile while the other multiplies), CONSTANT_B (1: B was there
// before the predecessor began), BOXES (1: results are stored by descriptor, in the place of an operand
// that lies like them, which was fetched as slices are), MOMENTS (of rows, as row_moments.cuh has them:
// 1, with boxes: those of D are stored too; 2, with no operand that lies like D: A's rows are to be
// normalised, and sums are divided by the deviation that A's moments tell).
struct wide_shape { int m, n, slices, groups_m, tiles; i64 ldd; };

#define BM (GROUPS * 64)
// warpgroups that multiply, then one that fetches; with two blocks only one warp of it
#define THREADS (GROUPS * 128 + (BLOCKS == 1 ? 128 : 32))
#define BK (128 / (int)sizeof(T_IN))
#define STAGE_BYTES ((BM + BN) * 128)
// a warp's rows on their way out, in vectors of 16 bytes
#define PITCH (BLOCKS == 1 ? 40 : 20)
#define STAGING (16 * PITCH)
#define ROW_BYTES (BLOCKS == 1 ? 128 : 64)
#define PART (ROW_BYTES / (int)sizeof(T_OUT) < 64 ? ROW_BYTES / (int)sizeof(T_OUT) : 64)
#define WIDE (16 / (int)sizeof(T_OUT) < 8 ? 16 / (int)sizeof(T_OUT) : 8)
#define PER_ROW (PART / WIDE)
#define ROW_PITCH (PART + WIDE)

#if BOXES
#define RESULT const __grid_constant__ tensor_map d, const __grid_constant__ tensor_map side
// the results of so many warpgroups lie where a slice would lie, in so many such places
#define PER_STAGE (STAGE_BYTES / (BN * 128))
#define RESULT_STAGES ((GROUPS + PER_STAGE - 1) / PER_STAGE)
#define RESULTS_AT(count, group) \
    (((count) + (group) / PER_STAGE) % STAGES * STAGE_BYTES + (group) % PER_STAGE * (BN * 128))
#else
#define RESULT T_OUT* d
#endif

// registers of those that fetch and those that multiply
#define FEW (GROUPS == 2 ? 40 : 32)
#define MANY (GROUPS == 2 ? 232 : 160)

#if MOMENTS == 1
#define MOMENTS_PARAM , row_moments* moments
#define MOMENTS_ARG , moments
#elif MOMENTS == 2
#define MOMENTS_PARAM , const row_moments* moments, row_norm norm, const float* factor
#else
#define MOMENTS_PARAM
#define MOMENTS_ARG
#endif
#if MOMENTS == 2
#define SCALE_PARAM , const float (&scale)[2]
#define SCALE , scale
#else
#define SCALE_PARAM
#define SCALE
#endif
#if BOXES
// in registers, beside what lies like the results, in whose place they are left for a transfer
DEVICE void finish_tile(ACC (&acc)[BN / 8][4], const column_operands (&columns)[BN / 8], unsigned char* own,
                        int m0, int n0, const wide_shape& g MOMENTS_PARAM EPILOGUE_PARAMS) {
    const int lane = threadIdx.x & 31, first = threadIdx.x / 32 % 4 * 16, row = first + (lane & 15);
#if MOMENTS == 1
    row_moments found[2] = {};
#endif
#pragma unroll
    for (int j = 0; j < BN / 8; j += 2) {
        unsigned char* block = own + j / 8 * 8192;  // 64 columns
        u32 packed[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int half = e & 1, at = j + e / 2, mine = first + half * 8 + (lane >> 2);
            ACC* sum = acc[at] + half * 2;
            pack<T_OUT, 2> pair;
            finish_pair(sum, columns[at], *(const beside_pair*)(block + mine * 128 + (at % 8 ^ mine & 7) * 16 + (lane & 3) * 4),
                        pair EPILOGUE_ARGS);
            packed[e] = *(const u32*)&pair;
#if MOMENTS == 1
            add_moments(found[half], sum[0]);
            add_moments(found[half], sum[1]);
            if (at % 8 == 7) store_moments(moments, found[half], m0 + half * 8 + (lane >> 2), n0 + j / 8 * 64, g.m, g.n);
#endif
        }
        store_matrix4(block + row * 128 + ((j % 8 + (lane >> 4)) ^ (row & 7)) * 16, packed);
    }
}
#elif BESIDE == 0
// in registers; through shared memory only so that whole vectors are stored
DEVICE void finish_tile(ACC (&acc)[BN / 8][4], const column_operands (&columns)[BN / 8], float* own, T_OUT* d,
                        int m0, int n0, const wide_shape& g SCALE_PARAM EPILOGUE_PARAMS) {
    const int lane = threadIdx.x & 31;
    T_OUT* rows = (T_OUT*)own;
#pragma unroll
    for (int part = 0; part < BN / PART; part++) {
#pragma unroll
        for (int j = 0; j < PART / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                ACC* sum = acc[part * (PART / 8) + j] + half * 2;
#if MOMENTS == 2
                sum[0] *= scale[half];
                sum[1] *= scale[half];
#endif
                pack<T_OUT, 2> pair;
                finish_pair(sum, columns[part * (PART / 8) + j], pair EPILOGUE_ARGS);
                store_pack<T_OUT, 2>(rows + ((lane >> 2) + half * 8) * ROW_PITCH + j * 8 + (lane & 3) * 2, pair);
            }
        __syncwarp();
#pragma unroll
        for (int u = lane; u < 16 * PER_ROW; u += 32) {
            const int row = u / PER_ROW, at = u % PER_ROW * WIDE, col = n0 + part * PART + at;
            if (m0 + row < g.m && col < g.n)
                store_pack<T_OUT, WIDE>(d + (i64)(m0 + row) * g.ldd + col, load_pack<T_OUT, WIDE>(rows + row * ROW_PITCH + at));
        }
        __syncwarp();
    }
}
#else
// through shared memory: two rows of eight columns a lane and part of 32 columns
DEVICE void finish_tile(ACC (&acc)[BN / 8][4], float* staging, T_OUT* d, int m0, int n0, const wide_shape& g EPILOGUE_PARAMS) {
    ACC* own = (ACC*)staging;
    const int lane = threadIdx.x & 31, row = lane >> 2, col = (lane & 3) * 8;
    operands held[2];
    auto fetch_part = [&](int part) {
#pragma unroll
        for (int u = 0; u < 2; u++)
            if (m0 + row + u * 8 < g.m && n0 + part * 32 + col < g.n)
                fetch(held[u], (i64)(m0 + row + u * 8) * g.ldd + n0 + part * 32 + col, m0 + row + u * 8 EPILOGUE_ARGS);
    };
    fetch_part(0);
#pragma unroll
    for (int part = 0; part < BN / 32; part++) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                pack<ACC, 2> pair = {{acc[part * 4 + j][half * 2], acc[part * 4 + j][half * 2 + 1]}};
                store_pack<ACC, 2>(own + (row + half * 8) * PITCH + j * 8 + (lane & 3) * 2, pair);
            }
        __syncwarp();
        pack<T_OUT, 8> out[2];
#pragma unroll
        for (int u = 0; u < 2; u++) {
            pack<ACC, 8> sum = load_pack<ACC, 8>(own + (row + u * 8) * PITCH + col);
            epilogue(sum.at, held[u], nullptr, 0, min(n0 + part * 32 + col, g.n - 8), out[u] EPILOGUE_ARGS);
        }
        if (part + 1 < BN / 32) fetch_part(part + 1);
#pragma unroll
        for (int u = 0; u < 2; u++)
            if (m0 + row + u * 8 < g.m && n0 + part * 32 + col < g.n)
                store_pack<T_OUT, 8>(d + (i64)(m0 + row + u * 8) * g.ldd + n0 + part * 32 + col, out[u]);
    }
}
#endif

GLOBAL_MANY(KERNEL, THREADS, BLOCKS)(const __grid_constant__ tensor_map a, const __grid_constant__ tensor_map b, RESULT, wide_shape g MOMENTS_PARAM EPILOGUE_PARAMS) {
    DYNAMIC_SHARED(shared);
    release_successor();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int rank = CLUSTER > 1 ? (int)cluster_rank() : 0;
    const int first = blockIdx.z / CLUSTER, step = gridDim.z / CLUSTER;
    float* staging = (float*)(shared + STAGES * STAGE_BYTES);
    u64* full = (u64*)(staging + (BOXES ? 0 : GROUPS * 4 * STAGING));
    u64* empty = full + STAGES;
#if BOXES
    u64* staged = empty + STAGES;
    u64* stored = staged + GROUPS;
    if (tid < GROUPS) {
        barrier_init(staged + tid, 4);
        barrier_init(stored + tid, 1);
    }
#endif
#if MOMENTS == 2
    // what the rows of a tile are multiplied with, for this tile and the next one
    u64* known = empty + STAGES;
    u64* used = known + 2;
    float* scales = (float*)(used + 2);
    if (tid == 0)
        for (int i = 0; i < 2; i++) {
            barrier_init(known + i, 3);
            barrier_init(used + i, GROUPS * 4);
        }
#endif
    if (tid == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, GROUPS * CLUSTER);
        }
        barrier_publish();
    }
    __syncthreads();
    if (CLUSTER > 1) cluster_sync();

    if (warp >= GROUPS * 4) {
        if (BLOCKS == 1) fewer_registers<FEW>();
        if (tid == GROUPS * 128) {
            prefetch_map(&a);
            prefetch_map(&b);
            // B of the first tile's first slices is on its way before the predecessor has finished
            const u32 early = CONSTANT_B && first < g.tiles ? min(STAGES, g.slices) : 0;
            for (u32 slice = 0; slice < early; slice++) {
                barrier_expect(full + slice, STAGE_BYTES);
                load_box<CLUSTER>(shared + slice * STAGE_BYTES + BM * 128 + rank * (BN / CLUSTER) * 128, &b, slice * BK,
                                  first / g.groups_m * BN + rank * (BN / CLUSTER), full + slice);
            }
            wait_predecessor();
            u32 count = 0;
            for (int t = first; t < g.tiles; t += step) {
                const int m0 = (t % g.groups_m * CLUSTER + rank) * BM, n0 = t / g.groups_m * BN + rank * (BN / CLUSTER);
                for (int slice = 0; slice < g.slices; slice++, count++) {
                    const u32 stage = count % STAGES;
                    unsigned char* tile = shared + stage * STAGE_BYTES;
                    if (count >= early) {
                        barrier_wait(empty + stage, (count / STAGES & 1) ^ 1);
                        barrier_expect(full + stage, STAGE_BYTES);
                    }
                    load_box<1>(tile, &a, slice * BK, m0, full + stage);
                    if (count >= early)
                        load_box<CLUSTER>(tile + BM * 128 + rank * (BN / CLUSTER) * 128, &b, slice * BK, n0, full + stage);
                }
#if BOXES
                for (int part = 0; part < RESULT_STAGES; part++, count++) {
                    const u32 stage = count % STAGES;
                    const int boxes = min(PER_STAGE, GROUPS - part * PER_STAGE) * (BN / 64);
                    barrier_wait(empty + stage, (count / STAGES & 1) ^ 1);
                    barrier_expect(full + stage, boxes * 8192);
                    for (int i = 0; i < boxes; i++)
                        load_box<1>(shared + stage * STAGE_BYTES + i * 8192, &side, t / g.groups_m * BN + i % (BN / 64) * 64,
                                    m0 + (part * PER_STAGE + i / (BN / 64)) * 64, full + stage);
                }
#endif
            }
            // the block stays until all arrivals of others have come
            for (u32 i = 0; i < STAGES; i++, count++) barrier_wait(empty + count % STAGES, (count / STAGES & 1) ^ 1);
        }
#if BOXES || MOMENTS == 2
        // meanwhile the three other warps
        if (warp > GROUPS * 4) {
            const int number = warp - GROUPS * 4 - 1;
            wait_predecessor();
#if MOMENTS == 2
            const float by = *factor;
#endif
            u32 turn = 0;
            for (int t = first; t < g.tiles; t += step, turn++) {
                const int m0 = (t % g.groups_m * CLUSTER + rank) * BM;
#if MOMENTS == 2
                barrier_wait(used + turn % 2, (turn / 2 & 1) ^ 1);
                for (int row = number * 32 + lane; row < BM; row += 96)
                    scales[turn % 2 * BM + row] = by * inverse_deviation(moments, min(m0 + row, g.m - 1), g.m, norm);
                __syncwarp();
                if (lane == 0) barrier_arrive(known + turn % 2);
#endif
#if BOXES
                if (number < GROUPS && lane == 0) {
                    const u32 results = turn * (g.slices + RESULT_STAGES) + g.slices;
                    const unsigned char* own = shared + RESULTS_AT(results, number);
                    const int n0 = t / g.groups_m * BN;
                    barrier_wait(staged + number, turn & 1);
                    for (int part = 0; part < BN / 64; part++)
                        if (n0 + part * 64 < g.n) store_box(&d, n0 + part * 64, m0 + number * 64, own + part * 8192);
                    boxes_commit();
                    boxes_read();
                    barrier_arrive(stored + number);
                    for (u32 i = 0; i < RESULT_STAGES; i++)
                        for (int r = 0; r < CLUSTER; r++) barrier_arrive(empty + (results + i) % STAGES, r);
                }
                __syncwarp();
#endif
            }
        }
#endif
        __syncwarp();
    } else {
        if (BLOCKS == 1) more_registers<MANY>();
        const int group = warp / 4;
        u32 count = 0, turn = 0;
        wait_predecessor();
        for (int t = first; t < g.tiles; t += step) {
            const int m0 = (t % g.groups_m * CLUSTER + rank) * BM + group * 64 + warp % 4 * 16, n0 = t / g.groups_m * BN;
#if BOXES || BESIDE == 0
            column_operands columns[BN / 8];  // on their way while the tile is multiplied
#pragma unroll
            for (int j = 0; j < BN / 8; j++) fetch_columns(columns[j], min(n0 + j * 8 + (lane & 3) * 2, g.n - 2) EPILOGUE_ARGS);
#endif
            ACC acc[BN / 8][4] = {};
#pragma unroll 1
            for (int slice = 0; slice < g.slices; slice++, count++) {
                const u32 stage = count % STAGES;
                const matrix_place tile_a = matrix_at(place_of(shared) + stage * STAGE_BYTES + group * 8192);
                const matrix_place tile_b = matrix_at(place_of(shared) + stage * STAGE_BYTES + BM * 128);
                barrier_wait(full + stage, count / STAGES & 1);
                group_begin();
#pragma unroll
                for (int k = 0; k < 4; k++) MMA(acc, matrix_step(tile_a, k * 32), matrix_step(tile_b, k * 32));
                group_commit();
                group_wait<1>();
                if (slice && (tid & 127) < CLUSTER) barrier_arrive(empty + (count - 1) % STAGES, tid & 127);
            }
            group_wait<0>();
#pragma unroll
            for (int j = 0; j < BN / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) pin(acc[j][e]);
            if ((tid & 127) < CLUSTER) barrier_arrive(empty + (count - 1) % STAGES, tid & 127);

#if MOMENTS == 2
            barrier_wait(known + turn % 2, turn / 2 & 1);
            float scale[2];
#pragma unroll
            for (int half = 0; half < 2; half++) scale[half] = scales[turn % 2 * BM + warp * 16 + (lane >> 2) + half * 8];
            __syncwarp();
            if (lane == 0) barrier_arrive(used + turn % 2);
#endif
#if BOXES
            // all of them: who skips a phase takes the one after it for complete too early
            for (u32 i = count; i < count + RESULT_STAGES; i++) barrier_wait(full + i % STAGES, i / STAGES & 1);
            finish_tile(acc, columns, shared + RESULTS_AT(count, group), m0, n0, g MOMENTS_ARG EPILOGUE_ARGS);
            fence_matrix_units();
            barrier_wait(stored + group, (turn & 1) ^ 1);  // the tile before
            __syncwarp();
            if (lane == 0) barrier_arrive(staged + group);
            count += RESULT_STAGES;
#elif BESIDE == 0
            finish_tile(acc, columns, staging + warp * STAGING, d, m0, n0, g SCALE EPILOGUE_ARGS);
#else
            finish_tile(acc, staging + warp * STAGING, d, m0, n0, g EPILOGUE_ARGS);
#endif
            turn++;
        }
    }
}
