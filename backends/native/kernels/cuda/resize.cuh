// Resize: nearest, linear and cubic along up to five dimensions, from tables made on the host: for
// each dimension and output position TAPS input positions (below zero: outside) and their weights.
// Macros: T, SUM (the type of the sum), RESULT (what is stored of it).
struct resize_shape { dims out; strides x; int table[8], taps[8]; float outside; };
GLOBAL(KERNEL, MAX_THREADS)(u32 units, resize_shape g, const T* x, const int* where, const float* weights, T* y) {
    release_successor();
    wait_predecessor();
    typedef compute<T>::type R;
    for (u32 unit = blockIdx.x * MAX_THREADS + threadIdx.x; unit < units; unit += gridDim.x * MAX_THREADS) {
        int row[8], combinations = 1;
        u32 rest = unit;
        bool outside = false;
        for (int d = g.out.rank - 1; d >= 0; d--) {
            u32 next = divide(rest, g.out.magic[d], g.out.shift[d]);
            row[d] = g.table[d] + (int)(rest - next * g.out.size[d]) * g.taps[d];
            outside |= where[row[d]] < 0;
            combinations *= g.taps[d];
            rest = next;
        }
        if (outside) {
            y[unit] = narrow<T>((R)g.outside);
            continue;
        }
        if (combinations == 1) {
            i64 from = 0;
            for (int d = 0; d < g.out.rank; d++) from += where[row[d]] * g.x.step[d];
            y[unit] = x[from];
            continue;
        }
        SUM sum = 0;
        for (int n = 0; n < combinations; n++) {
            int left = n;
            i64 from = 0;
            float weight = 1;
            for (int d = g.out.rank - 1; d >= 0; d--) {
                int tap = row[d] + left % g.taps[d];
                left /= g.taps[d];
                from += where[tap] * g.x.step[d];
                weight *= weights[tap];
            }
            sum += (SUM)weight * (SUM)widen(x[from]);
        }
        y[unit] = narrow<T>(RESULT);
    }
}
