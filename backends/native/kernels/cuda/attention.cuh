// softmax(scale Q K^T + mask) V without storing the scores; float32 softmax, one pass over the keys.
//
// A block takes ROW_WARPS * 16 queries of one head; the KEY_WARPS of a row group share every tile of
// keys and combine at the end. All tensors are addressed by batch, head and row strides, so packed
// QKV needs no transposes. The scale is positive. Macros: T (half_t or bfloat_t), PACK, MMA, HEAD (size of a head),
// ROW_WARPS, KEY_WARPS, BC (keys a tile), CAUSAL, MASK (0 none, 1 additive, 2 boolean), T_MASK,
// BLOCKS (on a multiprocessor), MASK_ROWS (0: one row of the mask serves all queries), MASK_PAIRS (1: its columns lie side by side in
// aligned pairs).

struct attention_shape {
    int queries, keys, group, causal_offset;
    float scale;
    i64 q[3], k[3], v[3], o[3];  // strides of batch, head, row
    i64 mask[4];                 // and of the column
};

#define THREADS (ROW_WARPS * KEY_WARPS * 32)
#define PITCH (HEAD + 8)
#define CHUNKS (HEAD / 8)
#define PART (BC / KEY_WARPS)
#define LOG2E 1.4426950408889634f
#define BATCH 4

// rows that are not there become zeros
template <int ROWS> DEVICE void load_tile(T* tile, const T* from, i64 row_stride, int valid) {
    if (THREADS % CHUNKS == 0) {
        constexpr int at_once = THREADS / CHUNKS;
        const int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
        const i64 step = at_once * row_stride;
        from += row * row_stride + chunk * 8;
        tile += row * PITCH + chunk * 8;
        valid -= row;
#pragma unroll
        for (int r = 0; r < ROWS; r += at_once) {
            if (ROWS % at_once == 0 || row + r < ROWS) copy_async16(tile + r * PITCH, from, r < valid);
            from += step;
        }
    } else {
        for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
            int row = i / CHUNKS, chunk = i % CHUNKS;
            copy_async16(tile + row * PITCH + chunk * 8, from + row * row_stride + chunk * 8, row < valid);
        }
    }
}

GLOBAL_MANY(KERNEL, THREADS, BLOCKS)(const T* q, const T* k, const T* v, T* o, attention_shape g
#if MASK
    , const T_MASK* mask
#endif
) {
    DYNAMIC_SHARED(shared);
    release_successor();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int row_warp = warp / KEY_WARPS, key_warp = warp % KEY_WARPS;
    const int rows = ROW_WARPS * 16, first = blockIdx.x * rows, head = blockIdx.y, batch = blockIdx.z;
    q += batch * g.q[0] + head * g.q[1] + first * g.q[2];
    k += batch * g.k[0] + head / g.group * g.k[1];
    v += batch * g.v[0] + head / g.group * g.v[1];
    o += batch * g.o[0] + head * g.o[1] + first * g.o[2];
    T* tile_q = (T*)shared;
    T* tiles = tile_q + rows * PITCH;  // K and V, twice

    int last = g.keys;
    if (CAUSAL) last = min(last, first + rows + g.causal_offset);
    const int steps = max(0, (last + BC - 1) / BC);
    wait_predecessor();
    load_tile<ROW_WARPS * 16>(tile_q, q, g.q[2], g.queries - first);
    if (steps) load_tile<BC>(tiles, k, g.k[2], g.keys);
    copy_commit();
    if (steps) load_tile<BC>(tiles + BC * PITCH, v, g.v[2], g.keys);
    copy_commit();

    u32 fq[HEAD / 16][4];
    float acc[HEAD / 8][4] = {};
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
    for (int step = 0; step < steps; step++) {
        T* tile_k = tiles + (step & 1) * 2 * BC * PITCH;
        T* tile_v = tile_k + BC * PITCH;
        const int key0 = key_warp * PART;
#if MASK
        // on its way while the keys arrive
        T_MASK around[MASK_ROWS ? 2 : 1][PART / 8][2];
#pragma unroll
        for (int h = 0; h < (MASK_ROWS ? 2 : 1); h++) {
            const int row = MASK_ROWS ? min(first + row_warp * 16 + (lane >> 2) + h * 8, g.queries - 1) : 0;
            const int key = step * BC + key0 + (lane & 3) * 2, left = g.keys - key;
            const T_MASK* line = mask + batch * g.mask[0] + head * g.mask[1] + row * g.mask[2] + key * g.mask[3];
#pragma unroll
            for (int j = 0; j < PART / 8; j++) {
#if MASK_PAIRS
                if (j * 8 < left) *(pack<T_MASK, 2>*)around[h][j] = load_pack<T_MASK, 2>(line + j * 8);
#else
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (j * 8 + e < left) around[h][j][e] = line[(j * 8 + e) * g.mask[3]];
#endif
            }
        }
#endif
        copy_wait<1>();
        __syncthreads();
        if (step == 0)
#pragma unroll
            for (int i = 0; i < HEAD / 16; i++)
                load_matrix4(fq[i], tile_q + (row_warp * 16 + (lane & 15)) * PITCH + (2 * i + (lane >> 4)) * 8);
        if (step + 1 < steps)
            load_tile<BC>(tiles + ((step + 1) & 1) * 2 * BC * PITCH, k + (i64)(step + 1) * BC * g.k[2], g.k[2],
                          g.keys - (step + 1) * BC);
        copy_commit();

        float s[PART / 8][4] = {};
#pragma unroll
        for (int i = 0; i < HEAD / 16; i++)
#pragma unroll
            for (int j0 = 0; j0 < PART / 16; j0 += BATCH) {
                u32 fk[BATCH][4];  // several on their way before the first is used
#pragma unroll
                for (int j = 0; j < BATCH; j++)
                    if (j0 + j < PART / 16)
                        load_matrix4(fk[j], tile_k + (key0 + (j0 + j) * 16 + (lane & 7) + ((lane >> 4) << 3)) * PITCH +
                                                (2 * i + ((lane >> 3) & 1)) * 8);
#pragma unroll
                for (int j = 0; j < BATCH; j++)
                    if (j0 + j < PART / 16) {
                        MMA(s[2 * (j0 + j)], fq[i], fk[j][0], fk[j][1]);
                        MMA(s[2 * (j0 + j) + 1], fq[i], fk[j][2], fk[j][3]);
                    }
            }

        // in units of log2; a NaN needs no care here, since it comes back with the exponentials
        const float unit = g.scale * LOG2E;
        float high[2] = {-INFINITY, -INFINITY};
        const bool partial = CAUSAL || (step + 1) * BC > g.keys;
#pragma unroll
        for (int j = 0; j < PART / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
#if MASK == 1
                s[j][e] = fmaf((float)widen(around[MASK_ROWS ? e >> 1 : 0][j][e & 1]), LOG2E, s[j][e] * unit);
#elif MASK == 2
                s[j][e] = around[MASK_ROWS ? e >> 1 : 0][j][e & 1] ? s[j][e] * unit : -INFINITY;
#endif
                if (partial) {
                    int row = first + row_warp * 16 + (lane >> 2) + (e >> 1) * 8;
                    int key = step * BC + key0 + j * 8 + (lane & 3) * 2 + (e & 1);
                    if (key >= g.keys || (CAUSAL && key > row + g.causal_offset)) s[j][e] = -INFINITY;
                }
                high[e >> 1] = fmaxf(high[e >> 1], s[j][e]);
            }
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
            float shrink = exp2_fast(top[h] - base[h]);
            top[h] = high[h];
            total[h] *= shrink;
            if (step)
#pragma unroll
                for (int i = 0; i < HEAD / 8; i++) {
                    acc[i][h * 2] *= shrink;
                    acc[i][h * 2 + 1] *= shrink;
                }
        }
#pragma unroll
        for (int j = 0; j < PART / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
#if MASK
                s[j][e] = exp2_fast(s[j][e] - base[e >> 1]);
#else
                s[j][e] = exp2_fast(fmaf(s[j][e], unit, -base[e >> 1]));
#endif
                total[e >> 1] += s[j][e];
            }

        copy_wait<1>();
        __syncthreads();
        if (step + 1 < steps)
            load_tile<BC>(tiles + ((step + 1) & 1) * 2 * BC * PITCH + BC * PITCH, v + (i64)(step + 1) * BC * g.v[2],
                          g.v[2], g.keys - (step + 1) * BC);
        copy_commit();
#pragma unroll
        for (int j = 0; j < PART / 16; j++) {
            u32 fp[4] = {PACK(s[2 * j][0], s[2 * j][1]), PACK(s[2 * j][2], s[2 * j][3]),
                         PACK(s[2 * j + 1][0], s[2 * j + 1][1]), PACK(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
            for (int i0 = 0; i0 < HEAD / 16; i0 += BATCH) {
                u32 fv[BATCH][4];
#pragma unroll
                for (int i = 0; i < BATCH; i++)
                    if (i0 + i < HEAD / 16)
                        load_matrix4_transposed(fv[i], tile_v + (key0 + j * 16 + (lane & 15)) * PITCH +
                                                           (2 * (i0 + i) + (lane >> 4)) * 8);
#pragma unroll
                for (int i = 0; i < BATCH; i++)
                    if (i0 + i < HEAD / 16) {
                        MMA(acc[2 * (i0 + i)], fp, fv[i][0], fv[i][1]);
                        MMA(acc[2 * (i0 + i) + 1], fp, fv[i][2], fv[i][3]);
                    }
            }
        }
    }
    copy_wait<0>();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
    }
    if (KEY_WARPS > 1) {
        // each lane's part, its columns side by side
        __syncthreads();
        float* parts = (float*)shared;
        const int words = HEAD / 2 + 4;
        float* mine = parts + (warp * 32 + lane) * words;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            mine[h] = top[h];
            mine[2 + h] = total[h];
        }
#pragma unroll
        for (int i = 0; i < HEAD / 8; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) mine[4 + i * 4 + e] = acc[i][e];
        __syncthreads();
        if (key_warp) return;
        for (int other = 1; other < KEY_WARPS; other++) {
            const float* theirs = parts + ((warp + other) * 32 + lane) * words;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float high = propagating_max(top[h], theirs[h]), base = high == -INFINITY ? 0.0f : high;
                float a = exp2_fast(top[h] - base), b = exp2_fast(theirs[h] - base);
                top[h] = high;
                total[h] = total[h] * a + theirs[2 + h] * b;
#pragma unroll
                for (int i = 0; i < HEAD / 8; i++)
#pragma unroll
                    for (int e = h * 2; e < h * 2 + 2; e++) acc[i][e] = acc[i][e] * a + theirs[4 + i * 4 + e] * b;
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = row_warp * 16 + (lane >> 2) + h * 8;
        float scale = 1.0f / total[h];
        if (first + row < g.queries)
#pragma unroll
            for (int i = 0; i < HEAD / 8; i++)
                *(u32*)(o + row * g.o[2] + i * 8 + (lane & 3) * 2) =
                    PACK(acc[i][h * 2] * scale, acc[i][h * 2 + 1] * scale);
    }
}
