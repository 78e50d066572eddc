// Pad, and cropping by negative pads. Macros: T, MODE (0 constant, 1 reflect, 2 edge, 3 wrap).
struct pad_shape { dims out; strides x; int size[8], before[8]; };
GLOBAL(KERNEL, MAX_THREADS)(u32 units, pad_shape g, const T* x, const T* value, T* y) {
    release_successor();
    wait_predecessor();
    for (u32 unit = blockIdx.x * MAX_THREADS + threadIdx.x; unit < units; unit += gridDim.x * MAX_THREADS) {
        i64 from = 0;
        bool inside = true;
        u32 rest = unit;
        for (int d = g.out.rank - 1; d >= 0; d--) {
            u32 next = divide(rest, g.out.magic[d], g.out.shift[d]);
            int at = (int)(rest - next * g.out.size[d]) - g.before[d], n = g.size[d];
            rest = next;
#if MODE == 0
            inside &= (u32)at < (u32)n;
#elif MODE == 1
            const int period = max(1, 2 * (n - 1));
            at = (at % period + period) % period;
            if (at >= n) at = period - at;
#elif MODE == 2
            at = min(max(at, 0), n - 1);
#else
            at = (at % n + n) % n;
#endif
            from += at * g.x.step[d];
        }
        T v = {};
        if (inside) v = x[from];
        else if (value) v = *value;
        y[unit] = v;
    }
}
