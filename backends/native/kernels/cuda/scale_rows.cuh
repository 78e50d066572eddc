// What rows are multiplied with instead of being normalised; a thread a row.
GLOBAL(KERNEL, MAX_THREADS)(const row_moments* moments, const float* factor, float* scales, int rows, row_norm norm) {
    release_successor();
    wait_predecessor();
    const int row = blockIdx.x * MAX_THREADS + threadIdx.x;
    if (row < rows) scales[row] = *factor * inverse_deviation(moments, row, rows, norm);
}
