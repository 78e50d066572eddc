// D = epilogue(A B^T) for large problems: A [m, k], B [n, k], k contiguous. Blocks stay for many
// tiles. One warp fetches boxes by descriptor, GROUPS warpgroups multiply 64 rows each; the blocks of a
// cluster take neighbouring rows of tiles and share B, each fetching its part for all.
//
// Macros: T_IN, T_OUT, ACC, MMA, GROUPS (2 or 3), BN, STAGES, CLUSTER, VEC (8), BLOCKS (on a
// multiprocessor: with two, one finishes a tile while the other multiplies), CONSTANT_B (1: B was there
// before the predecessor began).
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

// registers of those that fetch and those that multiply
#define FEW (GROUPS == 2 ? 40 : 32)
#define MANY (GROUPS == 2 ? 232 : 160)

GLOBAL_MANY(KERNEL, THREADS, BLOCKS)(const __grid_constant__ tensor_map a, const __grid_constant__ tensor_map b, T_OUT* d, wide_shape g EPILOGUE_PARAMS) {
    DYNAMIC_SHARED(shared);
    release_successor();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int rank = CLUSTER > 1 ? (int)cluster_rank() : 0;
    const int first = blockIdx.z / CLUSTER, step = gridDim.z / CLUSTER;
    float* staging = (float*)(shared + STAGES * STAGE_BYTES);
    u64* full = (u64*)(staging + GROUPS * 4 * STAGING);
    u64* empty = full + STAGES;
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
            }
        }
        __syncwarp();
    } else {
        if (BLOCKS == 1) more_registers<MANY>();
        const int group = warp / 4;
        float* own = staging + warp * STAGING;
        u32 count = 0;
        wait_predecessor();
        for (int t = first; t < g.tiles; t += step) {
            const int m0 = (t % g.groups_m * CLUSTER + rank) * BM + group * 64 + warp % 4 * 16, n0 = t / g.groups_m * BN;
#if BESIDE == 0
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

#if BESIDE == 0
            // finished in registers; through shared memory only so that whole vectors are stored
            T_OUT* rows = (T_OUT*)own;
#pragma unroll
            for (int part = 0; part < BN / PART; part++) {
#pragma unroll
                for (int j = 0; j < PART / 8; j++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        pack<T_OUT, 2> pair;
                        finish_pair(acc[part * (PART / 8) + j] + half * 2, columns[part * (PART / 8) + j], pair EPILOGUE_ARGS);
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
#else
            // two rows of eight columns a lane and part of 32 columns
            const int row = lane >> 2, col = (lane & 3) * 8;
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
                        store_pack<ACC, 2>((ACC*)own + (row + half * 8) * PITCH + j * 8 + (lane & 3) * 2, pair);
                    }
                __syncwarp();
                pack<T_OUT, 8> out[2];
#pragma unroll
                for (int u = 0; u < 2; u++) {
                    pack<ACC, 8> sum = load_pack<ACC, 8>((ACC*)own + (row + u * 8) * PITCH + col);
                    epilogue(sum.at, held[u], nullptr, 0, min(n0 + part * 32 + col, g.n - 8), out[u] EPILOGUE_ARGS);
                }
                if (part + 1 < BN / 32) fetch_part(part + 1);
#pragma unroll
                for (int u = 0; u < 2; u++)
                    if (m0 + row + u * 8 < g.m && n0 + part * 32 + col < g.n)
                        store_pack<T_OUT, 8>(d + (i64)(m0 + row + u * 8) * g.ldd + n0 + part * 32 + col, out[u]);
            }
#endif
        }
    }
    if (CLUSTER > 1) cluster_leave();  // others may still write to this block's memory
}
