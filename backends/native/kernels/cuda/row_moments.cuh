// The sum of a row's values and that of their squares, for every 64 columns: moments[columns / 64][row].
struct __align__(8) row_moments { float sum, square; };
// of the normalisation: columns / 64, one over the columns, whether the mean is taken off
struct row_norm { int parts; float share, epsilon; int centred; };

DEVICE void add_moments(row_moments& to, float v) {
    to.sum += v;
    to.square += v * v;
}
template <int N> DEVICE void add_moments(row_moments& to, const float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) add_moments(to, v[i]);
}

// four neighbouring lanes have a row's 64 columns; starts anew
DEVICE void store_moments(row_moments* moments, row_moments& found, int row, int column, int rows, int columns) {
#pragma unroll
    for (int d = 1; d < 4; d <<= 1) {
        found.sum += __shfl_xor_sync(0xffffffffu, found.sum, d);
        found.square += __shfl_xor_sync(0xffffffffu, found.square, d);
    }
    if ((threadIdx.x & 3) == 0 && row < rows && column < columns) moments[(i64)(column / 64) * rows + row] = found;
    found = row_moments();
}

// E[x x] - E[x] E[x] loses digits where the mean is far from zero, as values of 16 bits have lost them
DEVICE float inverse_deviation(const row_moments* moments, int row, int rows, row_norm norm) {
    float sum = 0, square = 0;
#pragma unroll 4
    for (int i = 0; i < norm.parts; i++) {
        const row_moments part = moments[(i64)i * rows + row];
        sum += part.sum;
        square += part.square;
    }
    const float mean = norm.centred ? sum * norm.share : 0;
    const float variance = square * norm.share - mean * mean;
    return rsqrtf((variance < 0 ? 0 : variance) + norm.epsilon);
}
