// Pooling over up to three spatial dimensions, channels last (VEC channels a thread) or first.
//
// Macros: T, KIND (0 max, 1 average, 2 average counting pads, 3 Lp), CHANNELS_LAST, VEC, INDICES, SIDE
// (a square window's size known at compile time, so that all its loads are under way at once; or 0).
struct pool_shape {
    dims out;                        // n, d, h, w, channel units; or n, channels, d, h, w
    int channels, size[3], kernel[3], stride[3], pad[3], end_pad[3], dilation[3], column_major;
    float p;
};
GLOBAL(KERNEL, MAX_THREADS)(u32 units, pool_shape g, const T* x, T* y, i64* indices) {
    release_successor();
    wait_predecessor();
    typedef compute<T>::type R;
    for (u32 unit = blockIdx.x * MAX_THREADS + threadIdx.x; unit < units; unit += gridDim.x * MAX_THREADS) {
        u32 at[5], rest = unit;
#pragma unroll
        for (int d = 4; d >= 0; d--) {
            u32 next = divide(rest, g.out.magic[d], g.out.shift[d]);
            at[d] = rest - next * g.out.size[d];
            rest = next;
        }
        const u32 image = at[0], c = CHANNELS_LAST ? at[4] * VEC : at[1];
        int from[3], to[3];
        u32 counted = 1;
#pragma unroll
        for (int d = 0; d < 3; d++) {
            from[d] = (int)at[CHANNELS_LAST ? d + 1 : d + 2] * g.stride[d] - g.pad[d];
            to[d] = from[d] + g.kernel[d] * g.dilation[d];
            // positions of the window inside the padded input; a ceil-mode rest does not count
            int stop = min(to[d], g.size[d] + g.end_pad[d]);
            counted *= (stop - from[d] + g.dilation[d] - 1) / g.dilation[d];
        }
        R acc[VEC];
        i64 best[VEC];
        u32 seen = 0;
#pragma unroll
        for (int e = 0; e < VEC; e++) {
            acc[e] = KIND == 0 ? (R)LOWEST : (R)0;
            best[e] = -1;
        }
        const i64 plane = (i64)image * g.channels;
        const i64 pixels = (i64)g.size[0] * g.size[1] * g.size[2];
        auto take = [&](const pack<T, VEC>& p, i64 z, i64 h, i64 w) {
            const i64 pixel = (z * g.size[1] + h) * g.size[2] + w;
            seen++;
#pragma unroll
            for (int e = 0; e < VEC; e++) {
                R v = widen(p.at[e]);
#if KIND == 0
                if ((v > acc[e] || v != v || best[e] < 0) && !(acc[e] != acc[e])) {
                    acc[e] = v;
                    best[e] = g.column_major ? z + g.size[0] * (h + g.size[1] * w) : pixel;
                }
#elif KIND == 3
                acc[e] += pow(fabs((double)v), (double)g.p);
#else
                acc[e] += v;
#endif
            }
        };
        auto source = [&](int z, int h, int w) {
            const i64 pixel = ((i64)z * g.size[1] + h) * g.size[2] + w;
            return CHANNELS_LAST ? x + ((i64)image * pixels + pixel) * g.channels + c : x + (plane + c) * pixels + pixel;
        };
#if SIDE
        pack<T, VEC> window[SIDE][SIDE];
#pragma unroll
        for (int i = 0; i < SIDE; i++)
#pragma unroll
            for (int j = 0; j < SIDE; j++) {
                int h = from[1] + i * g.dilation[1], w = from[2] + j * g.dilation[2];
                if ((u32)h < (u32)g.size[1] && (u32)w < (u32)g.size[2]) window[i][j] = load_pack<T, VEC>(source(0, h, w));
            }
#pragma unroll
        for (int i = 0; i < SIDE; i++)
#pragma unroll
            for (int j = 0; j < SIDE; j++) {
                int h = from[1] + i * g.dilation[1], w = from[2] + j * g.dilation[2];
                if ((u32)h < (u32)g.size[1] && (u32)w < (u32)g.size[2]) take(window[i][j], 0, h, w);
            }
#else
        for (int z = from[0]; z < to[0]; z += g.dilation[0]) {
            if ((u32)z >= (u32)g.size[0]) continue;
            for (int h = from[1]; h < to[1]; h += g.dilation[1]) {
                if ((u32)h >= (u32)g.size[1]) continue;
                for (int w = from[2]; w < to[2]; w += g.dilation[2])
                    if ((u32)w < (u32)g.size[2]) take(load_pack<T, VEC>(source(z, h, w)), z, h, w);
            }
        }
#endif
        pack<T, VEC> out;
#pragma unroll
        for (int e = 0; e < VEC; e++) {
            R v = acc[e];
#if KIND == 1
            v = v / (R)seen;
#elif KIND == 2
            v = v / (R)counted;
#elif KIND == 3
            v = (R)pow((double)v, 1.0 / (double)g.p);
#endif
            out.at[e] = narrow<T>(v);
        }
        store_pack<T, VEC>(y + (i64)unit * VEC, out);
#if INDICES
        indices[unit] = (plane + c) * pixels + best[0];
#endif
    }
}
