/* Stored bodies: what goes in comes out; what was changed on the way does not. */
#include "queue/body.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define OLD_KEY "2026-05:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
#define NEW_KEY "2026-11:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n"
#define FAKE_OLD_KEY "2026-05:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n"

#define OUR_ID SPAN_LIT("01JDABCDEFGHJKMNPQRSTVWXYZ-0")

static struct keyring *ring_of(const char *text)
{
    struct keyring *ring = NULL;
    struct err err = {0};
    if (keyring_parse(span_of(text), &ring, &err) != 0) {
        fail_msg("%s", err.text);
    }
    return ring;
}

/* A frame of its own memory, exactly as long: a read beyond it is seen by the sanitizer. */
static struct span encode(struct body_codec *codec, const struct body_piece *piece,
                          struct span first, struct span second)
{
    struct span frame = {0};
    assert_int_equal(body_encode(codec, piece, first, second, &frame), 0);
    char *copy = mem_alloc(frame.len);
    memcpy(copy, frame.data, frame.len);
    return span_make(copy, frame.len);
}

static void drop(struct span frame)
{
    mem_free((char *)(uintptr_t)frame.data);
}

static int decode(struct body_codec *codec, const struct body_piece *piece, struct span frame,
                  char **out)
{
    size_t bytes = 0;
    *out = NULL;
    int status = body_size(frame, &bytes);
    if (status != 0 || bytes != piece->body_bytes) {
        return ERR_INVAL;
    }
    *out = mem_alloc(body_piece_bytes(piece));
    return body_decode(codec, piece, frame, *out);
}

static void assert_reads(struct body_codec *codec, const struct body_piece *piece,
                         struct span frame, struct span wanted)
{
    char *out = NULL;
    assert_int_equal(decode(codec, piece, frame, &out), 0);
    assert_int_equal(body_piece_bytes(piece), wanted.len);
    if (wanted.len > 0) {
        assert_memory_equal(out, wanted.data, wanted.len);
    }
    mem_free(out);
}

static void fill_text(char *out, size_t len)
{
    static const char line[] = "The quick brown fox jumps over the lazy dog.\r\n";
    for (size_t i = 0; i < len; i++) {
        out[i] = line[(i + i / 997) % (sizeof(line) - 1)];
    }
}

static void fill_noise(char *out, size_t len)
{
    uint32_t word = 12345;
    for (size_t i = 0; i < len; i++) {
        word = word * 1664525 + 1013904223;
        out[i] = (char)(word >> 24);
    }
}

/* Every size around the places where something changes, cut at different places. */
static void round_trips(struct body_codec *codec)
{
    static const size_t sizes[] = {0, 1, 5, 1023, 1024, 1025, 4000, 65535, 65536};
    char *body = mem_alloc(BODY_SMALL_BYTES);
    for (int noise = 0; noise < 2; noise++) {
        (noise != 0 ? fill_noise : fill_text)(body, BODY_SMALL_BYTES);
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            struct body_piece piece = {.id = OUR_ID, .body_bytes = sizes[i]};
            size_t cuts[] = {0, sizes[i] / 3, sizes[i]};
            for (size_t c = 0; c < 3; c++) {
                struct span frame = encode(codec, &piece, span_make(body, cuts[c]),
                                           span_make(body + cuts[c], sizes[i] - cuts[c]));
                assert_reads(codec, &piece, frame, span_make(body, sizes[i]));
                drop(frame);
            }
        }
    }
    mem_free(body);
}

static void test_round_trips(void **state)
{
    (void)state;
    struct keyring *ring = ring_of(OLD_KEY);
    for (int compress = 0; compress < 2; compress++) {
        for (int sealed = 0; sealed < 2; sealed++) {
            struct body_codec *codec = body_codec_new(compress != 0, sealed != 0 ? ring : NULL);
            round_trips(codec);
            body_codec_rest(codec);
            round_trips(codec);
            body_codec_free(&codec);
        }
    }
    keyring_free(&ring);
}

/* Compression where it helps and nowhere else. */
static void test_sizes(void **state)
{
    (void)state;
    char *body = mem_alloc(8192);
    struct body_codec *codec = body_codec_new(true, NULL);
    struct body_codec *off = body_codec_new(false, NULL);
    struct body_piece piece = {.id = OUR_ID, .body_bytes = 8192};
    struct span frame = {0};
    fill_text(body, 8192);
    assert_int_equal(body_encode(codec, &piece, span_make(body, 8192), (struct span){0}, &frame),
                     0);
    assert_true(frame.len < 2000);
    assert_int_equal(body_encode(off, &piece, span_make(body, 8192), (struct span){0}, &frame), 0);
    assert_int_equal(frame.len, 8192 + 8);
    piece.body_bytes = 1000;
    assert_int_equal(body_encode(codec, &piece, span_make(body, 1000), (struct span){0}, &frame),
                     0);
    assert_int_equal(frame.len, 1000 + 8);
    fill_noise(body, 8192);
    piece.body_bytes = 8192;
    assert_int_equal(body_encode(codec, &piece, span_make(body, 8192), (struct span){0}, &frame),
                     0);
    assert_int_equal(frame.len, 8192 + 8);
    body_codec_free(&codec);
    body_codec_free(&off);
    mem_free(body);
}

static void test_pieces(void **state)
{
    (void)state;
    enum { BODY = 256 * 1024 * 2 + 700, PIECES = 3 };
    struct keyring *ring = ring_of(OLD_KEY);
    struct body_codec *codec = body_codec_new(true, ring);
    char *body = mem_alloc(BODY);
    struct span frames[PIECES];
    fill_text(body, BODY);
    assert_int_equal(body_piece_count(BODY), PIECES);
    struct body_piece piece = {.id = OUR_ID, .body_bytes = BODY};
    for (uint32_t i = 0; i < PIECES; i++) {
        piece.index = i;
        struct span bytes = span_make(body + i * BODY_PIECE_BYTES, body_piece_bytes(&piece));
        frames[i] = encode(codec, &piece, span_make(bytes.data, 100),
                           span_make(bytes.data + 100, bytes.len - 100));
        assert_reads(codec, &piece, frames[i], bytes);
    }
    /* One in another's place, one of another message. */
    char *out = NULL;
    piece.index = 0;
    assert_int_equal(decode(codec, &piece, frames[1], &out), ERR_INVAL);
    mem_free(out);
    ((char *)(uintptr_t)frames[1].data)[3] = 0;
    assert_int_equal(decode(codec, &piece, frames[1], &out), ERR_DENIED);
    ((char *)(uintptr_t)frames[1].data)[3] = 1;
    mem_free(out);
    piece.index = 1;
    piece.id = SPAN_LIT("01JDABCDEFGHJKMNPQRSTVWXYZ-1");
    assert_int_equal(decode(codec, &piece, frames[1], &out), ERR_DENIED);
    mem_free(out);
    for (size_t i = 0; i < PIECES; i++) {
        drop(frames[i]);
    }
    mem_free(body);
    body_codec_free(&codec);
    keyring_free(&ring);
}

/* Every cut and every flipped bit of a frame is noticed, or changes nothing. */
static void damage_all(struct body_codec *codec, const struct body_piece *piece, struct span frame,
                       struct span wanted)
{
    char *out = NULL;
    for (size_t len = 0; len < frame.len; len++) {
        char *cut = mem_alloc(len);
        memcpy(cut, frame.data, len);
        assert_int_not_equal(decode(codec, piece, span_make(cut, len), &out), 0);
        mem_free(out);
        mem_free(cut);
    }
    char *bytes = (char *)(uintptr_t)frame.data;
    for (size_t bit = 0; bit < frame.len * 8; bit++) {
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        int status = decode(codec, piece, frame, &out);
        /* zstd's frame header has a bit that means nothing. */
        if (status == 0 && memcmp(out, wanted.data, wanted.len) != 0) {
            fail_msg("bit %zu of byte %zu was changed unseen", bit % 8, bit / 8);
        }
        mem_free(out);
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
    }
    assert_reads(codec, piece, frame, wanted);
}

static void test_damage(void **state)
{
    (void)state;
    enum { BODY = 1500 };
    char body[BODY];
    struct keyring *ring = ring_of(OLD_KEY);
    struct body_piece piece = {.id = OUR_ID, .body_bytes = BODY};
    fill_text(body, BODY);
    for (int kind = 1; kind < 4; kind++) { /* zstd, sealed, both */
        struct body_codec *codec = body_codec_new((kind & 1) != 0, (kind & 2) != 0 ? ring : NULL);
        struct span frame = encode(codec, &piece, span_make(body, BODY), (struct span){0});
        damage_all(codec, &piece, frame, span_make(body, BODY));
        drop(frame);
        body_codec_free(&codec);
    }
    keyring_free(&ring);
}

static void test_keys(void **state)
{
    (void)state;
    char body[600];
    char why[300];
    char *out = NULL;
    struct body_piece piece = {.id = OUR_ID, .body_bytes = sizeof(body)};
    struct keyring *old_ring = ring_of(OLD_KEY);
    struct keyring *both_ring = ring_of("# rotated\n\n" NEW_KEY " " OLD_KEY);
    struct keyring *new_ring = ring_of(NEW_KEY);
    struct keyring *fake_ring = ring_of(FAKE_OLD_KEY);
    struct body_codec *old_codec = body_codec_new(true, old_ring);
    struct body_codec *both = body_codec_new(true, both_ring);
    struct body_codec *new_codec = body_codec_new(true, new_ring);
    struct body_codec *fake = body_codec_new(true, fake_ring);
    struct body_codec *none = body_codec_new(true, NULL);
    fill_noise(body, sizeof(body));
    struct span by_old = encode(old_codec, &piece, span_make(body, sizeof(body)), (struct span){0});
    struct span by_both = encode(both, &piece, span_make(body, sizeof(body)), (struct span){0});
    assert_int_equal(span_search(by_old, span_make(body, 16)), by_old.len);
    assert_reads(both, &piece, by_old, span_make(body, sizeof(body)));
    assert_reads(new_codec, &piece, by_both, span_make(body, sizeof(body)));
    assert_int_equal(decode(new_codec, &piece, by_old, &out), ERR_NOTFOUND);
    mem_free(out);
    body_explain(ERR_NOTFOUND, by_old, why, sizeof(why));
    assert_non_null(strstr(why, "\"2026-05\""));
    assert_int_equal(decode(none, &piece, by_old, &out), ERR_NOTFOUND);
    mem_free(out);
    assert_int_equal(decode(fake, &piece, by_old, &out), ERR_DENIED);
    mem_free(out);
    drop(by_old);
    drop(by_both);
    struct body_codec *codecs[] = {old_codec, both, new_codec, fake, none};
    struct keyring *rings[] = {old_ring, both_ring, new_ring, fake_ring};
    for (size_t i = 0; i < 5; i++) {
        body_codec_free(&codecs[i]);
    }
    for (size_t i = 0; i < 4; i++) {
        keyring_free(&rings[i]);
    }
}

/* What version 0.1 stored is read as it is. */
static void test_bare(void **state)
{
    (void)state;
    static const char body[] = "Received: from a\r\n\r\nHello.\r\n";
    struct body_codec *codec = body_codec_new(true, NULL);
    struct body_piece piece = {.id = OUR_ID, .body_bytes = sizeof(body) - 1};
    assert_reads(codec, &piece, span_of(body), span_of(body));
    size_t bytes = 0;
    assert_int_equal(body_size((struct span){0}, &bytes), ERR_INVAL);
    assert_int_equal(body_size(SPAN_LIT("\x01"), &bytes), ERR_INVAL);
    assert_int_equal(body_size(SPAN_LIT("\x03\xf8\0\0\0\0\0\1a"), &bytes), ERR_INVAL);
    assert_int_equal(body_size(SPAN_LIT("\x01\xf8\0\0\xff\xff\xff\xff"
                                        "a"),
                               &bytes),
                     ERR_INVAL);
    body_codec_free(&codec);
}

static void test_key_files(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *words;
    } bad[] = {
        {"", "no key"},
        {"# nothing\n", "no key"},
        {"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n", "Line 1"},
        {OLD_KEY "a b:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n", "Line 2"},
        {"k:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==\n", "32 bytes"},
        {"k:not base64\n", "32 bytes"},
        {OLD_KEY OLD_KEY, "2026-05"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct keyring *ring = NULL;
        struct err err = {0};
        assert_int_equal(keyring_parse(span_of(bad[i].text), &ring, &err), ERR_INVAL);
        if (strstr(err.text, bad[i].words) == NULL || strstr(err.text, "AAECAw") != NULL) {
            fail_msg("%zu: %s", i, err.text);
        }
    }
}

/* Real mail, where it is at hand. */
static void test_corpus(void **state)
{
    (void)state;
    const char *folder = HEAVE_SOURCE_DIR "/../shared/corpus/msg";
    DIR *dir = opendir(folder);
    if (dir == NULL) {
        print_message("no %s: skipped\n", folder);
        skip();
    }
    struct keyring *ring = ring_of(NEW_KEY OLD_KEY);
    struct body_codec *codec = body_codec_new(true, ring);
    char *body = mem_alloc(1 << 20);
    size_t read_bytes = 0, stored_bytes = 0;
    for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
        char path[600];
        (void)snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        FILE *file = fopen(path, "r");
        size_t len = file != NULL && entry->d_name[0] != '.' ? fread(body, 1, 1 << 20, file) : 0;
        if (file != NULL) {
            (void)fclose(file);
        }
        struct body_piece piece = {.id = OUR_ID, .body_bytes = len};
        for (; piece.index < body_piece_count(len); piece.index++) {
            struct span bytes = span_make(body + piece.index * BODY_PIECE_BYTES,
                                          body_piece_bytes(&piece));
            struct span frame = encode(codec, &piece, bytes, (struct span){0});
            assert_reads(codec, &piece, frame, bytes);
            stored_bytes += frame.len;
            drop(frame);
        }
        read_bytes += len;
    }
    (void)closedir(dir);
    assert_true(stored_bytes < read_bytes * 6 / 10);
    mem_free(body);
    body_codec_free(&codec);
    keyring_free(&ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips), cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_pieces),      cmocka_unit_test(test_damage),
        cmocka_unit_test(test_keys),        cmocka_unit_test(test_bare),
        cmocka_unit_test(test_key_files),   cmocka_unit_test(test_corpus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
