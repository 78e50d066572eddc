// softmax(scale Q K^T + mask) V by Hopper's matrix units: a warpgroup takes 64 queries of one head,
// scores stay in registers, from where they multiply V. The GROUPS warpgroups of a block share the keys.
//
// Tensors are addressed by batch, head and row strides; the scale is positive. Macros: T (half_t or
// bfloat_t), PACK, HEAD (64 or 128), GROUPS, BC (keys a tile, a multiple of 16), CAUSAL, MASK (0 none, 1
// additive, 2 boolean), MASK_ROWS (0: one row of it serves all queries; 1: aligned pairs of columns lie side
// by side), T_MASK, BLOCKS (on a multiprocessor).

struct attention_shape {
    int queries, keys, group, causal_offset;
    float scale;
    i64 q[3], k[3], v[3], o[3];  // strides of batch, head, row; only those of the output are used here
    i64 mask[4];                 // and of the column
};

#define THREADS (GROUPS * 128)
#define PANELS (HEAD / 64)  // of 64 elements, the width of the swizzle
#define LOG2E 1.4426950408889634f

DEVICE unsigned char* swizzled(unsigned char* tile, int row, int chunk) {
    return tile + row * 128 + ((chunk ^ (row & 7)) << 4);
}

GLOBAL_MANY(KERNEL, THREADS, BLOCKS)(const __grid_constant__ tensor_map q, const __grid_constant__ tensor_map k, const __grid_constant__ tensor_map v, T* o, attention_shape g
#if MASK
    , const T_MASK* mask
#endif
) {
    DYNAMIC_SHARED(shared);
    release_successor();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, group = warp >> 2;
    const int first = blockIdx.x * GROUPS * 64, head = blockIdx.y, batch = blockIdx.z;
    o += batch * g.o[0] + head * g.o[1] + first * g.o[2];
    const int QUERY_BYTES = GROUPS * 64 * HEAD * 2, TILE_BYTES = BC * HEAD * 2;
    unsigned char* tile_q = shared;
    unsigned char* tiles = shared + QUERY_BYTES;  // K and V, of as many tiles as there are, at most two
    u64* there = (u64*)(tiles + (g.keys > BC ? 4 : 2) * TILE_BYTES);  // K, V of the one tile, then of the other
    int last = g.keys;
    if (CAUSAL) last = max(0, min(last, first + GROUPS * 64 + g.causal_offset));
    const int steps = (last + BC - 1) / BC;
    if (tid == 0) {
        prefetch_map(&q);
        prefetch_map(&k);
        prefetch_map(&v);
        for (int i = 0; i < 4; i++) barrier_init(there + i, 1);
        barrier_publish();
    }
    __syncthreads();
    wait_predecessor();
    // rows that are not there become zeros
    auto load = [&](unsigned char* tile, const tensor_map* map, int rows, int row, int from, u64* b) {
#pragma unroll
        for (int p = 0; p < PANELS; p++) load_box(tile + p * rows * 128, map, p * 64, row, from, batch, b);
    };
    auto load_keys = [&](int step) {
        u64* b = there + (step & 1) * 2;
        barrier_expect(b, TILE_BYTES + (step ? 0 : QUERY_BYTES));
        if (!step) load(tile_q, &q, GROUPS * 64, first, head, b);
        load(tiles + (step & 1) * 2 * TILE_BYTES, &k, BC, step * BC, head / g.group, b);
    };
    auto load_values = [&](int step) {
        u64* b = there + (step & 1) * 2 + 1;
        barrier_expect(b, TILE_BYTES);
        load(tiles + ((step & 1) * 2 + 1) * TILE_BYTES, &v, BC, step * BC, head / g.group, b);
    };
    if (tid == 0)
        for (int step = 0; step < min(steps, 2); step++) {
            load_keys(step);
            load_values(step);
        }
#if MASK && !MASK_ROWS
    float* added = (float*)(there + 4);  // in units of log2
    for (int c = tid; c < (g.keys + BC - 1) / BC * BC; c += THREADS) {
        float value = -INFINITY;
        if (c < g.keys) {
            const T_MASK m = mask[batch * g.mask[0] + head * g.mask[1] + c * g.mask[3]];
#if MASK == 1
            value = (float)widen(m) * LOG2E;
#else
            value = m ? 0.0f : -INFINITY;
#endif
        }
        added[c] = value;
    }
    __syncthreads();
#endif

    const float unit = g.scale * LOG2E;
    const int row = first + group * 64 + (warp & 3) * 16 + (lane >> 2);
    float acc[PANELS][8][4];
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
    for (int step = 0; step < steps; step++) {
        unsigned char* tile_k = tiles + (step & 1) * 2 * TILE_BYTES;
        unsigned char* tile_v = tile_k + TILE_BYTES;
        barrier_wait(there + (step & 1) * 2, step >> 1 & 1);
        float s[BC / 8][4];
        group_begin();
#pragma unroll
        for (int p = 0; p < PANELS; p++) {
            const matrix_place from_q = matrix_at(place_of(tile_q) + (p * GROUPS + group) * 64 * 128);
            const matrix_place from_k = matrix_at(place_of(tile_k) + p * BC * 128);
#pragma unroll
            for (int i = 0; i < 4; i++) scores_group(s, matrix_step(from_q, i * 32), matrix_step(from_k, i * 32), p + i > 0);
        }
        group_commit();
#if MASK && MASK_ROWS
        pack<T_MASK, 2> around[2][BC / 8];  // on its way meanwhile
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int key = step * BC + (lane & 3) * 2;
            const T_MASK* line = mask + batch * g.mask[0] + head * g.mask[1] + min(row + h * 8, g.queries - 1) * g.mask[2] + key;
#pragma unroll
            for (int j = 0; j < BC / 8; j++)
                if (key + j * 8 < g.keys) around[h][j] = load_pack<T_MASK, 2>(line + j * 8);
        }
#endif
        group_wait<0>();
#pragma unroll
        for (int j = 0; j < BC / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) pin(s[j][e]);

        // in units of log2; a NaN needs no care here, since it comes back with the exponentials
        float high[2] = {-INFINITY, -INFINITY};
        const int left = g.keys - step * BC, column = (lane & 3) * 2;
        const bool beyond = left < BC && !(MASK && !MASK_ROWS);
        const bool above = CAUSAL && step * BC + BC - 1 > first + group * 64 + g.causal_offset;
#pragma unroll
        for (int j = 0; j < BC / 8; j++) {
#if MASK && MASK_ROWS
#pragma unroll
            for (int e = 0; e < 4; e++)
#if MASK == 1
                s[j][e] = fmaf((float)widen(around[e >> 1][j].at[e & 1]), LOG2E, s[j][e] * unit);
#else
                s[j][e] = around[e >> 1][j].at[e & 1] ? s[j][e] * unit : -INFINITY;
#endif
#elif MASK
            const pack<float, 2> more = load_pack<float, 2>(added + step * BC + j * 8 + column);
#pragma unroll
            for (int e = 0; e < 4; e++)
#if MASK == 1
                s[j][e] = fmaf(s[j][e], unit, more.at[e & 1]);
#else
                s[j][e] = more.at[e & 1] == 0.0f ? s[j][e] * unit : -INFINITY;
#endif
#endif
        }
        if (beyond || above)
#pragma unroll
            for (int j = 0; j < BC / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int at = j * 8 + column + (e & 1);
                    if (at >= left || (CAUSAL && step * BC + at > row + (e >> 1) * 8 + g.causal_offset)) s[j][e] = -INFINITY;
                }
#pragma unroll
        for (int j = 0; j < BC / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) high[e >> 1] = fmaxf(high[e >> 1], s[j][e]);
        float base[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffffu, high[h], 1));
            high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffffu, high[h], 2));
#if !MASK
            high[h] *= unit;
#endif
            high[h] = fmaxf(high[h], top[h]);
            base[h] = high[h] == -INFINITY ? 0.0f : high[h];
            const float shrink = exp2_fast(top[h] - base[h]);
            top[h] = high[h];
            total[h] *= shrink;
            if (step)
#pragma unroll
                for (int p = 0; p < PANELS; p++)
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        acc[p][i][h * 2] *= shrink;
                        acc[p][i][h * 2 + 1] *= shrink;
                    }
        }
        u32 weights[BC / 16][4];
#pragma unroll
        for (int j = 0; j < BC / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
#if MASK
                s[j][e] = exp2_fast(s[j][e] - base[e >> 1]);
#else
                s[j][e] = exp2_fast(fmaf(s[j][e], unit, -base[e >> 1]));
#endif
                total[e >> 1] += s[j][e];
            }
            weights[j / 2][j % 2 * 2] = PACK(s[j][0], s[j][1]);
            weights[j / 2][j % 2 * 2 + 1] = PACK(s[j][2], s[j][3]);
        }

        barrier_wait(there + (step & 1) * 2 + 1, step >> 1 & 1);
#pragma unroll
        for (int p = 0; p < PANELS; p++)
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) pin(acc[p][i][e]);
        group_begin();
#pragma unroll
        for (int p = 0; p < PANELS; p++) {
            const matrix_place from_v = matrix_at(place_of(tile_v) + p * BC * 128);
#pragma unroll
            for (int j = 0; j < BC / 16; j++) values_group(acc[p], weights[j], matrix_step(from_v, j * 2048), step + j > 0);
        }
        group_commit();
        group_wait<0>();
#pragma unroll
        for (int p = 0; p < PANELS; p++)
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) pin(acc[p][i][e]);
        if (step + 2 < steps) {
            __syncthreads();
            if (tid == 0) {
                load_keys(step + 2);
                load_values(step + 2);
            }
        }
    }
    if (!steps)
#pragma unroll
        for (int p = 0; p < PANELS; p++)
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) acc[p][i][e] = 0;

    group_sync(group + 1);  // through the queries' place, so that whole vectors are stored
#pragma unroll
    for (int h = 0; h < 2; h++) {
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
        const float scale = 1.0f / total[h];
        const int inside = (warp & 3) * 16 + (lane >> 2) + h * 8;
#pragma unroll
        for (int p = 0; p < PANELS; p++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                *(u32*)(swizzled(tile_q + (p * GROUPS + group) * 64 * 128, inside, i) + (lane & 3) * 4) =
                    PACK(acc[p][i][h * 2] * scale, acc[p][i][h * 2 + 1] * scale);
    }
    __syncwarp();
#pragma unroll
    for (int p = 0; p < PANELS; p++)
#pragma unroll
        for (int u = 0; u < 4; u++) {
            const int inside = (warp & 3) * 16 + u * 4 + (lane >> 3), chunk = lane & 7, at = group * 64 + inside;
            if (first + at < g.queries)
                store_pack<T, 8>(o + at * g.o[2] + p * 64 + chunk * 8,
                                 load_pack<T, 8>((T*)swizzled(tile_q + (p * GROUPS + group) * 64 * 128, inside, chunk)));
        }
}
