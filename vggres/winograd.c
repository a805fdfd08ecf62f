/* A convolution of 32 channels to 32, 3x3, stride 1, padding 1, in float32, by Winograd's F(4x4, 3x3) (Lavin and Gray,
   "Fast Algorithms for Convolutional Neural Networks", 2016).

   Four outputs y of a line depend on six inputs d and three weights g, and

       y = A' [(G g) * (B' d)]        six products where the definition has twelve;

   in two dimensions a tile of 4x4 outputs takes 36 products instead of 144, and the rest is additions. For all channels
   of many tiles these are 36 matrix products, one for each "point". The gradient of the weight is the adjoint,
   G' [(B' d) * (A dy)], summed over all tiles; that of the input is a convolution again, with the kernel turned round.

   Images are channels last, (n, h, w, 32), with h and w multiples of 4; weights are (3, 3, in, out). */

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
enum { C = 32, TILES = 12 }; /* of a block: all that it needs lies in the second-level cache */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Points[6][6][TILES + 1][C]; /* of a block; a row more, lest the 36 share the same lines of the cache */
typedef void Line(vec[6]);

#define INLINE static inline __attribute__((always_inline))
#define AT(address) (*(vec *)(address))

INLINE void input_points(vec d[6]) { /* B' */
    vec even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], even2 = d[4] - d[2], odd2 = 2 * (d[3] - d[1]);
    d[0] = 4 * d[0] - 5 * d[2] + d[4];
    d[5] = 4 * d[1] - 5 * d[3] + d[5];
    d[1] = even + odd, d[2] = even - odd, d[3] = even2 + odd2, d[4] = even2 - odd2;
}

INLINE void outputs(vec m[6]) { /* A': six to four */
    vec sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    m[0] += sum + sum2;
    m[1] = difference + 2 * difference2;
    m[2] = sum + 4 * sum2;
    m[3] = difference + 8 * difference2 + m[5];
}

INLINE void gradient_points(vec g[6]) { /* A: four to six */
    vec even = g[0] + g[2], odd = g[1] + g[3], even2 = g[0] + 4 * g[2], odd2 = 2 * g[1] + 8 * g[3];
    g[5] = g[3];
    g[1] = even + odd, g[2] = even - odd, g[3] = even2 + odd2, g[4] = even2 - odd2;
}

INLINE void weight_points(vec g[6]) { /* G: three to six */
    vec even = g[0] + g[2], odd = g[1], even2 = g[0] + 4 * g[2], odd2 = 2 * g[1];
    g[5] = g[2];
    g[0] /= 4;
    g[1] = (even + odd) / -6, g[2] = (even - odd) / -6, g[3] = (even2 + odd2) / 24, g[4] = (even2 - odd2) / 24;
}

INLINE void weights(vec u[6]) { /* G': six to three */
    vec sum = (u[1] + u[2]) / -6, difference = (u[1] - u[2]) / -6;
    vec sum2 = (u[3] + u[4]) / 24, difference2 = (u[3] - u[4]) / 24;
    u[0] = u[0] / 4 + sum + sum2;
    u[1] = difference + 2 * difference2;
    u[2] = sum + 4 * sum2 + u[5];
}

/* Along the lines, then along the columns. */
INLINE void both_ways(vec d[6][6], int lines, int columns, Line line) {
    for (int r = 0; r < lines; r++) line(d[r]);
    for (int c = 0; c < columns; c++) {
        vec column[6];
        for (int r = 0; r < lines; r++) column[r] = d[r][c];
        line(column);
        for (int r = 0; r < 6; r++) d[r][c] = column[r];
    }
}

/* The tile's place: image, and pixel of its upper left corner. */
INLINE void locate(long tile, int h, int w, long *image, int *top, int *left) {
    int across = w / 4, of_image = across * (h / 4), rest = tile % of_image;
    *image = tile / of_image, *top = rest / across * 4, *left = rest % across * 4;
}

/* A tile of 4x4 pixels with a margin, zero outside of the image, to its points. */
INLINE void to_points(const float *images, int h, int w, long tile, int margin, Line line, Points points, int t) {
    long image;
    int top, left, size = 4 + 2 * margin;
    locate(tile, h, w, &image, &top, &left);
    for (int j = 0; j < C; j += LANES) {
        vec d[6][6];
        for (int r = 0; r < size; r++)
            for (int c = 0; c < size; c++) {
                int y = top - margin + r, x = left - margin + c;
                int inside = !margin || (y >= 0 && y < h && x >= 0 && x < w);
                d[r][c] = inside ? AT(images + ((image * h + y) * w + x) * C + j) : (vec){0};
            }
        both_ways(d, size, 6, line);
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 6; c++) AT(&points[r][c][t][j]) = d[r][c];
    }
}

INLINE void from_points(Points points, int t, const float *bias, float *images, int h, int w, long tile) {
    long image;
    int top, left;
    locate(tile, h, w, &image, &top, &left);
    for (int j = 0; j < C; j += LANES) {
        vec d[6][6], shift = bias ? AT(bias + j) : (vec){0};
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 6; c++) d[r][c] = AT(&points[r][c][t][j]);
        both_ways(d, 6, 4, outputs);
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 4; c++) AT(images + ((image * h + top + r) * w + left + c) * C + j) = d[r][c] + shift;
    }
}

/* Ask for a 36th of a block of images, to be read or written soon, while the arithmetic goes on. */
INLINE void prefetch(const float *block, int part, int write) {
    enum { LINE = 16, LINES = TILES * 16 * C / LINE };
    for (int i = LINES * part / 36; i < LINES * (part + 1) / 36; i++) __builtin_prefetch(block + i * LINE, write, 2);
}

/* m = v u, for all tiles: six tiles and two vectors of channels at a time stay in registers. */
INLINE void product(float v[TILES][C], float u[C][C], float m[TILES][C]) {
    for (int t = 0; t < TILES; t += 6)
        for (int j = 0; j < C; j += 2 * LANES) {
            vec sum[6][2] = {0};
            for (int k = 0; k < C; k++)
                for (int i = 0; i < 6; i++)
                    for (int half = 0; half < 2; half++) sum[i][half] += v[t + i][k] * AT(&u[k][j + half * LANES]);
            for (int i = 0; i < 6; i++)
                for (int half = 0; half < 2; half++) AT(&m[t + i][j + half * LANES]) = sum[i][half];
        }
}

/* du += v' d, of the first `tiles` tiles: `rows` rows of du, from row k on. */
INLINE void add_rows(float v[TILES][C], float d[TILES][C], float du[C][C], int tiles, int k, int rows) {
    for (int j = 0; j < C; j += 2 * LANES) {
        vec sum[6][2];
        for (int i = 0; i < rows; i++)
            for (int half = 0; half < 2; half++) sum[i][half] = AT(&du[k + i][j + half * LANES]);
        for (int t = 0; t < tiles; t++)
            for (int i = 0; i < rows; i++)
                for (int half = 0; half < 2; half++) sum[i][half] += v[t][k + i] * AT(&d[t][j + half * LANES]);
        for (int i = 0; i < rows; i++)
            for (int half = 0; half < 2; half++) AT(&du[k + i][j + half * LANES]) = sum[i][half];
    }
}

INLINE void add_product(float v[TILES][C], float d[TILES][C], float du[C][C], int tiles) {
    for (int k = 0; k < 30; k += 6) add_rows(v, d, du, tiles, k, 6);
    add_rows(v, d, du, tiles, 30, 2);
}

/* y = x * weight + bias, where bias may be null. */
void convolve(const float *x, const float *weight, const float *bias, float *y, int n, int h, int w, int threads) {
    float u[6][6][C][C];
    for (int k = 0; k < C * C; k += LANES) {
        vec g[6][6];
        for (int r = 0; r < 3; r++)
            for (int c = 0; c < 3; c++) g[r][c] = AT(weight + (r * 3 + c) * C * C + k);
        both_ways(g, 3, 6, weight_points);
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 6; c++) AT(&u[r][c][k / C][k % C]) = g[r][c];
    }
    long tiles = (long)n * (h / 4) * (w / 4);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long first = 0; first < tiles; first += TILES) {
        Points v, m; /* of the last block perhaps not all: the rest is computed, from whatever lies there, and not read */
        int here = tiles - first < TILES ? tiles - first : TILES;
        for (int t = 0; t < here; t++) to_points(x, h, w, first + t, 1, input_points, v, t);
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 6; c++) {
                prefetch(x + ((first + TILES) * 16 + w) * C, r * 6 + c, 0);
                prefetch(y + first * 16 * C, r * 6 + c, 1);
                product(v[r][c], u[r][c], m[r][c]);
            }
        for (int t = 0; t < here; t++) from_points(m, t, bias, y, h, w, first + t);
    }
}

/* The gradients of the weight, (threads, 3, 3, in, out), and of the bias, (threads, out), each thread's from its part of
   the tiles; dy is the output's. Of a tile's points, (1, 1) is the sum of its dy. */
void parameter_gradients(const float *x, const float *dy, float *weight, float *bias, int n, int h, int w, int threads) {
    long tiles = (long)n * (h / 4) * (w / 4), blocks = (tiles + TILES - 1) / TILES;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        float du[6][6][C][C] = {0};
        vec sum[C / LANES] = {0};
        for (long b = blocks * part / threads; b < blocks * (part + 1) / threads; b++) {
            Points v, d;
            int here = tiles - b * TILES < TILES ? tiles - b * TILES : TILES;
            for (int t = 0; t < here; t++) {
                to_points(x, h, w, b * TILES + t, 1, input_points, v, t);
                to_points(dy, h, w, b * TILES + t, 0, gradient_points, d, t);
                for (int j = 0; j < C / LANES; j++) sum[j] += AT(&d[1][1][t][j * LANES]);
            }
            for (int r = 0; r < 6; r++)
                for (int c = 0; c < 6; c++) {
                    prefetch(x + ((b + 1) * TILES * 16 + w) * C, r * 6 + c, 0);
                    prefetch(dy + (b + 1) * TILES * 16 * C, r * 6 + c, 0);
                    add_product(v[r][c], d[r][c], du[r][c], here);
                }
        }
        for (int j = 0; j < C / LANES; j++) AT(bias + part * C + j * LANES) = sum[j];
        for (int k = 0; k < C * C; k += LANES) {
            vec g[6][6];
            for (int r = 0; r < 6; r++)
                for (int c = 0; c < 6; c++) g[r][c] = AT(&du[r][c][k / C][k % C]);
            both_ways(g, 6, 3, weights);
            for (int r = 0; r < 3; r++)
                for (int c = 0; c < 3; c++) AT(weight + ((part * 3 + r) * 3 + c) * C * C + k) = g[r][c];
        }
    }
}
