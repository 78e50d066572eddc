// NonMaxSuppression. PHASE 0: a block a (batch, class) walks its boxes from the best score on and
// keeps those that no kept box overlaps too much; PHASE 1: one block puts the lists together.
// `order` holds the boxes of every class by falling score. Macros: PHASE, CENTER.
struct nms_shape { int batches, classes, boxes, most; float overlap, score; };
struct corners { float y0, x0, y1, x1; };

DEVICE corners corners_of(const float* b) {
#if CENTER
    return {b[1] - b[3] / 2, b[0] - b[2] / 2, b[1] + b[3] / 2, b[0] + b[2] / 2};
#else
    return {fminf(b[0], b[2]), fminf(b[1], b[3]), fmaxf(b[0], b[2]), fmaxf(b[1], b[3])};
#endif
}
DEVICE bool overlaps(corners a, corners b, float limit) {
    float height = fminf(a.y1, b.y1) - fmaxf(a.y0, b.y0), width = fminf(a.x1, b.x1) - fmaxf(a.x0, b.x0);
    float common = fmaxf(height, 0.0f) * fmaxf(width, 0.0f);
    float both = (a.y1 - a.y0) * (a.x1 - a.x0) + (b.y1 - b.y0) * (b.x1 - b.x0) - common;
    return common > 0 && both > 0 && common / both > limit;
}

GLOBAL(KERNEL, MAX_THREADS)(nms_shape g, const float* boxes, const float* scores, const i64* order, int* kept, int* counts,
                            i64* out, i64* total) {
    __shared__ int found, clash;
    release_successor();
    wait_predecessor();
    const int t = threadIdx.x, lists = g.batches * g.classes;
#if PHASE == 0
    const int list = blockIdx.x, batch = list / g.classes;
    const float* own = boxes + (i64)batch * g.boxes * 4;
    int* mine = kept + (i64)list * g.most;
    if (t == 0) found = 0;
    for (int i = 0; i < g.boxes; i++) {
        const int box = (int)order[(i64)list * g.boxes + i];
        __syncthreads();
        if (t == 0) clash = 0;
        __syncthreads();
        const int have = found;
        if (have >= g.most || !(scores[(i64)list * g.boxes + box] > g.score)) break;
        const corners here = corners_of(own + (i64)box * 4);
        bool hit = false;
        for (int k = t; k < have; k += MAX_THREADS) hit |= overlaps(here, corners_of(own + (i64)mine[k] * 4), g.overlap);
        if (hit) clash = 1;
        __syncthreads();
        if (t == 0 && !clash) mine[found++] = box;
    }
    __syncthreads();
    if (t == 0) counts[list] = found;
#else
    i64 start = 0;
    for (int list = 0; list < lists; list++) {
        for (int i = t; i < counts[list]; i += MAX_THREADS) {
            i64* row = out + (start + i) * 3;
            row[0] = list / g.classes;
            row[1] = list % g.classes;
            row[2] = kept[(i64)list * g.most + i];
        }
        start += counts[list];
    }
    if (t == 0) *total = start;
#endif
}
