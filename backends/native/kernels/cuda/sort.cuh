// TopK and sorting along an axis by bitonic networks on (value, index) pairs; ties by index, NaN
// largest. PHASE 0: a block loads and sorts CHUNK pairs of a line; 1: one compare step across the
// line; 2: the steps that stay inside a chunk; 3: the first k pairs to the outputs.
// Macros: T, LARGEST, CHUNK, PHASE.
struct sort_shape { u32 lines, length, padded, inner, k; };
typedef compute<T>::type R;
struct pair { R value; int index; };

DEVICE bool before(pair a, pair b) {
    if ((u32)a.index == 0x7fffffffu || (u32)b.index == 0x7fffffffu) return a.index < b.index;
    const bool na = a.value != a.value, nb = b.value != b.value;
    if (na || nb) return na == nb ? a.index < b.index : (LARGEST ? na : nb);
    if (a.value == b.value) return a.index < b.index;
    return LARGEST ? a.value > b.value : a.value < b.value;
}
DEVICE void exchange_pairs(pair& a, pair& b, bool ascending) {
    if (before(b, a) == ascending) { pair t = a; a = b; b = t; }
}

GLOBAL(KERNEL, MAX_THREADS)(sort_shape g, const T* x, pair* work, T* values, i64* indices, u32 size, u32 stride) {
    release_successor();
    wait_predecessor();
    const u32 chunks = g.padded / CHUNK, line = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
    const i64 base = (i64)(line / g.inner) * g.length * g.inner + line % g.inner;
    pair* own = work + (i64)line * g.padded;
#if PHASE == 1
    for (u32 i = threadIdx.x; i < CHUNK / 2; i += MAX_THREADS) {
        u32 n = chunk * (CHUNK / 2) + i, low = n / stride * stride * 2 + n % stride;
        exchange_pairs(own[low], own[low + stride], (low & size) == 0);
    }
#elif PHASE == 3
    const i64 to = (i64)(line / g.inner) * g.k * g.inner + line % g.inner;
    for (u32 i = chunk * CHUNK + threadIdx.x; i < min((chunk + 1) * CHUNK, g.k); i += MAX_THREADS) {
        values[to + (i64)i * g.inner] = x[base + (i64)own[i].index * g.inner];
        indices[to + (i64)i * g.inner] = own[i].index;
    }
#else
    __shared__ pair held[CHUNK];
    for (u32 i = threadIdx.x; i < CHUNK; i += MAX_THREADS) {
        u32 n = chunk * CHUNK + i;
#if PHASE == 0
        pair p = {(R)0, 0x7fffffff};
        if (n < g.length) p = {widen(x[base + (i64)n * g.inner]), (int)n};
        held[i] = p;
#else
        held[i] = own[n];
#endif
    }
    __syncthreads();
    for (u32 width = PHASE ? size : 2; width <= (PHASE ? size : CHUNK); width *= 2)
        for (u32 d = PHASE ? CHUNK / 2 : width / 2; d; d /= 2) {
            for (u32 i = threadIdx.x; i < CHUNK / 2; i += MAX_THREADS) {
                u32 low = i / d * d * 2 + i % d;
                exchange_pairs(held[low], held[low + d], ((chunk * CHUNK + low) & width) == 0);
            }
            __syncthreads();
        }
    for (u32 i = threadIdx.x; i < CHUNK; i += MAX_THREADS) own[chunk * CHUNK + i] = held[i];
#endif
}
