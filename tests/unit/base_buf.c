/* Spans, allocation, buffers and arenas through their header. */
#include "gateway/base/buf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void test_span_compare(void **state)
{
    (void)state;
    assert_true(span_eq(SPAN_LIT("abc"), span_of("abc")));
    assert_false(span_eq(SPAN_LIT("abc"), SPAN_LIT("abC")));
    assert_true(span_eq(span_make(NULL, 0), SPAN_LIT("")));
    assert_true(span_ieq(SPAN_LIT("STARTTLS"), SPAN_LIT("StartTls")));
    assert_false(span_ieq(SPAN_LIT("@["), SPAN_LIT("`{")));
    assert_true(span_starts(SPAN_LIT("MAIL FROM"), SPAN_LIT("MAIL")));
    assert_false(span_starts(SPAN_LIT("MA"), SPAN_LIT("MAIL")));
    assert_true(span_istarts(SPAN_LIT("mail from"), SPAN_LIT("MAIL")));
    assert_true(span_ends(SPAN_LIT("a.example"), SPAN_LIT(".example")));
    assert_false(span_ends(SPAN_LIT("ample"), SPAN_LIT(".example")));
    assert_true(span_iends(SPAN_LIT("a.EXAMPLE"), SPAN_LIT(".example")));
    assert_true(span_ends(span_make(NULL, 0), SPAN_LIT("")));
}

static void test_span_find(void **state)
{
    (void)state;
    assert_int_equal(span_find(SPAN_LIT("a:b:c"), ':'), 1);
    assert_int_equal(span_find(SPAN_LIT("abc"), ':'), 3);
    assert_int_equal(span_find(span_make(NULL, 0), ':'), 0);
    assert_int_equal(span_search(SPAN_LIT("one\r\n.\r\n"), SPAN_LIT("\r\n.\r\n")), 3);
    assert_int_equal(span_search(SPAN_LIT("one"), SPAN_LIT("onetwo")), 3);
    assert_int_equal(span_search(SPAN_LIT("one"), SPAN_LIT("")), 0);
    assert_true(span_eq(span_trim(SPAN_LIT(" \t a b\r\n")), SPAN_LIT("a b")));
    assert_int_equal(span_trim(SPAN_LIT(" \r\n ")).len, 0);
}

static void test_span_cut(void **state)
{
    (void)state;
    struct span rest = SPAN_LIT("a,,b");
    assert_true(span_eq(span_cut(&rest, ','), SPAN_LIT("a")));
    assert_true(span_eq(span_cut(&rest, ','), SPAN_LIT("")));
    assert_true(span_eq(span_cut(&rest, ','), SPAN_LIT("b")));
    assert_int_equal(rest.len, 0);
    assert_int_equal(span_cut(&rest, ',').len, 0);
}

static void test_span_to_u64(void **state)
{
    (void)state;
    uint64_t value = 7;
    assert_int_equal(span_to_u64(SPAN_LIT("18446744073709551615"), UINT64_MAX, &value), ERR_OK);
    assert_true(value == UINT64_MAX);
    value = 7;
    assert_int_equal(span_to_u64(SPAN_LIT("18446744073709551616"), UINT64_MAX, &value), ERR_INVAL);
    assert_int_equal(span_to_u64(SPAN_LIT("101"), 100, &value), ERR_INVAL);
    assert_int_equal(span_to_u64(SPAN_LIT(""), 100, &value), ERR_INVAL);
    assert_int_equal(span_to_u64(SPAN_LIT("-1"), 100, &value), ERR_INVAL);
    assert_int_equal(span_to_u64(SPAN_LIT("1 "), 100, &value), ERR_INVAL);
    assert_true(value == 7);
    assert_int_equal(span_to_u64(SPAN_LIT("0100"), 100, &value), ERR_OK);
    assert_true(value == 100);
}

static void test_sizes(void **state)
{
    (void)state;
    size_t size = 0;
    assert_int_equal(size_add(SIZE_MAX, 1, &size), ERR_LIMIT);
    assert_int_equal(size_mul(SIZE_MAX / 2, 3, &size), ERR_LIMIT);
    assert_int_equal(size_add(SIZE_MAX - 1, 1, &size), ERR_OK);
    assert_true(size == SIZE_MAX);
    assert_int_equal(size_mul(0, SIZE_MAX, &size), ERR_OK);
    assert_true(size == 0);
    assert_int_equal(size_mul(SIZE_MAX, 0, &size), ERR_OK);
}

static void test_buf_grows(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 100000);
    assert_null(b.data);
    for (int i = 0; i < 100000; i++) {
        assert_int_equal(buf_append_byte(&b, (char)('a' + i % 26)), ERR_OK);
    }
    assert_int_equal(buf_len(&b), 100000);
    for (size_t i = 0; i < 100000; i++) {
        assert_int_equal(buf_span(&b).data[i], 'a' + (int)(i % 26));
    }
    assert_int_equal(buf_append_byte(&b, 'x'), ERR_LIMIT);
    assert_int_equal(buf_len(&b), 100000);
    /* The memory follows the contents and does not pass the maximum by more than the NUL. */
    assert_true(b.cap <= 100001);
    const char *text = buf_text(&b);
    assert_non_null(text);
    assert_int_equal(strlen(text), 100000);
    buf_release(&b);
    assert_null(b.data);
    assert_int_equal(buf_append(&b, SPAN_LIT("again")), ERR_OK);
    buf_release(&b);
}

static void test_buf_limit(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 10);
    char *room = NULL;
    assert_int_equal(buf_reserve(&b, 11, &room), ERR_LIMIT);
    assert_null(room);
    assert_int_equal(buf_append(&b, SPAN_LIT("12345678")), ERR_OK);
    assert_int_equal(buf_append(&b, SPAN_LIT("abc")), ERR_LIMIT);
    assert_int_equal(buf_printf(&b, "%d", 123), ERR_LIMIT);
    assert_true(span_eq(buf_span(&b), SPAN_LIT("12345678")));
    assert_int_equal(buf_printf(&b, "%d", 90), ERR_OK);
    assert_true(span_eq(buf_span(&b), SPAN_LIT("1234567890")));
    assert_string_equal(buf_text(&b), "1234567890");
    assert_int_equal(buf_reserve(&b, SIZE_MAX, &room), ERR_LIMIT);
    buf_consume(&b, 3);
    assert_int_equal(buf_append(&b, SPAN_LIT("abc")), ERR_OK);
    assert_true(span_eq(buf_span(&b), SPAN_LIT("4567890abc")));
    buf_release(&b);
}

/* A buf that is filled and consumed in turns neither loses bytes nor grows without end. */
static void test_buf_wraps(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 1000);
    unsigned char in = 0;
    unsigned char out = 0;
    for (int round = 0; round < 20000; round++) {
        size_t put = (size_t)(round * 7 % 13);
        while (put-- > 0 && buf_append_byte(&b, (char)in) == ERR_OK) {
            in++;
        }
        size_t take = (size_t)(round * 5 % 13) < buf_len(&b) ? (size_t)(round * 5 % 13)
                                                             : buf_len(&b);
        for (size_t i = 0; i < take; i++) {
            assert_int_equal((unsigned char)buf_span(&b).data[i], out);
            out++;
        }
        buf_consume(&b, take);
        assert_true(b.cap <= 2000);
    }
    buf_release(&b);
}

static void test_buf_edit(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 100);
    assert_int_equal(buf_append(&b, SPAN_LIT("abcdef")), ERR_OK);
    buf_truncate(&b, 4);
    buf_consume(&b, 1);
    assert_true(span_eq(buf_span(&b), SPAN_LIT("bcd")));
    assert_string_equal(buf_text(&b), "bcd");
    buf_consume(&b, 3);
    assert_int_equal(b.start, 0);
    buf_reset(&b);
    char *room = NULL;
    assert_int_equal(buf_reserve(&b, 50, &room), ERR_OK);
    memset(room, 'z', 50);
    buf_commit(&b, 2);
    assert_true(span_eq(buf_span(&b), SPAN_LIT("zz")));
    assert_int_equal(buf_printf(&b, "%s", "0123456789012345678901234567890123456789"), ERR_OK);
    assert_int_equal(buf_len(&b), 42);
    buf_release(&b);
}

/* Sliding is the one move whose old place can still be looked at. */
static void test_buf_secret(void **state)
{
    (void)state;
    struct buf b;
    buf_init_secret(&b, 64);
    char *room = NULL;
    assert_int_equal(buf_reserve(&b, 64, &room), ERR_OK);
    memset(room, 's', 64);
    buf_commit(&b, 64);
    buf_consume(&b, 60);
    assert_int_equal(buf_append(&b, SPAN_LIT("new")), ERR_OK);
    assert_int_equal(b.start, 0);
    assert_true(span_eq(buf_span(&b), SPAN_LIT("ssssnew")));
    for (size_t i = b.end; i < 64; i++) {
        assert_int_equal(b.data[i], 0);
    }
    buf_release(&b);
    assert_true(b.secret);

    char bytes[4] = {'a', 'b', 'c', 'd'};
    mem_wipe(bytes, sizeof(bytes));
    assert_memory_equal(bytes, "\0\0\0\0", 4);
}

static void test_arena(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a, 1000000);
    char *last = NULL;
    for (size_t i = 1; i < 1000; i++) {
        char *bytes = arena_alloc(&a, i);
        assert_non_null(bytes);
        assert_int_equal((uintptr_t)bytes % _Alignof(max_align_t), 0);
        for (size_t k = 0; k < i; k++) {
            assert_int_equal(bytes[k], 0);
        }
        memset(bytes, 'x', i);
        assert_true(bytes != last);
        last = bytes;
    }
    char *large = arena_alloc(&a, 300000);
    assert_non_null(large);
    struct span copy = arena_dup(&a, SPAN_LIT("text"));
    assert_int_equal(copy.len, 4);
    assert_string_equal(copy.data, "text");
    assert_null(arena_alloc(&a, 1000000));
    assert_null(arena_alloc(&a, SIZE_MAX));
    size_t used = a.used_bytes;
    assert_true(used <= 1000000);
    assert_non_null(arena_alloc(&a, 1000000 - used - 32));
    assert_null(arena_dup(&a, SPAN_LIT("there is no room for so long a text any more")).data);
    arena_release(&a);
    assert_int_equal(a.used_bytes, 0);
    assert_non_null(arena_alloc(&a, 10));
    arena_release(&a);
}

static void test_errors(void **state)
{
    (void)state;
    struct err err = {.code = 0};
    assert_int_equal(err_set(&err, ERR_IO, "The file %s is gone.", "x"), ERR_IO);
    assert_int_equal(err.code, ERR_IO);
    assert_string_equal(err.text, "The file x is gone.");
    assert_int_equal(err_set(NULL, ERR_IO, "nobody reads this"), ERR_IO);
    char long_text[1000];
    memset(long_text, 'a', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    assert_int_equal(err_set(&err, ERR_LIMIT, "%s", long_text), ERR_LIMIT);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    assert_string_equal(err_name(ERR_OK), "ERR_OK");
    assert_string_equal(err_name(ERR_TIMEOUT), "ERR_TIMEOUT");
    assert_string_equal(err_name(ERR_AGAIN), "ERR_AGAIN");
    assert_string_equal(err_name(1), "ERR_UNKNOWN");
    assert_string_equal(err_name(-1000), "ERR_UNKNOWN");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_span_compare), cmocka_unit_test(test_span_find),
        cmocka_unit_test(test_span_cut),     cmocka_unit_test(test_span_to_u64),
        cmocka_unit_test(test_sizes),        cmocka_unit_test(test_buf_grows),
        cmocka_unit_test(test_buf_limit),    cmocka_unit_test(test_buf_wraps),
        cmocka_unit_test(test_buf_edit),     cmocka_unit_test(test_buf_secret),
        cmocka_unit_test(test_arena),        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
