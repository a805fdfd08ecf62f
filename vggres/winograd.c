/* Layers of 32 channels in float32, for any processor: 3x3 convolutions, batch normalisation, shortcut and activation,
   with their gradients, in few passes over memory. Images are channels last, (n, width, width, 32).

   The convolutions are by Winograd's F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
   2016). Four outputs y of a line depend on six inputs d and three weights g, and

       y = A' [(G g) * (B' d)]        six products where the definition has twelve;

   in two dimensions a tile of 4x4 outputs takes 36 products instead of 144, and the rest is additions. For all channels
   of many tiles these are 36 matrix products, one for each "point". The gradient of the weight is the adjoint,
   G' [(B' d) * (A dy)], summed over all tiles; that of the input is a convolution again, with the kernel turned round.
   For these the width is a multiple of 4. */

#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
enum { C = 32, PARTS = C / LANES, CHUNK = 512 };
enum { TILES = 12 };       /* of a block: all that it needs lies in the second-level cache */
enum { GROUP = 3 * 1024 }; /* pixels: a number of blocks, for any power of two as a width */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int mask __attribute__((vector_size(4 * LANES)));
typedef float Points[6][6][TILES + 1][C]; /* of a block; a row more, lest the 36 share the same lines of the cache */
typedef float Weights[6][6][C][C];        /* (in, out) at each point; their gradient (out, in) */
typedef void Line(vec[6]);

#define INLINE static inline __attribute__((always_inline))
#define AT(address) (*(vec *)(address))

const char *by(void) { return "winograd"; }

/* ---- batch normalisation, shortcut and activation ---- */

/* x, or slope * x where `sign` is not positive */
INLINE vec leaky(vec x, vec sign, float slope) {
    mask positive = sign > 0;
    return (vec)(((mask)x & positive) | ((mask)(x * slope) & ~positive));
}

/* A layer's results z, normalised or not, with what follows them, on the way back. */
typedef struct {
    const float *dy, *z, *y; /* z is null without normalisation; y where there is no activation, or z gives its sign */
    float *dshortcut;        /* may be null */
    float mean[C], inverse[C], scale[C], shift[C], of_g[C], of_product[C], slope; /* shift: after that of the mean */
} Layer;

/* The gradient behind the activation, for `at`, a pixel's channels from j on, and z less its mean. */
INLINE void behind(const Layer *l, long at, int j, vec *g, vec *z) {
    vec sign = *z = AT(l->z + at) - AT(l->mean + j);
    if (l->y) sign = AT(l->y + at);
    else sign = sign * AT(l->scale + j) + AT(l->shift + j);
    *g = leaky(AT(l->dy + at), sign, l->slope);
}

/* The gradient of z; that of the shortcut is written. */
INLINE vec of_z(const Layer *l, long at, int j) {
    vec g = AT(l->dy + at), z = {0};
    if (l->z) behind(l, at, j, &g, &z);
    else if (l->y) g = leaky(g, AT(l->y + at), l->slope);
    if (l->dshortcut) AT(l->dshortcut + at) = g;
    if (l->z) g = AT(l->scale + j) * (g - AT(l->of_g + j) - z * AT(l->of_product + j));
    return g;
}

/* Of each channel the sum of u and that of u * v: forward both are z, back the two that `behind` gives. Few numbers are
   added up in float32, the rest in float64, and by the threads in their order. */
INLINE void add_up(const Layer *l, int back, double sums[2 * C], long pixels, int threads) {
    double parts[threads][2 * C];
    memset(parts, 0, sizeof parts);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++)
        for (long p = pixels * part / threads, end = pixels * (part + 1) / threads; p < end;) {
            float s[2 * C];
            vec sum[2 * PARTS] = {0};
            for (long chunk = p + CHUNK < end ? p + CHUNK : end; p < chunk; p++)
                for (int i = 0; i < PARTS; i++) {
                    vec u, v;
                    if (back) behind(l, p * C + i * LANES, i * LANES, &u, &v);
                    else u = v = AT(l->z + p * C + i * LANES);
                    sum[i] += u, sum[PARTS + i] += u * v;
                }
            memcpy(s, sum, sizeof s);
            for (int c = 0; c < 2 * C; c++) parts[part][c] += s[c];
        }
    memset(sums, 0, 2 * C * sizeof(double));
    for (int part = 0; part < threads; part++)
        for (int c = 0; c < 2 * C; c++) sums[c] += parts[part][c];
}

/* y = activation((z - mean) / deviation * gamma + beta + shortcut), where shortcut may be null; by the batch's moments,
   the mean and 1 / deviation, which are kept. The running ones are brought up to date. */
void normalise(const float *z, const double *known, const float *gamma, const float *beta, const float *shortcut,
               float *y, float *moments, float *running_mean, float *running_var, float eps, float momentum, float slope,
               long pixels, int threads) {
    const Layer l = {.z = z};
    double sums[2 * C];
    float scale[C];
    if (known) memcpy(sums, known, sizeof sums);
    else add_up(&l, 0, sums, pixels, threads);
    for (int c = 0; c < C; c++) {
        double mean = sums[c] / pixels, variance = sums[C + c] / pixels - mean * mean;
        variance = variance > 0 ? variance : 0;
        moments[c] = mean, moments[C + c] = 1 / __builtin_sqrt(variance + eps);
        scale[c] = gamma[c] * moments[C + c];
        running_mean[c] += momentum * (mean - running_mean[c]);
        running_var[c] += momentum * (variance * pixels / (pixels - 1) - running_var[c]);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < pixels; p++)
        for (int j = 0; j < C; j += LANES) {
            vec v = (AT(z + p * C + j) - AT(moments + j)) * AT(scale + j) + AT(beta + j);
            if (shortcut) v += AT(shortcut + p * C + j);
            AT(y + p * C + j) = leaky(v, v, slope);
        }
}

static Layer layer(const float *dy, const float *z, const float *y, const float *gamma, const float *beta,
                   const float *moments, const float *dgamma, const float *dbeta, float *dshortcut, float slope,
                   long pixels) {
    Layer l = {.dy = dy, .z = z, .y = y, .dshortcut = dshortcut, .slope = slope};
    for (int c = 0; z && c < C; c++) {
        l.mean[c] = moments[c], l.inverse[c] = moments[C + c], l.scale[c] = gamma[c] * l.inverse[c], l.shift[c] = beta[c];
        if (dgamma) l.of_g[c] = dbeta[c] / pixels, l.of_product[c] = dgamma[c] / pixels * l.inverse[c];
    }
    return l;
}

/* The gradients of gamma and beta, which the others need. */
void sum_back(const float *dy, const float *z, const float *y, const float *gamma, const float *beta,
              const float *moments, float *dgamma, float *dbeta, float slope, long pixels, int threads) {
    const Layer l = layer(dy, z, y, gamma, beta, moments, 0, 0, 0, slope, pixels);
    double sums[2 * C];
    add_up(&l, 1, sums, pixels, threads);
    for (int c = 0; c < C; c++) dbeta[c] = sums[c], dgamma[c] = sums[C + c] * l.inverse[c];
}

/* The gradient of z, and that of the shortcut. */
void through(const float *dy, const float *z, const float *y, const float *gamma, const float *beta,
             const float *moments, const float *dgamma, const float *dbeta, float *dshortcut, float *dz, float slope,
             long pixels, int threads) {
    const Layer l = layer(dy, z, y, gamma, beta, moments, dgamma, dbeta, dshortcut, slope, pixels);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < pixels; p++)
        for (int j = 0; j < C; j += LANES) AT(dz + p * C + j) = of_z(&l, p * C + j, j);
}

/* ---- the mean of 2x2 pixels ---- */

/* Of n images y is h by h, x twice that. */
void pool(const float *x, float *y, int n, int h, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int row = 0; row < n * h; row++)
        for (int i = 0; i < h; i++)
            for (int j = 0; j < C; j += LANES) {
                const float *above = x + (4L * row * h + 2 * i) * C + j, *below = above + 2L * h * C;
                AT(y + ((long)row * h + i) * C + j) = (AT(above) + AT(above + C) + AT(below) + AT(below + C)) / 4;
            }
}

void pool_back(const float *dy, float *dx, int n, int h, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int row = 0; row < n * h; row++)
        for (int down = 0; down < 2; down++)
            for (int i = 0; i < 2 * h; i++)
                for (int j = 0; j < C; j += LANES)
                    AT(dx + ((4L * row + 2 * down) * h + i) * C + j) = AT(dy + ((long)row * h + i / 2) * C + j) / 4;
}

/* ---- convolutions ---- */

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

INLINE void along_columns(vec d[6][6], int columns, Line line) {
    for (int c = 0; c < columns; c++) {
        vec column[6];
        for (int r = 0; r < 6; r++) column[r] = d[r][c];
        line(column);
        for (int r = 0; r < 6; r++) d[r][c] = column[r];
    }
}

INLINE void both_ways(vec d[6][6], int lines, int columns, Line line) {
    for (int r = 0; r < lines; r++) line(d[r]);
    along_columns(d, columns, line);
}

/* The tile's place: image, and pixel of its upper left corner. */
INLINE void locate(long tile, int w, long *image, int *top, int *left) {
    int across = w / 4, of_image = across * across, rest = tile % of_image;
    *image = tile / of_image, *top = rest / across * 4, *left = rest % across * 4;
}

/* A tile of 4x4 pixels, with a margin that is zero outside of the image, or without, to its points. */
INLINE void to_points(const float *images, int w, long tile, int margin, Line line, Points points, int t) {
    static const float zeros[6 * C];
    const float *rows[6], *first[6], *last[6];
    long image;
    int top, left, size = 4 + 2 * margin;
    locate(tile, w, &image, &top, &left);
    for (int r = 0; r < size; r++) {
        int y = top - margin + r, inside = y >= 0 && y < w;
        rows[r] = inside ? images + ((image * w + y) * w + left - margin) * C : zeros;
        first[r] = left >= margin ? rows[r] : zeros;
        last[r] = (left + 4 + margin <= w ? rows[r] : zeros) + (size - 1) * C;
    }
    for (int j = 0; j < C; j += LANES) {
        vec d[6][6];
        for (int r = 0; r < size; r++) {
            for (int c = 1; c < size - 1; c++) d[r][c] = AT(rows[r] + c * C + j);
            d[r][0] = AT(first[r] + j), d[r][size - 1] = AT(last[r] + j);
            line(d[r]);
        }
        along_columns(d, 6, line);
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 6; c++) AT(&points[r][c][t][j]) = d[r][c];
    }
}

/* What becomes of a convolution's results: the bias and, where it is not null, `add` are added; the activation; `to`.
   If there are `sums`, the results and their squares are added to them. */
typedef struct {
    const float *bias, *add;
    float *to, *sums, slope;
} Out;

INLINE void from_points(Points points, int t, const Out *o, int w, long tile) {
    long image;
    int top, left;
    locate(tile, w, &image, &top, &left);
    for (int j = 0; j < C; j += LANES) {
        vec d[6][6], shift = o->bias ? AT(o->bias + j) : (vec){0}, sum = {0}, squares = {0};
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 6; c++) d[r][c] = AT(&points[r][c][t][j]);
        both_ways(d, 6, 4, outputs);
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 4; c++) {
                long at = ((image * w + top + r) * w + left + c) * C + j;
                vec v = d[r][c] + shift;
                if (o->add) v += AT(o->add + at);
                AT(o->to + at) = v = leaky(v, v, o->slope);
                sum += v, squares += v * v;
            }
        if (o->sums) AT(o->sums + j) += sum, AT(o->sums + C + j) += squares;
    }
}

/* Ask for a 36th of a block of images, to be read or written soon, while the arithmetic goes on. */
INLINE void prefetch(const float *block, int part, int write) {
    enum { LINE = 16, LINES = TILES * 16 * C / LINE };
    for (int i = LINES * part / 36; i < LINES * (part + 1) / 36; i++) __builtin_prefetch(block + i * LINE, write, 2);
}

/* m = v u, for all tiles: six tiles and two vectors of channels at a time stay in registers. */
INLINE void product(float v[TILES][C], const float u[C][C], float m[TILES][C]) {
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

/* du += d' v, of the first `tiles` tiles: `rows` rows of du, from row k on. */
INLINE void add_rows(float d[TILES][C], float v[TILES][C], float du[C][C], int tiles, int k, int rows) {
    for (int j = 0; j < C; j += 2 * LANES) {
        vec sum[6][2];
        for (int i = 0; i < rows; i++)
            for (int half = 0; half < 2; half++) sum[i][half] = AT(&du[k + i][j + half * LANES]);
        for (int t = 0; t < tiles; t++)
            for (int i = 0; i < rows; i++)
                for (int half = 0; half < 2; half++) sum[i][half] += d[t][k + i] * AT(&v[t][j + half * LANES]);
        for (int i = 0; i < rows; i++)
            for (int half = 0; half < 2; half++) AT(&du[k + i][j + half * LANES]) = sum[i][half];
    }
}

INLINE void add_product(float d[TILES][C], float v[TILES][C], float du[C][C], int tiles) {
    for (int k = 0; k < 30; k += 6) add_rows(d, v, du, tiles, k, 6);
    add_rows(d, v, du, tiles, 30, 2);
}

/* weight is (out, 3, 3, in). Back, out goes in, in comes out, and the kernel is turned round. */
static void lay_out_weight(const float *weight, Weights u, int back) {
    float turned[9][C][C];
    for (int out = 0; out < C; out++)
        for (int tap = 0; tap < 9; tap++)
            for (int in = 0; in < C; in++)
                *(back ? &turned[8 - tap][out][in] : &turned[tap][in][out]) = weight[(out * 9 + tap) * C + in];
    for (int k = 0; k < C * C; k += LANES) {
        vec g[6][6];
        for (int tap = 0; tap < 9; tap++) g[tap / 3][tap % 3] = AT(&turned[tap][k / C][k % C]);
        both_ways(g, 3, 6, weight_points);
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 6; c++) AT(&u[r][c][k / C][k % C]) = g[r][c];
    }
}

/* The results of a convolution for the tiles from `first` to `end`: blocks of twelve. */
static void convolve_tiles(const float *x, Weights u, const Out *o, int w, long first, long end) {
    for (; first < end; first += TILES) {
        Points v, m; /* of the last block perhaps not all: the rest is computed, from whatever lies there, and not read */
        int here = end - first < TILES ? end - first : TILES;
        for (int t = 0; t < here; t++) to_points(x, w, first + t, 1, input_points, v, t);
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 6; c++) {
                prefetch(x + ((first + TILES) * 16 + w) * C, r * 6 + c, 0);
                prefetch(o->to + first * 16 * C, r * 6 + c, 1);
                if (o->add) prefetch(o->add + first * 16 * C, r * 6 + c, 0);
                product(v[r][c], u[r][c], m[r][c]);
            }
        for (int t = 0; t < here; t++) from_points(m, t, o, w, first + t);
    }
}

/* y = activation(convolution(x) + bias + shortcut), where both may be null; sums, which may be null, too, are those of
   y and its squares in each channel. */
void convolve(const float *x, const float *weight, const float *bias, const float *shortcut, float *y, double *sums,
              float slope, int n, int w, int threads) {
    long tiles = (long)n * (w / 4) * (w / 4), blocks = (tiles + TILES - 1) / TILES;
    double parts[threads][2 * C];
    memset(parts, 0, sizeof parts);
    Weights u;
    lay_out_weight(weight, u, 0);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++)
        for (long b = blocks * part / threads; b < blocks * (part + 1) / threads; b++) {
            float s[2 * C] = {0};
            const Out o = {bias, shortcut, y, sums ? s : 0, slope};
            convolve_tiles(x, u, &o, w, b * TILES, (b + 1) * TILES < tiles ? (b + 1) * TILES : tiles);
            for (int c = 0; c < 2 * C; c++) parts[part][c] += s[c];
        }
    for (int c = 0; sums && c < 2 * C; c++) {
        sums[c] = 0;
        for (int part = 0; part < threads; part++) sums[c] += parts[part][c];
    }
}

/* du and db, the gradients of the weight at its points and of the bias, from tiles that begin an image. Of a tile's
   points, (1, 1) is the sum of its dz. */
static void add_gradients(const float *x, const float *dz, Weights du, float *db, int w, long tiles) {
    for (long first = 0; first < tiles; first += TILES) {
        Points v, d;
        int here = tiles - first < TILES ? tiles - first : TILES;
        for (int t = 0; t < here; t++) {
            to_points(x, w, first + t, 1, input_points, v, t);
            to_points(dz, w, first + t, 0, gradient_points, d, t);
            for (int j = 0; j < C; j += LANES) AT(db + j) += AT(&d[1][1][t][j]);
        }
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 6; c++) {
                prefetch(x + ((first + TILES) * 16 + w) * C, r * 6 + c, 0);
                prefetch(dz + (first + TILES) * 16 * C, r * 6 + c, 0);
                add_product(d[r][c], v[r][c], du[r][c], here);
            }
    }
}

typedef struct {
    Weights du;
    float db[C];
} Sums;

/* All gradients of a layer whose own are known behind it: of the input, with `add` added to it, of the shortcut, the
   weight, (out, 3, 3, in), and the bias. That of z is made for a few images at a time, which the caches hold until both
   that follow from it are made, too. */
void gradients(const float *dy, const float *z, const float *y, const float *gamma, const float *beta,
               const float *moments, const float *dgamma, const float *dbeta, float *dshortcut, const float *x,
               const float *weight, const float *add, float *dx, float *dweight, float *dbias, float slope, int n, int w,
               int threads) {
    const Layer l = layer(dy, z, y, gamma, beta, moments, dgamma, dbeta, dshortcut, slope, (long)n * w * w);
    const long of_image = (long)w * w * C, group = w * w < GROUP ? GROUP / (w * w) : 1;
    const size_t room = ((group * of_image * sizeof(float) + sizeof(Sums)) / 64 + 1) * 64;
    char *works = aligned_alloc(64, threads * room);
    Weights u;
    lay_out_weight(weight, u, 1);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        Sums *sums = memset(works + part * room, 0, sizeof(Sums));
        float *made = (float *)(sums + 1);
        for (long i = (long)n * part / threads, end = (long)n * (part + 1) / threads; i < end; i += group) {
            long images = end - i < group ? end - i : group, tiles = images * (w / 4) * (w / 4), from = i * of_image;
            const Out o = {0, add ? add + from : 0, dx + from, 0, 1};
            const float *dz = dy + from;
            if (z || y || dshortcut) {
                for (long p = 0; p < images * of_image; p += C)
                    for (int j = 0; j < C; j += LANES) AT(made + p + j) = of_z(&l, from + p + j, j);
                dz = made;
            }
            add_gradients(x + from, dz, sums->du, sums->db, w, tiles);
            convolve_tiles(dz, u, &o, w, 0, tiles);
        }
    }
    Sums *total = (Sums *)works;
    for (int part = 1; part < threads; part++) {
        const float *more = (const float *)(works + part * room);
        for (long k = 0; k < sizeof(Sums) / sizeof(float); k++) ((float *)total)[k] += more[k];
    }
    memcpy(dbias, total->db, sizeof total->db);
    for (int k = 0; k < C * C; k += LANES) {
        vec g[6][6];
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 6; c++) g[r][c] = AT(&total->du[r][c][k / C][k % C]);
        both_ways(g, 6, 3, weights);
        for (int tap = 0; tap < 9; tap++) AT(dweight + (k / C * 9 + tap) * C + k % C) = g[tap / 3][tap % 3];
    }
    free(works);
}
