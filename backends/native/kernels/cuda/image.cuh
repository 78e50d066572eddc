// NCHW to NHWC with the channels padded to C_PAD and zero borders: what a convolution's first layer
// reads. Macros: T, C_PAD.
struct image_shape { int channels, height, width, top, left, out_height, out_width; };
GLOBAL(KERNEL, MAX_THREADS)(u32 pixels, image_shape g, dims out, const T* x, T* y) {
    release_successor();
    wait_predecessor();
    u32 unit = blockIdx.x * MAX_THREADS + threadIdx.x;
    if (unit >= pixels) return;
    u32 line = divide(unit, out.magic[2], out.shift[2]), w = unit - line * out.size[2];
    u32 image = divide(line, out.magic[1], out.shift[1]), h = line - image * out.size[1];
    int row = (int)h - g.top, col = (int)w - g.left;
    bool inside = (u32)row < (u32)g.height && (u32)col < (u32)g.width;
    pack<T, C_PAD> p;
#pragma unroll
    for (int c = 0; c < C_PAD; c++) {
        T v = {};
        if (inside && c < g.channels) v = x[(((i64)image * g.channels + c) * g.height + row) * g.width + col];
        p.at[c] = v;
    }
    store_pack<T, C_PAD>(y + (i64)unit * C_PAD, p);
}
