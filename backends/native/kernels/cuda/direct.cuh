// Convolution and transposed convolution of any kind, one result a thread and VEC channels at a time
// for depthwise NHWC: the way that always works, and the fast one for depthwise.
//
// Tensors are addressed by strides of batch, channel, depth, row, column. Weights lie as
// [out, in / groups, kd, kh, kw]; of a transposed convolution as [in, out / groups, kd, kh, kw]; of a
// vectorised depthwise one as [kd, kh, kw, out]. Macros: T_IN, T_OUT, ACC, VEC, TRANSPOSED, SIDE (a
// square two-dimensional kernel's size, when known; or 0).
struct direct_shape {
    dims out;  // n, d, h, w, channel units
    int in_group, out_group, size[3], kernel[3], stride[3], pad[3], dilation[3];
    i64 x[5], y[5];
};
GLOBAL(KERNEL, MAX_THREADS)(u32 units, direct_shape g, const T_IN* x, const T_IN* __restrict__ w, T_OUT* y EPILOGUE_PARAMS) {
    release_successor();
    wait_predecessor();
    for (u32 unit = blockIdx.x * MAX_THREADS + threadIdx.x; unit < units; unit += gridDim.x * MAX_THREADS) {
        u32 at[5], rest = unit;
#pragma unroll
        for (int d = 4; d >= 0; d--) {
            u32 next = divide(rest, g.out.magic[d], g.out.shift[d]);
            at[d] = rest - next * g.out.size[d];
            rest = next;
        }
        const int channel = at[4] * VEC, group = channel / g.out_group;
        const int taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
        const T_IN* image = x + at[0] * g.x[0] + (i64)group * g.in_group * g.x[1];
        ACC sum[VEC] = {};
        auto tap = [&](int a, int b, int c) {
            int place[3] = {a, b, c}, from[3];
            bool inside = true;
#pragma unroll
            for (int d = 0; d < 3; d++) {
#if TRANSPOSED
                int shifted = (int)at[d + 1] + g.pad[d] - place[d] * g.dilation[d];
                from[d] = shifted / g.stride[d];
                inside &= shifted >= 0 && from[d] * g.stride[d] == shifted && from[d] < g.size[d];
#else
                from[d] = (int)at[d + 1] * g.stride[d] - g.pad[d] + place[d] * g.dilation[d];
                inside &= (u32)from[d] < (u32)g.size[d];
#endif
            }
            if (!inside) return;
            const int t = (a * g.kernel[1] + b) * g.kernel[2] + c;
            const T_IN* source = image + from[0] * g.x[2] + from[1] * g.x[3] + from[2] * g.x[4];
            if (VEC > 1) {
                pack<T_IN, VEC> p = load_pack<T_IN, VEC>(source + channel - group * g.in_group);
                pack<T_IN, VEC> q = load_pack<T_IN, VEC>(w + (i64)t * g.out.size[4] * VEC + channel);
#pragma unroll
                for (int e = 0; e < VEC; e++) sum[e] += (ACC)widen(p.at[e]) * (ACC)widen(q.at[e]);
            } else {
                for (int i = 0; i < g.in_group; i++) {
#if TRANSPOSED
                    i64 weight = ((i64)(group * g.in_group + i) * g.out_group + channel - group * g.out_group) * taps + t;
#else
                    i64 weight = ((i64)channel * g.in_group + i) * taps + t;
#endif
                    sum[0] += (ACC)widen(source[i * g.x[1]]) * (ACC)widen(w[weight]);
                }
            }
        };
#if SIDE
#pragma unroll
        for (int b = 0; b < SIDE; b++)
#pragma unroll
            for (int c = 0; c < SIDE; c++) tap(0, b, c);
#else
        for (int a = 0; a < g.kernel[0]; a++)
            for (int b = 0; b < g.kernel[1]; b++)
                for (int c = 0; c < g.kernel[2]; c++) tap(a, b, c);
#endif
        const i64 to = at[0] * g.y[0] + channel * g.y[1] + at[1] * g.y[2] + at[2] * g.y[3] + at[3] * g.y[4];
        operands beside;
        fetch(beside, to, 0 EPILOGUE_ARGS);
        pack<T_OUT, VEC> out;
        epilogue(sum, beside, nullptr, 0, channel, out EPILOGUE_ARGS);
        store_pack<T_OUT, VEC>(y + to, out);
    }
}
