/* Layers of 32 channels in bf16, for processors with AMX, or with AVX-512's products of bf16: 3x3 convolutions, batch
   normalisation, shortcut and activation, with their gradients, in few passes over memory.

   Images are channels last, (n, height, width, 32): a pixel is 64 bytes, one register. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;
typedef __m512i Pixel; /* 32 channels */
typedef __m512 Half;   /* 16 of them in float32 */
enum { C = 32, CHUNK = 512 };

#define INLINE static inline __attribute__((always_inline))

/* ---- batch normalisation, shortcut and activation ---- */

INLINE Pixel at(const bf16 *x, long p) { return _mm512_loadu_si512(x + p * C); }
INLINE Half widen(__m256i x) { return (Half)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }
INLINE void halves(Pixel x, Half h[2]) {
    h[0] = widen(_mm512_castsi512_si256(x)), h[1] = widen(_mm512_extracti64x4_epi64(x, 1));
}
INLINE Pixel narrow(Half h[2]) { return (Pixel)_mm512_cvtne2ps_pbh(h[1], h[0]); }
INLINE void put(bf16 *x, long p, Half h[2]) { _mm512_storeu_si512(x + p * C, narrow(h)); }
INLINE void channels(const float *x, Half h[2]) { h[0] = _mm512_loadu_ps(x), h[1] = _mm512_loadu_ps(x + 16); }

/* x, or slope * x where `sign` is not positive */
INLINE Half leaky(Half x, Half sign, Half slope) {
    return _mm512_mask_mul_ps(x, _mm512_cmp_ps_mask(sign, _mm512_setzero_ps(), _CMP_LE_OQ), x, slope);
}

/* A layer's results z, normalised or not, with what follows them, on the way back. */
typedef struct {
    const bf16 *dy, *z, *y; /* z is null without normalisation; y where there is no activation, or z gives its sign */
    bf16 *dshortcut;        /* may be null */
    Half mean[2], inverse[2], gamma[2], beta[2], of_g[2], of_product[2], slope;
} Layer;

/* The gradient behind the activation, and the normalised values. */
INLINE void behind(const Layer *l, long p, Half g[2], Half x[2]) {
    Half z[2], y[2], dy[2];
    halves(at(l->z, p), z), halves(at(l->dy, p), dy);
    if (l->y) halves(at(l->y, p), y);
    for (int i = 0; i < 2; i++) {
        x[i] = (z[i] - l->mean[i]) * l->inverse[i];
        g[i] = leaky(dy[i], l->y ? y[i] : _mm512_fmadd_ps(x[i], l->gamma[i], l->beta[i]), l->slope);
    }
}

/* The gradient of z; that of the shortcut is written. */
INLINE Pixel of_z(const Layer *l, long p) {
    Half g[2], x[2];
    if (l->z) {
        behind(l, p, g, x);
        if (l->dshortcut) put(l->dshortcut, p, g);
        for (int i = 0; i < 2; i++) g[i] = l->gamma[i] * l->inverse[i] * (g[i] - l->of_g[i] - x[i] * l->of_product[i]);
        return narrow(g);
    }
    Pixel dz = at(l->dy, p);
    if (l->y) {
        halves(dz, g);
        for (int i = 0; i < 2; i++) g[i] *= l->slope;
        dz = _mm512_mask_mov_epi16(dz, _mm512_cmple_epi16_mask(at(l->y, p), _mm512_setzero_si512()), narrow(g));
    }
    if (l->dshortcut) _mm512_storeu_si512(l->dshortcut + p * C, dz);
    return dz;
}

/* Of each channel the sum of u and that of u * v: forward both are z, back the two that `behind` gives. Few numbers are
   added up in float32, the rest in float64, and by the threads in their order. */
INLINE void add_up(const Layer *l, int back, double sums[2 * C], long pixels, int threads) {
    double parts[threads][2 * C];
    memset(parts, 0, sizeof parts);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++)
        for (long p = pixels * part / threads, end = pixels * (part + 1) / threads; p < end;) {
            Half s[4] = {{0}, {0}, {0}, {0}};
            for (long chunk = p + CHUNK < end ? p + CHUNK : end; p < chunk; p++) {
                Half u[2], v[2];
                if (back) behind(l, p, u, v);
                else halves(at(l->z, p), u), v[0] = u[0], v[1] = u[1];
                for (int i = 0; i < 2; i++) s[i] += u[i], s[2 + i] += u[i] * v[i];
            }
            for (int c = 0; c < 2 * C; c++) parts[part][c] += ((float *)s)[c];
        }
    memset(sums, 0, 2 * C * sizeof(double));
    for (int part = 0; part < threads; part++)
        for (int c = 0; c < 2 * C; c++) sums[c] += parts[part][c];
}

/* y = activation((z - mean) / deviation * gamma + beta + shortcut), where shortcut may be null; by the batch's moments,
   the mean and 1 / deviation, which are kept. The running ones are brought up to date. */
void normalise(const bf16 *z, const double *known, const float *gamma, const float *beta, const bf16 *shortcut, bf16 *y,
               float *moments, float *running_mean, float *running_var, float eps, float momentum, float slope, long pixels,
               int threads) {
    const Layer l = {.z = z};
    double sums[2 * C];
    float scale[C], shift[C];
    if (known) memcpy(sums, known, sizeof sums);
    else add_up(&l, 0, sums, pixels, threads);
    for (int c = 0; c < C; c++) {
        double mean = sums[c] / pixels, variance = sums[C + c] / pixels - mean * mean;
        variance = variance > 0 ? variance : 0;
        moments[c] = mean, moments[C + c] = 1 / __builtin_sqrt(variance + eps);
        scale[c] = gamma[c] * moments[C + c], shift[c] = beta[c] - moments[c] * scale[c];
        running_mean[c] += momentum * (mean - running_mean[c]);
        running_var[c] += momentum * (variance * pixels / (pixels - 1) - running_var[c]);
    }
    Half k[2], b[2], down = _mm512_set1_ps(slope);
    channels(scale, k), channels(shift, b);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < pixels; p++) {
        Half v[2], s[2] = {{0}, {0}};
        halves(at(z, p), v);
        if (shortcut) halves(at(shortcut, p), s);
        for (int i = 0; i < 2; i++) v[i] = _mm512_fmadd_ps(v[i], k[i], b[i]) + s[i], v[i] = leaky(v[i], v[i], down);
        put(y, p, v);
    }
}

static Layer layer(const bf16 *dy, const bf16 *z, const bf16 *y, const float *gamma, const float *beta,
                   const float *moments, const float *dgamma, const float *dbeta, bf16 *dshortcut, float slope,
                   long pixels) {
    Layer l = {.dy = dy, .z = z, .y = y, .dshortcut = dshortcut, .slope = _mm512_set1_ps(slope)};
    if (!z) return l;
    channels(moments, l.mean), channels(moments + C, l.inverse), channels(gamma, l.gamma), channels(beta, l.beta);
    channels(dbeta, l.of_g), channels(dgamma, l.of_product);
    for (int i = 0; i < 2; i++) l.of_g[i] /= _mm512_set1_ps(pixels), l.of_product[i] /= _mm512_set1_ps(pixels);
    return l;
}

/* The gradients of gamma and beta, which the others need. */
void sum_back(const bf16 *dy, const bf16 *z, const bf16 *y, const float *gamma, const float *beta, const float *moments,
              float *dgamma, float *dbeta, float slope, long pixels, int threads) {
    const Layer l = layer(dy, z, y, gamma, beta, moments, dgamma, dbeta, 0, slope, pixels);
    double sums[2 * C];
    add_up(&l, 1, sums, pixels, threads);
    for (int c = 0; c < C; c++) dbeta[c] = sums[c], dgamma[c] = sums[C + c];
}

/* The gradient of z, and that of the shortcut. */
void through(const bf16 *dy, const bf16 *z, const bf16 *y, const float *gamma, const float *beta, const float *moments,
             const float *dgamma, const float *dbeta, bf16 *dshortcut, bf16 *dz, float slope, long pixels, int threads) {
    const Layer l = layer(dy, z, y, gamma, beta, moments, dgamma, dbeta, dshortcut, slope, pixels);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < pixels; p++) _mm512_storeu_si512(dz + p * C, of_z(&l, p));
}

/* ---- the mean of 2x2 pixels ---- */

/* Of n images y is h by h, x twice that. */
void pool(const bf16 *x, bf16 *y, int n, int h, int threads) {
    const Half quarter = _mm512_set1_ps(0.25f);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int row = 0; row < n * h; row++)
        for (int i = 0; i < h; i++) {
            Half a[2], b[2], c[2], d[2], mean[2];
            halves(at(x, 4L * row * h + 2 * i), a), halves(at(x, 4L * row * h + 2 * i + 1), b);
            halves(at(x, (4L * row + 2) * h + 2 * i), c), halves(at(x, (4L * row + 2) * h + 2 * i + 1), d);
            for (int k = 0; k < 2; k++) mean[k] = (a[k] + b[k] + c[k] + d[k]) * quarter;
            put(y, (long)row * h + i, mean);
        }
}

void pool_back(const bf16 *dy, bf16 *dx, int n, int h, int threads) {
    const Half quarter = _mm512_set1_ps(0.25f);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int row = 0; row < n * h; row++)
        for (int down = 0; down < 2; down++)
            for (int i = 0; i < h; i++) {
                Half g[2];
                halves(at(dy, (long)row * h + i), g);
                for (int k = 0; k < 2; k++) g[k] *= quarter;
                for (int k = 0; k < 2; k++) put(dx, (4L * row + 2 * down) * h + 2 * i + k, g);
            }
}

/* ---- convolutions ---- */

/* A product adds a.b to `Sums`, 32x32 numbers in float32, by half of a's rows, then of b's columns. Of 32 numbers k a is
   (32, k), and b by half, then by pairs, (k / 2, 16, 2). Here k is what goes into a convolution, or, for the weight's
   gradient, pixels. */
enum { LINE = 32, LINES = 34 * 32, TILE = 16 * 32, STRIP = 8, AHEAD = 2 };

typedef float Sums[2][2][16][16] __attribute__((aligned(64)));

#ifdef __AMX_BF16__

/* In tiles, of 16 rows of 64 bytes. */
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) Tiles;

static const Tiles EIGHT = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* Null if this process may not use them: Linux wants to be asked. */
const char *by(void) {
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0 ? "amx" : 0;
}

/* A compiler may not know that tiles, and what says how many there are, are loaded from memory. */
#define IN_MEMORY __asm__ volatile("" ::: "memory")

/* Torch's matrix products may set theirs only when they need others than last time: they get them back. */
INLINE void take_tiles(Tiles *before) {
    _tile_storeconfig(before);
    _tile_loadconfig(&EIGHT);
}
INLINE void give_back(const Tiles *before) {
    IN_MEMORY;
    _tile_loadconfig(before);
}

/* From `zero` or `load` to `store` the sums are in four tiles. */
INLINE void zero(Sums sums) {
    IN_MEMORY;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
INLINE void load(Sums sums) {
    IN_MEMORY;
    _tile_loadd(0, sums[0][0], 64);
    _tile_loadd(1, sums[0][1], 64);
    _tile_loadd(2, sums[1][0], 64);
    _tile_loadd(3, sums[1][1], 64);
}
INLINE void store(Sums sums) {
    _tile_stored(0, sums[0][0], 64);
    _tile_stored(1, sums[0][1], 64);
    _tile_stored(2, sums[1][0], 64);
    _tile_stored(3, sums[1][1], 64);
    IN_MEMORY;
}
INLINE void multiply(Sums sums, const bf16 *a, const bf16 *b, size_t behind_b) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + behind_b, 64);
    _tile_loadd(5, a + TILE, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

#else

const char *by(void) { return "avx512-bf16"; }

typedef char Tiles; /* there are none */
typedef int Pair __attribute__((may_alias));
INLINE void take_tiles(Tiles *before) {}
INLINE void give_back(const Tiles *before) {}

INLINE void zero(Sums sums) { memset(sums, 0, sizeof(Sums)); }
INLINE void load(Sums sums) {}
INLINE void store(Sums sums) {}

/* Eight rows at a time: their sums take 16 registers. Inlined, it would have to share them. */
__attribute__((noinline)) static void multiply(Sums sums, const bf16 *a, const bf16 *b, size_t behind_b) {
    for (int i = 0; i < 32; i += 8) {
        Half s[8][2];
        for (int j = 0; j < 8; j++)
            for (int half = 0; half < 2; half++) s[j][half] = _mm512_load_ps(sums[i / 16][half][i % 16 + j]);
        for (int k = 0; k < 16; k++)
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                __m512bh pair = (__m512bh)_mm512_set1_epi32(((const Pair *)a)[(i + j) * 16 + k]);
                for (int half = 0; half < 2; half++)
                    s[j][half] = _mm512_dpbf16_ps(s[j][half], pair, (__m512bh)at(b + half * behind_b, k));
            }
        for (int j = 0; j < 8; j++)
            for (int half = 0; half < 2; half++) _mm512_store_ps(sums[i / 16][half][i % 16 + j], s[j][half]);
    }
}

#endif

/* Of 16x16 numbers of 32 bits rows become columns. */
INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2)
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; k++) {
            r[i + 2 * k] = _mm512_unpacklo_epi64(t[i + k], t[i + k + 2]);
            r[i + 2 * k + 1] = _mm512_unpackhi_epi64(t[i + k], t[i + k + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int k = 0; k < 4; k++) {
            t[i + k] = _mm512_shuffle_i32x4(r[i + k], r[i + k + 4], 0x88);
            t[i + k + 4] = _mm512_shuffle_i32x4(r[i + k], r[i + k + 4], 0xdd);
        }
    for (int k = 0; k < 8; k++) {
        r[k] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0x88);
        r[k + 8] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0xdd);
    }
}

/* 32 / w images of a width w lie `beside` each other: a line is a row of each, the first pixels of all, then the second
   ones, and so on. So a neighbour to the left or right is `beside` pixels away, and beyond the edges there are zeros.

   In `Work` the halves of channels are not the first and the last 16, but what comes of interleaving fastest: 0-3, 8-11,
   ... and 4-7, 12-15, ... */
typedef struct {
    bf16 dz[LINES][C];                          /* lines, as above */
    bf16 even[LINE][2][TILE];                   /* by line, half: pixels 0 and 1 of each image in pairs, 2 and 3, ... */
    bf16 odd[LINES][C];                         /* -1 and 0, 1 and 2, ...: of each line a half, then the other */
    bf16 x[LINE][2][TILE];                      /* by line, half: (channel, pixel), in the order of the pairs */
    Sums weight[9];                             /* (in, out) */
    float bias[2][16];
} Work;

static void lay_out(Work *work, const bf16 *x, const Layer *l, long first, int images, int w) {
    const int beside = LINE / w, pitch = LINE + 2 * beside;
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    for (int row = 0; row < w; row++) {
        Pixel pairs[2][16];
        bf16 *dz = work->dz[row * pitch], *odd = work->odd[row * pitch];
        for (int j = 0; j < 16; j++) {
            int image = j % beside, column = j / beside * 2;
            long p = first + ((long)image * w + row) * w + column;
            Pixel a = {0}, b = {0}, c = {0}, d = {0};
            if (image < images) a = at(x, p), b = at(x, p + 1), c = of_z(l, p), d = of_z(l, p + 1);
            bf16 *to = dz + ((column + 1) * beside + image) * C;
            _mm512_store_si512(to, c), _mm512_store_si512(to + beside * C, d);
            pairs[0][j] = _mm512_unpacklo_epi16(a, b), pairs[1][j] = _mm512_unpackhi_epi16(a, b);
            Pixel before = at(to - beside * C, 0);
            Pixel both[2] = {_mm512_unpacklo_epi16(c, d), _mm512_unpackhi_epi16(c, d)};
            _mm512_store_si512(odd + j * 32, _mm512_unpacklo_epi16(before, c));
            _mm512_store_si512(odd + (16 + beside + j) * 32, _mm512_unpackhi_epi16(before, c));
            for (int half = 0; half < 2; half++) {
                _mm512_store_si512(work->even[row][half] + j * 32, both[half]);
                Half *sum = (Half *)work->bias[half];
                *sum = _mm512_dpbf16_ps(*sum, (__m512bh)both[half], (__m512bh)ones);
            }
        }
        for (int image = 0; image < beside; image++) {
            Pixel last = at(dz, LINE + image);
            _mm512_store_si512(odd + (16 + image) * 32, _mm512_unpacklo_epi16(last, _mm512_setzero_si512()));
            _mm512_store_si512(odd + (32 + beside + image) * 32, _mm512_unpackhi_epi16(last, _mm512_setzero_si512()));
        }
        for (int half = 0; half < 2; half++) {
            transpose(pairs[half]);
            for (int c = 0; c < 16; c++) _mm512_store_si512(work->x[row][half] + c * 32, pairs[half][c]);
        }
    }
}

/* The weight's gradient. A few lines at a time stay in the first-level cache; meanwhile the next images are fetched. */
static void add_weight(Work *work, int w, const bf16 *const next[3]) {
    const int beside = LINE / w, pitch = LINE + 2 * beside;
    const char *a = (const char *)next[0], *b = (const char *)next[1], *c = (const char *)next[2];
    for (int start = 0; start < w; start += STRIP)
        for (int tap = 0; tap < 9; tap++) {
            int shift = tap / 3, down = tap % 3 - 1, end = start + STRIP < w ? start + STRIP : w;
            Sums *sums = &work->weight[(down + 1) * 3 + shift];
            load(*sums);
            for (int row = start; row < end; row++) {
                for (int i = 0; i < 4; i++, a += 64, b += 64, c += 64)
                    _mm_prefetch(a, _MM_HINT_T1), _mm_prefetch(b, _MM_HINT_T1), _mm_prefetch(c, _MM_HINT_T1);
                if (row + down < 0 || row + down >= w) continue;
                if (shift == 1) multiply(*sums, work->x[row + down][0], work->even[row][0], TILE);
                else multiply(*sums, work->x[row + down][0], work->odd[row * pitch + (shift ? 0 : beside)], (16 + beside) * C);
            }
            store(*sums);
        }
}

/* Of 32x32 channels at 9 places, by half of what comes out: (what goes in / 2, what comes out, 2). */
typedef bf16 Taps[9][2][TILE];

/* weight is (out, 3, 3, in). Back: out goes in, in comes out; forward, seen from the other side. */
static void lay_out_weight(const bf16 *weight, Taps taps, int back) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i last = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for (int tap = 0; tap < 9; tap++)
        for (int half = 0; half < 2; half++) {
            __m512i rows[16];
            for (int k = 0; k < 16; k++) {
                Pixel a = at(weight, 2 * k * 9 + tap), b = at(weight, (2 * k + 1) * 9 + tap);
                __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
                if (back) rows[k] = _mm512_permutex2var_epi32(low, half ? last : first, high);
                else rows[k] = at(weight, (16 * half + k) * 9 + tap);
            }
            if (!back) transpose(rows);
            for (int k = 0; k < 16; k++) _mm512_storeu_si512(taps[back ? tap : 8 - tap][half] + k * 32, rows[k]);
        }
}

/* What becomes of a convolution's results: the bias and, where it is not null, `add` are added; the activation; `to`. */
typedef struct {
    Half bias[2], slope;
    const bf16 *add;
    bf16 *to;
} Out;

/* A line of a convolution, or of its input's gradient, by the taps. If s is not null, the sums of the results, and of
   their squares, are added to it. */
INLINE void convolve_line(bf16 lines[][C], int row, const Taps taps, const Out *o, Half *s, long first, int images, int w) {
    const int beside = LINE / w, pitch = LINE + 2 * beside;
    Sums results; /* (pixel, channel) */
    zero(results);
    for (int tap = 0; tap < 9; tap++) {
        int from = row + 1 - tap / 3;
        if (from >= 0 && from < w) multiply(results, lines[from * pitch + (2 - tap % 3) * beside], taps[tap][0], TILE);
    }
    store(results);
    for (int i = 0; i < LINE; i++) {
        int image = i % beside;
        if (image >= images) continue;
        long p = first + ((long)image * w + row) * w + i / beside;
        Half v[2], more[2] = {{0}, {0}};
        for (int k = 0; k < 2; k++) v[k] = _mm512_load_ps(results[i / 16][k][i % 16]);
        if (o->add) halves(at(o->add, p), more);
        for (int k = 0; k < 2; k++) v[k] += o->bias[k] + more[k], v[k] = leaky(v[k], v[k], o->slope);
        Pixel result = narrow(v);
        _mm512_storeu_si512(o->to + p * C, result);
        if (s) {
            halves(result, v);
            for (int k = 0; k < 2; k++) s[k] += v[k], s[2 + k] += v[k] * v[k];
        }
    }
}

/* y = activation(convolution(x) + bias + shortcut), where both may be null; sums, which may be null, too, are those of
   y and its squares in each channel. A line is laid out a little ahead: just written it is slow to load as tiles. Images
   are w by w, a power of two from 2 to 32. */
void convolve(const bf16 *x, const bf16 *weight, const float *bias, const bf16 *shortcut, bf16 *y, double *sums,
              float slope, int n, int w, int threads) {
    const int beside = LINE / w, pitch = LINE + 2 * beside, groups = (n + beside - 1) / beside;
    double parts[threads][2 * C];
    memset(parts, 0, sizeof parts);
    bf16(*works)[LINES][C] = aligned_alloc(64, threads * sizeof *works);
    Taps taps;
    lay_out_weight(weight, taps, 0);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        Out o = {.slope = _mm512_set1_ps(slope), .add = shortcut, .to = y};
        if (bias) channels(bias, o.bias);
        Tiles before;
        take_tiles(&before);
        memset(works[part], 0, sizeof works[part]);
        for (int g = (long)groups * part / threads; g < (long)groups * (part + 1) / threads; g++) {
            long first = (long)g * beside * w * w;
            int images = n - g * beside < beside ? n - g * beside : beside;
            Half s[4] = {{0}, {0}, {0}, {0}};
            for (int row = 0; row < w + AHEAD; row++) {
                for (int image = 0; image < images && row < w; image++)
                    for (int column = 0; column < w; column++) {
                        long p = first + ((long)image * w + row) * w + column;
                        _mm_prefetch((const char *)(x + (p + 2 * w) * C), _MM_HINT_T0);
                        _mm512_store_si512(works[part][row * pitch + (column + 1) * beside + image], at(x, p));
                    }
                if (row >= AHEAD) convolve_line(works[part], row - AHEAD, taps, &o, sums ? s : 0, first, images, w);
            }
            for (int c = 0; c < 2 * C; c++) parts[part][c] += ((float *)s)[c];
        }
        give_back(&before);
    }
    for (int c = 0; sums && c < 2 * C; c++) {
        sums[c] = 0;
        for (int part = 0; part < threads; part++) sums[c] += parts[part][c];
    }
    free(works);
}

/* All gradients of a layer whose own are known behind it: of the input, with `add` added to it, of the shortcut, the
   weight, (out, 3, 3, in), and the bias. Images are w by w, a power of two from 2 to 32. */
void gradients(const bf16 *dy, const bf16 *z, const bf16 *y, const float *gamma, const float *beta, const float *moments,
               const float *dgamma, const float *dbeta, bf16 *dshortcut, const bf16 *x, const bf16 *weight,
               const bf16 *add, bf16 *dx, float *dweight, float *dbias, float slope, int n, int w, int threads) {
    const Layer l = layer(dy, z, y, gamma, beta, moments, dgamma, dbeta, dshortcut, slope, (long)n * w * w);
    const Out o = {.slope = _mm512_set1_ps(1), .add = add, .to = dx};
    const int beside = LINE / w, groups = (n + beside - 1) / beside;
    Work *works = aligned_alloc(64, threads * sizeof(Work));
    Taps taps;
    lay_out_weight(weight, taps, 1);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        Work *work = works + part;
        Tiles before;
        take_tiles(&before);
        memset(work->dz, 0, sizeof work->dz); /* zeros stay beside the images */
        memset(work->weight, 0, sizeof work->weight), memset(work->bias, 0, sizeof work->bias);
        for (int g = (long)groups * part / threads; g < (long)groups * (part + 1) / threads; g++) {
            long first = (long)g * beside * w * w, next = first + beside * w * w;
            int images = n - g * beside < beside ? n - g * beside : beside;
            lay_out(work, x, &l, first, images, w);
            const bf16 *ahead[3] = {x + next * C, dy + next * C, (z ? z : y ? y : dy) + next * C};
            add_weight(work, w, ahead);
            for (int row = 0; row < w; row++) convolve_line(work->dz, row, taps, &o, 0, first, images, w);
        }
        give_back(&before);
    }
    memset(dweight, 0, 9 * C * C * sizeof(float)), memset(dbias, 0, C * sizeof(float));
    for (int part = 0; part < threads; part++)
        for (int out = 0; out < C; out++) {
            int half = out / 4 % 2, j = out / 8 * 4 + out % 4; /* see `lay_out` */
            dbias[out] += works[part].bias[half][j];
            for (int tap = 0; tap < 9; tap++)
                for (int in = 0; in < C; in++)
                    dweight[(out * 9 + tap) * C + in] += works[part].weight[tap][in / 4 % 2][half][in / 8 * 4 + in % 4][j];
        }
    free(works);
}
