/* The small encodings: vectors of their RFCs, and what must be refused. */
#include "gateway/base/codec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

/* RFC 4648 10. */
static const struct {
    const char *plain;
    const char *standard;
    const char *url;
} vectors[] = {
    {"", "", ""},
    {"f", "Zg==", "Zg"},
    {"fo", "Zm8=", "Zm8"},
    {"foo", "Zm9v", "Zm9v"},
    {"foob", "Zm9vYg==", "Zm9vYg"},
    {"fooba", "Zm9vYmE=", "Zm9vYmE"},
    {"foobar", "Zm9vYmFy", "Zm9vYmFy"},
    {"\xfb\xff\xfe", "+//+", "-__-"},
};

static void test_base64_vectors(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 100);
    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
        struct span plain = span_of(vectors[i].plain);
        buf_reset(&b);
        assert_int_equal(codec_base64_encode(plain, 0, &b), ERR_OK);
        assert_true(span_eq(buf_span(&b), span_of(vectors[i].standard)));
        buf_reset(&b);
        assert_int_equal(codec_base64_decode(span_of(vectors[i].standard), false, &b), ERR_OK);
        assert_true(span_eq(buf_span(&b), plain));
        buf_reset(&b);
        assert_int_equal(codec_base64url_encode(plain, &b), ERR_OK);
        assert_true(span_eq(buf_span(&b), span_of(vectors[i].url)));
        buf_reset(&b);
        assert_int_equal(codec_base64url_decode(span_of(vectors[i].url), &b), ERR_OK);
        assert_true(span_eq(buf_span(&b), plain));
    }
    buf_release(&b);
}

static void test_base64_round_trip(void **state)
{
    (void)state;
    unsigned char bytes[600];
    codec_random(bytes, sizeof(bytes));
    struct buf text;
    struct buf back;
    buf_init(&text, 2000);
    buf_init(&back, 2000);
    for (size_t len = 0; len <= sizeof(bytes); len++) {
        buf_reset(&text);
        buf_reset(&back);
        struct span in = span_make((const char *)bytes, len);
        assert_int_equal(codec_base64_encode(in, 76, &text), ERR_OK);
        /* RFC 2045 6.8: no line above 76 characters, each ended. */
        struct span rest = buf_span(&text);
        while (rest.len > 0) {
            size_t line = span_search(rest, SPAN_LIT("\r\n"));
            assert_true(line < rest.len && line <= 76 && line > 0);
            rest.data += line + 2;
            rest.len -= line + 2;
        }
        assert_int_equal(codec_base64_decode(buf_span(&text), true, &back), ERR_OK);
        assert_true(span_eq(buf_span(&back), in));
        if (len > 0) {
            assert_int_equal(codec_base64_decode(buf_span(&text), false, &back), ERR_INVAL);
            assert_int_equal(buf_len(&back), len);
        }
    }
    buf_release(&text);
    buf_release(&back);
}

static void test_base64_bad(void **state)
{
    (void)state;
    static const char *const never[] = {"A",        "Zg===", "Z===", "=",
                                        "Zg==Zg==", "Zm9v=", "Zm9*", "Zg=v"};
    static const char *const strict[] = {"Zg", "Zm8", "Zm 9v", "Zm9v\r\n", "Zh=="};
    struct buf b;
    buf_init(&b, 100);
    for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
        assert_int_equal(codec_base64_decode(span_of(never[i]), false, &b), ERR_INVAL);
        assert_int_equal(codec_base64_decode(span_of(never[i]), true, &b), ERR_INVAL);
    }
    for (size_t i = 0; i < sizeof(strict) / sizeof(strict[0]); i++) {
        assert_int_equal(codec_base64_decode(span_of(strict[i]), false, &b), ERR_INVAL);
        assert_int_equal(buf_len(&b), 0);
        assert_int_equal(codec_base64_decode(span_of(strict[i]), true, &b), ERR_OK);
        buf_reset(&b);
    }
    static const char *const url[] = {"Zg==", "+//+", "Z", "Zh", "Zm9v "};
    for (size_t i = 0; i < sizeof(url) / sizeof(url[0]); i++) {
        assert_int_equal(codec_base64url_decode(span_of(url[i]), &b), ERR_INVAL);
    }
    assert_int_equal(buf_len(&b), 0);
    buf_release(&b);
}

static void test_base64_exact_room(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 4);
    assert_int_equal(codec_base64_decode(SPAN_LIT("Zm9vYg=="), false, &b), ERR_OK);
    assert_int_equal(codec_base64_decode(SPAN_LIT("Zg=="), false, &b), ERR_LIMIT);
    buf_reset(&b);
    assert_int_equal(codec_base64_encode(SPAN_LIT("foo"), 0, &b), ERR_OK);
    assert_int_equal(codec_base64_encode(SPAN_LIT("f"), 0, &b), ERR_LIMIT);
    buf_release(&b);
}

static void test_percent(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 100);
    assert_int_equal(codec_percent_encode(SPAN_LIT("a b/c~\xc3\xa4"), &b), ERR_OK);
    assert_true(span_eq(buf_span(&b), SPAN_LIT("a%20b%2Fc~%C3%A4")));
    buf_reset(&b);
    assert_int_equal(codec_percent_decode(SPAN_LIT("a%20b%2fc+%00"), false, &b), ERR_OK);
    assert_true(span_eq(buf_span(&b), span_make("a b/c+\0", 7)));
    buf_reset(&b);
    assert_int_equal(codec_percent_decode(SPAN_LIT("a+b"), true, &b), ERR_OK);
    assert_true(span_eq(buf_span(&b), SPAN_LIT("a b")));
    static const char *const bad[] = {"%", "%4", "a%4x", "%x4", "ok%"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(codec_percent_decode(span_of(bad[i]), false, &b), ERR_INVAL);
        assert_int_equal(buf_len(&b), 3);
    }
    buf_release(&b);
}

static void test_utf8(void **state)
{
    (void)state;
    static const char *const good[] = {"",
                                       "plain ascii, long enough for words",
                                       "\xc3\xa4",
                                       "\xe2\x82\xac",
                                       "\xf0\x9f\x98\x80",
                                       "\xf4\x8f\xbf\xbf",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "12345678\xc3\xa4.12345678"};
    static const char *const bad[] = {"\x80",
                                      "\xc3",
                                      "\xc0\xaf",
                                      "\xc1\xbf",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xe2\x82",
                                      "12345678\xff",
                                      "\xe2\x28\xa1",
                                      "\xff"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(codec_utf8_valid(span_of(good[i])));
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_false(codec_utf8_valid(span_of(bad[i])));
        assert_true(codec_has_8bit(span_of(bad[i])));
    }
    assert_false(codec_has_8bit(SPAN_LIT("only seven bits in here")));
    assert_true(codec_has_8bit(SPAN_LIT("0123456789abcde\x80")));
    assert_int_equal(codec_utf8_step(SPAN_LIT("\xe2\x82\xac.")), 3);
    assert_int_equal(codec_utf8_step(SPAN_LIT("\xe2\x82")), 0);
    assert_int_equal(codec_utf8_step(SPAN_LIT("")), 0);
}

static void test_decimal(void **state)
{
    (void)state;
    static const int64_t values[] = {0, 7, 10, -1, -90, 1234567890123, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        char room[CODEC_DECIMAL_MAX];
        char want[32];
        (void)snprintf(want, sizeof(want), "%lld", (long long)values[i]);
        assert_true(span_eq(codec_decimal(values[i], room), span_of(want)));
    }
}

static void test_hex_and_hash(void **state)
{
    (void)state;
    char text[9];
    codec_hex("\x00\x7f\x80\xff", 4, text);
    assert_string_equal(text, "007f80ff");
    /* Vectors of the FNV reference. */
    assert_true(codec_fnv1a(SPAN_LIT("")) == UINT64_C(0xcbf29ce484222325));
    assert_true(codec_fnv1a(SPAN_LIT("a")) == UINT64_C(0xaf63dc4c8601ec8c));
    assert_true(codec_fnv1a(SPAN_LIT("foobar")) == UINT64_C(0x85944171f73967e8));
}

static void test_random(void **state)
{
    (void)state;
    /* Pieces from the pool, over several refills, and one larger than the pool: none repeats. */
    unsigned char seen[1000][16];
    for (size_t i = 0; i < 1000; i++) {
        codec_random(seen[i], sizeof(seen[i]));
        for (size_t k = 0; k < i; k++) {
            assert_memory_not_equal(seen[i], seen[k], sizeof(seen[i]));
        }
    }
    unsigned char large[10000];
    memset(large, 0, sizeof(large));
    codec_random(large, sizeof(large));
    size_t zeros = 0;
    for (size_t i = 0; i < sizeof(large); i++) {
        zeros += large[i] == 0 ? 1 : 0;
    }
    assert_true(zeros < 200);
}

static void test_ulid(void **state)
{
    (void)state;
    char first[CODEC_ULID_LEN + 1];
    char second[CODEC_ULID_LEN + 1];
    /* The time part of the specification's example, 01ARYZ6S41. */
    codec_ulid(INT64_C(1469918176385), first);
    assert_int_equal(strlen(first), CODEC_ULID_LEN);
    assert_memory_equal(first, "01ARYZ6S41", 10);
    codec_ulid(INT64_C(1469918176385), second);
    assert_string_not_equal(first, second);
    codec_ulid(INT64_C(1469918176386), second);
    assert_true(strcmp(first, second) < 0);
    memcpy(first, second, sizeof(first));
    codec_ulid_next(first);
    assert_true(strcmp(first, second) > 0);
    memcpy(first, "01ARZ3NDEKTSV4RRFFQ69G5FZZ", sizeof(first));
    codec_ulid_next(first);
    assert_string_equal(first, "01ARZ3NDEKTSV4RRFFQ69G5G00");
    codec_ulid(INT64_C(281474976710655), first);
    assert_memory_equal(first, "7ZZZZZZZZZ", 10);
    assert_int_equal(strspn(first, "0123456789ABCDEFGHJKMNPQRSTVWXYZ"), CODEC_ULID_LEN);
    codec_ulid(-5, first);
    assert_memory_equal(first, "0000000000", 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decimal),
        cmocka_unit_test(test_base64_vectors),
        cmocka_unit_test(test_base64_round_trip),
        cmocka_unit_test(test_base64_bad),
        cmocka_unit_test(test_base64_exact_room),
        cmocka_unit_test(test_percent),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_hex_and_hash),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_ulid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
