// One direction of an RNN, GRU or LSTM for one sequence a block: the input's part of the gates is
// there, the state's is added step by step. Threads take hidden units; the state lies in shared
// memory. Macros: REAL, T (stored), GATES, KIND (0 RNN, 1 GRU, 2 LSTM), LINEAR (GRU: reset after
// the product), FORGET (LSTM: the input gate decides), PEEPHOLES; functions f0, f1, f2.
struct recurrence_shape {
    int time, batch, hidden, directions, backwards;  // backwards: a bit a direction
    i64 y_time, y_direction, y_batch;                // strides of the outputs
    i64 state_direction, state_batch;
    REAL clip;                                       // zero: none
};
DEVICE REAL bounded(REAL v, REAL clip) { return clip > 0 ? (v > clip ? clip : v < -clip ? -clip : v) : v; }

// x: [time, batch, directions, GATES, hidden]; r: [directions, hidden, GATES, hidden]: from, to
GLOBAL(KERNEL, MAX_THREADS)(recurrence_shape g, const REAL* x, const REAL* r, const REAL* inner, const REAL* peepholes,
                            const int* lengths, const T* h0, const T* c0, T* y, T* last_h, T* last_c) {
    DYNAMIC_SHARED(memory);
    REAL* h = (REAL*)memory;
    REAL* c = h + g.hidden;
    REAL* held = c + g.hidden;  // GRU: reset times state, then the update gate
    REAL* update = held + g.hidden;
    release_successor();
    wait_predecessor();
    const int batch = blockIdx.x, direction = blockIdx.y, H = g.hidden;
    const i64 state = direction * g.state_direction + batch * g.state_batch;
    for (int j = threadIdx.x; j < H; j += MAX_THREADS) {
        h[j] = h0 ? (REAL)widen(h0[state + j]) : (REAL)0;
        c[j] = c0 ? (REAL)widen(c0[state + j]) : (REAL)0;
    }
    __syncthreads();
    const int length = lengths ? min(max(lengths[batch], 0), g.time) : g.time;
    const REAL* own = r + (i64)direction * H * GATES * H;
    auto recurrent = [&](const REAL* from, int gate, int j) {
        REAL sum = 0;
        for (int i = 0; i < H; i++) sum += from[i] * own[((i64)i * GATES + gate) * H + j];
        return sum;
    };
    for (int t = 0; t < g.time; t++) {
        const int at = (g.backwards >> direction & 1) && t < length ? length - 1 - t : t;
        T* out = y ? y + at * g.y_time + direction * g.y_direction + batch * g.y_batch : (T*)0;
        if (t >= length) {
            if (out) for (int j = threadIdx.x; j < H; j += MAX_THREADS) out[j] = narrow<T>((REAL)0);
            continue;
        }
        const REAL* gates = x + (((i64)at * g.batch + batch) * g.directions + direction) * GATES * H;
#if KIND == 0
        for (int j = threadIdx.x; j < H; j += MAX_THREADS)
            held[j] = f0(bounded(gates[j] + recurrent(h, 0, j), g.clip));
        __syncthreads();
        for (int j = threadIdx.x; j < H; j += MAX_THREADS) h[j] = held[j];
#elif KIND == 1
        for (int j = threadIdx.x; j < H; j += MAX_THREADS) {
            update[j] = f0(bounded(gates[j] + recurrent(h, 0, j), g.clip));
            const REAL reset = f0(bounded(gates[H + j] + recurrent(h, 1, j), g.clip));
            held[j] = LINEAR ? reset * (recurrent(h, 2, j) + inner[direction * H + j]) : reset * h[j];
        }
        __syncthreads();
        for (int j = threadIdx.x; j < H; j += MAX_THREADS) {
            const REAL fresh = f1(bounded(gates[2 * H + j] + (LINEAR ? held[j] : recurrent(held, 2, j)), g.clip));
            h[j] = (1 - update[j]) * fresh + update[j] * h[j];
        }
#else
        for (int j = threadIdx.x; j < H; j += MAX_THREADS) {
            REAL i = gates[j] + recurrent(h, 0, j), o = gates[H + j] + recurrent(h, 1, j);
            REAL forget = gates[2 * H + j] + recurrent(h, 2, j), fresh = gates[3 * H + j] + recurrent(h, 3, j);
            const REAL* p = PEEPHOLES ? peepholes + (i64)direction * 3 * H + j : (const REAL*)0;
            if (PEEPHOLES) { i += p[0] * c[j]; forget += p[2 * H] * c[j]; }
            i = f0(bounded(i, g.clip));
            forget = FORGET ? 1 - i : f0(bounded(forget, g.clip));
            c[j] = forget * c[j] + i * f1(bounded(fresh, g.clip));
            if (PEEPHOLES) o += p[H] * c[j];
            held[j] = f0(bounded(o, g.clip)) * f2(c[j]);
        }
        __syncthreads();
        for (int j = threadIdx.x; j < H; j += MAX_THREADS) h[j] = held[j];
#endif
        __syncthreads();
        if (out) for (int j = threadIdx.x; j < H; j += MAX_THREADS) out[j] = narrow<T>(h[j]);
    }
    for (int j = threadIdx.x; j < H; j += MAX_THREADS) {
        if (last_h) last_h[state + j] = narrow<T>(h[j]);
        if (last_c) last_c[state + j] = narrow<T>(c[j]);
    }
}
