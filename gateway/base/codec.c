#include "gateway/base/codec.h"

#include <errno.h>
#include <sys/random.h>

/* ---- Base64 ---- */

static const char alphabet_standard[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char alphabet_url[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static uint32_t take_group(const unsigned char *in, size_t count)
{
    uint32_t group = (uint32_t)in[0] << 16;
    if (count > 1) {
        group |= (uint32_t)in[1] << 8;
    }
    if (count > 2) {
        group |= in[2];
    }
    return group;
}

/* Writes the 2..4 characters (or 4 with padding) of `count` = 1..3 bytes; returns how many. */
static size_t put_group(const char *alphabet, bool pad, uint32_t group, size_t count, char *out)
{
    size_t chars = count + 1;
    for (size_t i = 0; i < 4; i++) {
        if (i < chars) {
            out[i] = alphabet[group >> (18 - 6 * i) & 63];
        } else if (pad) {
            out[i] = '=';
        }
    }
    return pad ? 4 : chars;
}

/* An upper bound of the encoded size; exact without lines. */
static int encoded_size(size_t len, size_t line, size_t *out_size)
{
    size_t groups = len / 3 + (len % 3 != 0 ? 1 : 0);
    size_t chars = 0;
    int rc = size_mul(groups, 4, &chars);
    if (rc != ERR_OK || line == 0) {
        *out_size = chars;
        return rc;
    }
    size_t breaks = 0;
    rc = size_mul(chars / line + (chars % line != 0 ? 1 : 0), 2, &breaks);
    return rc != ERR_OK ? rc : size_add(chars, breaks, out_size);
}

int codec_base64_encode(struct span in, size_t line, struct buf *out)
{
    size_t size = 0;
    char *to = NULL;
    int rc = encoded_size(in.len, line, &size);
    if (rc == ERR_OK) {
        rc = buf_reserve(out, size, &to);
    }
    if (rc != ERR_OK || in.len == 0) {
        return rc;
    }
    const unsigned char *from = (const unsigned char *)in.data;
    size_t written = 0;
    size_t column = 0;
    for (size_t i = 0; i < in.len; i += 3) {
        size_t count = in.len - i < 3 ? in.len - i : 3;
        char four[4];
        (void)put_group(alphabet_standard, true, take_group(from + i, count), count, four);
        for (size_t k = 0; k < 4; k++) {
            to[written++] = four[k];
            if (line > 0 && ++column == line) {
                to[written++] = '\r';
                to[written++] = '\n';
                column = 0;
            }
        }
    }
    if (column > 0) {
        to[written++] = '\r';
        to[written++] = '\n';
    }
    buf_commit(out, written);
    return ERR_OK;
}

int codec_base64url_encode(struct span in, struct buf *out)
{
    size_t size = 0;
    char *to = NULL;
    int rc = encoded_size(in.len, 0, &size);
    if (rc != ERR_OK) {
        return rc;
    }
    /* Two characters instead of four for one byte over, three for two. */
    size -= in.len % 3 != 0 ? 3 - in.len % 3 : 0;
    rc = buf_reserve(out, size, &to);
    if (rc != ERR_OK || in.len == 0) {
        return rc;
    }
    const unsigned char *from = (const unsigned char *)in.data;
    size_t written = 0;
    for (size_t i = 0; i < in.len; i += 3) {
        size_t count = in.len - i < 3 ? in.len - i : 3;
        written += put_group(alphabet_url, false, take_group(from + i, count), count, to + written);
    }
    buf_commit(out, written);
    return ERR_OK;
}

/* The value of a character, or -1. */
static int sextet(char c, bool url)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    if (c == (url ? '-' : '+')) {
        return 62;
    }
    return c == (url ? '_' : '/') ? 63 : -1;
}

/* Which departures from the canonical form are accepted. */
struct leniency {
    bool url;
    bool blanks;     /* white space is skipped */
    bool no_padding; /* padding may be missing */
    bool no_equals;  /* padding must be missing */
    bool loose_bits; /* the unused bits of the last character may be set */
};

/* Collects sextets; `to` has room for 3 bytes a group of the whole input. */
struct decoder {
    uint32_t group;
    unsigned chars;   /* of the unfinished group */
    unsigned padding; /* '=' seen */
    size_t written;
};

static int decode_char(struct decoder *d, char c, const struct leniency *how, char *to)
{
    if (how->blanks && (c == ' ' || c == '\t' || c == '\r' || c == '\n')) {
        return ERR_OK;
    }
    if (c == '=') {
        d->padding++;
        bool fits = d->chars >= 2 && d->chars + d->padding <= 4;
        return fits && !how->no_equals ? ERR_OK : ERR_INVAL;
    }
    int value = sextet(c, how->url);
    if (value < 0 || d->padding > 0) {
        return ERR_INVAL;
    }
    d->group = d->group << 6 | (uint32_t)value;
    if (++d->chars == 4) {
        to[d->written++] = (char)(d->group >> 16 & 255);
        to[d->written++] = (char)(d->group >> 8 & 255);
        to[d->written++] = (char)(d->group & 255);
        d->group = 0;
        d->chars = 0;
    }
    return ERR_OK;
}

static int decode_end(struct decoder *d, const struct leniency *how, char *to)
{
    if (d->chars == 0) {
        return ERR_OK;
    }
    bool padded = d->chars + d->padding == 4;
    if (d->chars == 1 || (!padded && !(how->no_padding && d->padding == 0))) {
        return ERR_INVAL;
    }
    uint32_t unused = d->chars == 2 ? 15 : 3;
    if ((d->group & unused) != 0 && !how->loose_bits) {
        return ERR_INVAL;
    }
    uint32_t group = d->group << 6 * (4 - d->chars);
    to[d->written++] = (char)(group >> 16 & 255);
    if (d->chars == 3) {
        to[d->written++] = (char)(group >> 8 & 255);
    }
    return ERR_OK;
}

/* Base64 text may carry line breaks and padding, which make no bytes; so the room is taken for what
 * can really come out, or a buf that the result just fits would be refused. */
static size_t decoded_size(struct span in, const struct leniency *how)
{
    size_t chars = 0;
    for (size_t i = 0; i < in.len; i++) {
        chars += sextet(in.data[i], how->url) >= 0 ? 1 : 0;
    }
    return chars / 4 * 3 + chars % 4 * 3 / 4;
}

static int decode(struct span in, const struct leniency *how, struct buf *out)
{
    char *to = NULL;
    int rc = buf_reserve(out, decoded_size(in, how), &to);
    if (rc != ERR_OK) {
        return rc;
    }
    struct decoder d = {.group = 0};
    for (size_t i = 0; i < in.len; i++) {
        rc = decode_char(&d, in.data[i], how, to);
        if (rc != ERR_OK) {
            return rc;
        }
    }
    rc = decode_end(&d, how, to);
    if (rc == ERR_OK) {
        buf_commit(out, d.written);
    }
    return rc;
}

int codec_base64_decode(struct span in, bool lenient, struct buf *out)
{
    const struct leniency how = {.blanks = lenient, .no_padding = lenient, .loose_bits = lenient};
    return decode(in, &how, out);
}

int codec_base64url_decode(struct span in, struct buf *out)
{
    const struct leniency how = {.url = true, .no_padding = true, .no_equals = true};
    return decode(in, &how, out);
}

/* ---- Decimal, hex and percent ---- */

struct span codec_decimal(int64_t value, char room[CODEC_DECIMAL_MAX])
{
    /* Unsigned, because INT64_MIN has no positive twin. */
    uint64_t left = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    size_t at = CODEC_DECIMAL_MAX;
    do {
        room[--at] = (char)('0' + left % 10);
        left /= 10;
    } while (left != 0);
    if (value < 0) {
        room[--at] = '-';
    }
    return span_make(room + at, CODEC_DECIMAL_MAX - at);
}

void codec_hex(const void *data, size_t len, char *out)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *bytes = data;
    for (size_t i = 0; i < len; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * len] = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int codec_percent_decode(struct span in, bool plus_is_space, struct buf *out)
{
    size_t before = buf_len(out);
    int rc = ERR_OK;
    for (size_t i = 0; i < in.len && rc == ERR_OK; i++) {
        char c = in.data[i];
        if (c == '%') {
            int high = in.len - i > 2 ? hex_value(in.data[i + 1]) : -1;
            int low = in.len - i > 2 ? hex_value(in.data[i + 2]) : -1;
            if (high < 0 || low < 0) {
                rc = ERR_INVAL;
                break;
            }
            c = (char)(high << 4 | low);
            i += 2;
        } else if (c == '+' && plus_is_space) {
            c = ' ';
        }
        rc = buf_append_byte(out, c);
    }
    if (rc != ERR_OK) {
        buf_truncate(out, before);
    }
    return rc;
}

static bool is_unreserved(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_' || c == '~';
}

int codec_percent_encode(struct span in, struct buf *out)
{
    static const char digits[] = "0123456789ABCDEF";
    size_t before = buf_len(out);
    int rc = ERR_OK;
    for (size_t i = 0; i < in.len && rc == ERR_OK; i++) {
        unsigned char c = (unsigned char)in.data[i];
        if (is_unreserved(in.data[i])) {
            rc = buf_append_byte(out, in.data[i]);
        } else {
            char three[3] = {'%', digits[c >> 4], digits[c & 15]};
            rc = buf_append(out, span_make(three, sizeof(three)));
        }
    }
    if (rc != ERR_OK) {
        buf_truncate(out, before);
    }
    return rc;
}

/* ---- UTF-8 ---- */

#define HIGH_BITS UINT64_C(0x8080808080808080)

/* How many bytes at the front are ASCII, eight at a time. */
static size_t ascii_run(struct span in)
{
    size_t at = 0;
    while (in.len - at >= sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, in.data + at, sizeof(word));
        if ((word & HIGH_BITS) != 0) {
            break;
        }
        at += sizeof(word);
    }
    while (at < in.len && (unsigned char)in.data[at] < 0x80) {
        at++;
    }
    return at;
}

/* Length of the well-formed sequence at the front (Unicode table 3-7), or 0. */
static size_t sequence_len(struct span in)
{
    const unsigned char *s = (const unsigned char *)in.data;
    size_t len = s[0] < 0x80 ? 1 : s[0] < 0xC2 ? 0 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    if (len == 0 || s[0] > 0xF4 || in.len < len) {
        return 0;
    }
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    bool overlong = (s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xF0 && s[1] < 0x90);
    bool surrogate = s[0] == 0xED && s[1] > 0x9F;
    bool too_high = s[0] == 0xF4 && s[1] > 0x8F;
    return overlong || surrogate || too_high ? 0 : len;
}

bool codec_utf8_valid(struct span in)
{
    while (in.len > 0) {
        size_t step = ascii_run(in);
        if (step == 0) {
            step = sequence_len(in);
            if (step == 0) {
                return false;
            }
        }
        in.data += step;
        in.len -= step;
    }
    return true;
}

size_t codec_utf8_step(struct span in)
{
    return in.len > 0 ? sequence_len(in) : 0;
}

bool codec_has_8bit(struct span in)
{
    return ascii_run(in) < in.len;
}

/* ---- Random bytes and identifiers ---- */

/* Identifiers are made for every message, and a system call each is what would cost. So each thread
 * draws 4 KiB at a time; bytes handed out are wiped from the pool, so that what was given once
 * cannot be read here later. */
struct random_pool {
    unsigned char bytes[4096];
    size_t left;
};
static _Thread_local struct random_pool pool;

static void draw(unsigned char *out, size_t len)
{
    size_t got = 0;
    while (got < len) {
        ssize_t n = getrandom(out + got, len - got, 0);
        ASSERT(n >= 0 || errno == EINTR);
        got += n > 0 ? (size_t)n : 0;
    }
}

void codec_random(void *out, size_t len)
{
    if (len > sizeof(pool.bytes) / 8) {
        draw(out, len);
        return;
    }
    if (pool.left < len) {
        draw(pool.bytes, sizeof(pool.bytes));
        pool.left = sizeof(pool.bytes);
    }
    unsigned char *from = pool.bytes + (pool.left - len);
    if (len > 0) {
        memcpy(out, from, len);
        mem_wipe(from, len);
    }
    pool.left -= len;
}

static const char crockford[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

void codec_ulid(int64_t wall_ms, char out[CODEC_ULID_LEN + 1])
{
    /* Ten characters could hold 50 bits; a ULID has 48 there, so the first is at most '7'. */
    uint64_t time = wall_ms > 0 ? (uint64_t)wall_ms & ((UINT64_C(1) << 48) - 1) : 0;
    for (size_t i = 10; i-- > 0;) {
        out[i] = crockford[time & 31];
        time >>= 5;
    }
    unsigned char random[16];
    codec_random(random, sizeof(random));
    for (size_t i = 0; i < sizeof(random); i++) {
        out[10 + i] = crockford[random[i] & 31];
    }
    out[CODEC_ULID_LEN] = '\0';
}

void codec_ulid_next(char ulid[CODEC_ULID_LEN + 1])
{
    for (size_t i = CODEC_ULID_LEN; i-- > 0;) {
        const char *digit = strchr(crockford, ulid[i]);
        ASSERT(digit != NULL && *digit != '\0');
        if (*digit != 'Z') {
            ulid[i] = digit[1];
            return;
        }
        ulid[i] = '0'; /* carried to the place before */
    }
}

uint64_t codec_fnv1a(struct span in)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < in.len; i++) {
        hash ^= (unsigned char)in.data[i];
        hash *= UINT64_C(0x100000001b3);
    }
    return hash;
}
