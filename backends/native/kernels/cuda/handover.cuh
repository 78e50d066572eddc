// Tensors from where they are to where they shall be, several with one launch: grid.y counts them.
struct moves { u64 from[8]; u64 to[8]; u64 bytes[8]; };

GLOBAL(KERNEL, MAX_THREADS)(const __grid_constant__ moves all) {
    release_successor();
    const char* from = (const char*)all.from[blockIdx.y];
    char* to = (char*)all.to[blockIdx.y];
    const u64 bytes = all.bytes[blockIdx.y];
    const u64 words = (((u64)to | (u64)from) & 15) == 0 ? bytes / 16 : 0;
    const u64 thread = blockIdx.x * (u64)MAX_THREADS + threadIdx.x, step = gridDim.x * (u64)MAX_THREADS;
    u64 i = thread;
    wait_predecessor();
    for (; i + 3 * step < words; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = ((const uint4*)from)[i + j * step];
#pragma unroll
        for (int j = 0; j < 4; j++) ((uint4*)to)[i + j * step] = v[j];
    }
    for (; i < words; i += step) ((uint4*)to)[i] = ((const uint4*)from)[i];
    for (i = words * 16 + thread; i < bytes; i += step) to[i] = from[i];
}
