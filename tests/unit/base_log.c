/* Log lines as they arrive on standard error, which each test replaces by a pipe. */
#include "gateway/base/log.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

static char got[65536];
static int capture_end; /* where what was written can be read */

/* Runs `write_lines` with standard error going to a pipe and leaves what came in `got`. */
static void capture(void (*write_lines)(void))
{
    int ends[2];
    assert_int_equal(pipe2(ends, O_NONBLOCK), 0);
    int saved = dup(STDERR_FILENO);
    assert_true(saved >= 0);
    assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
    capture_end = ends[0];
    write_lines();
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    close(ends[1]);
    ssize_t len = read(ends[0], got, sizeof(got) - 1);
    close(ends[0]);
    got[len > 0 ? len : 0] = '\0';
}

/* The line without its time, which must look like one. */
static const char *after_time(void)
{
    assert_true(strlen(got) > 25);
    assert_int_equal(got[10], 'T');
    assert_int_equal(got[23], 'Z');
    return got + 25;
}

static void write_text(void)
{
    log_event(LOG_INFO, "smtp.session", LOG_TEXT("id", "01AR"), LOG_INT("messages", -5),
              LOG_TEXT("empty", ""), LOG_TEXT("null", NULL), LOG_TEXT("peer", "a b=\"c\"\\"),
              LOG_TEXT("utf8", "gr\xc3\xbc\xc3\x9f"));
}

static void test_text(void **state)
{
    (void)state;
    log_configure(LOG_INFO, LOG_FORM_TEXT, false);
    capture(write_text);
    assert_string_equal(after_time(),
                        "info smtp.session id=01AR messages=-5 peer=\"a b=\\\"c\\\"\\\\\" "
                        "utf8=\"gr\xc3\xbc\xc3\x9f\"\n");
}

static void write_hostile(void)
{
    log_event(LOG_WARN, "x",
              LOG_SPAN("a", SPAN_LIT("x\r\n2026 info forged\x1b[31m\0\xff\xc3\x80\x7f\t")),
              LOG_TEXT("b", "\xe2\x80\xae\xe2\x80\xa8\xc2\x85"));
}

static void test_escapes(void **state)
{
    (void)state;
    log_configure(LOG_INFO, LOG_FORM_TEXT, false);
    capture(write_hostile);
    assert_string_equal(after_time(),
                        "warn x a=\"x\\r\\n2026 info forged\\x1b[31m\\x00\\xff\xc3\x80\\x7f\\t\" "
                        "b=\"\\xe2\\x80\\xae\\xe2\\x80\\xa8\\xc2\\x85\"\n");
}

static void test_json(void **state)
{
    (void)state;
    log_configure(LOG_INFO, LOG_FORM_JSON, false);
    capture(write_hostile);
    assert_memory_equal(got, "{\"time\":\"2", 10);
    assert_non_null(strstr(got, "\"level\":\"warn\",\"event\":\"x\",\"a\":\"x\\r\\n2026 info forged"
                                "\\u001b[31m\\u0000\\ufffd\xc3\x80\\u007f\\t\",\"b\":\""));
    assert_string_equal(got + strlen(got) - 3, "\"}\n");
    capture(write_text);
    assert_non_null(strstr(got, "\"messages\":-5,\"peer\":\"a b=\\\"c\\\"\\\\\",\"utf8\""));
}

static void write_long(void)
{
    char value[1000];
    memset(value, 'v', sizeof(value));
    /* The cut falls into a character, which must not be halved. */
    memcpy(value + 399, "\xe2\x82\xac", 3);
    struct span text = span_make(value, sizeof(value));
    log_event(LOG_ERROR, "long", LOG_SPAN("a", text));
}

static void test_cuts_values(void **state)
{
    (void)state;
    log_configure(LOG_INFO, LOG_FORM_TEXT, false);
    capture(write_long);
    const char *value = strstr(got, "a=\"");
    assert_non_null(value);
    assert_int_equal(strspn(value + 3, "v"), 399);
    assert_string_equal(value + 3 + 399, "\xe2\x82\xac...\"\n");
}

static void write_many(void)
{
    char value[400];
    memset(value, '\x01', sizeof(value));
    struct span text = span_make(value, sizeof(value));
    log_event(LOG_ERROR, "many", LOG_SPAN("a", text), LOG_SPAN("b", text), LOG_SPAN("c", text),
              LOG_SPAN("d", text), LOG_SPAN("e", text), LOG_SPAN("f", text), LOG_SPAN("g", text));
}

static void test_cuts_lines(void **state)
{
    (void)state;
    log_configure(LOG_INFO, LOG_FORM_TEXT, false);
    capture(write_many);
    assert_true(strlen(got) <= 8192);
    assert_string_equal(got + strlen(got) - 10, " cut=true\n");
    log_configure(LOG_INFO, LOG_FORM_JSON, false);
    capture(write_many);
    assert_true(strlen(got) <= 8192);
    assert_string_equal(got + strlen(got) - 14, "\",\"cut\":true}\n");
}

static void write_levels(void)
{
    log_event(LOG_DEBUG, "d", LOG_INT("n", 1));
    log_event(LOG_INFO, "i", LOG_INT("n", 1));
    log_event(LOG_WARN, "w", LOG_INT("n", 1));
}

static void test_levels(void **state)
{
    (void)state;
    log_configure(LOG_WARN, LOG_FORM_TEXT, false);
    assert_false(log_wants(LOG_INFO));
    assert_true(log_wants(LOG_WARN));
    capture(write_levels);
    assert_string_equal(after_time(), "warn w n=1\n");
    log_configure(LOG_DEBUG, LOG_FORM_TEXT, false);
    capture(write_levels);
    assert_non_null(strstr(got, "debug d n=1\n"));
    assert_non_null(strstr(got, "info i n=1\n"));
}

static void check_address(const char *address, const char *expected)
{
    char room[32];
    struct span logged = log_address(span_of(address), room, sizeof(room));
    assert_true(span_eq(logged, span_of(expected)));
}

static void test_addresses(void **state)
{
    (void)state;
    log_configure(LOG_INFO, LOG_FORM_TEXT, false);
    check_address("alice@contoso.com", "a***@contoso.com");
    check_address("\xc3\xa4rger@x.de", "\xc3\xa4***@x.de");
    check_address("\"a@b\"@x.de", "\"***@x.de");
    check_address("alice", "a***");
    check_address("@x.de", "@x.de");
    check_address("", "");
    check_address("a@a-very-long-domain-name-that-does-not-fit.example",
                  "a***@a-very-long-domain-name-tha");
    log_configure(LOG_INFO, LOG_FORM_TEXT, true);
    check_address("alice@contoso.com", "alice@contoso.com");
}

static void write_collected(void)
{
    char tail[16];
    log_collect(true);
    log_event(LOG_INFO, "first", LOG_INT("n", 1));
    ssize_t len = read(capture_end, tail, sizeof(tail));
    assert_true(len < 0); /* nothing left yet */
    log_flush();
    for (int i = 0; i < 40; i++) {
        log_event(LOG_INFO, "many", LOG_TEXT("text", "0123456789012345678901234567890123456789"),
                  LOG_TEXT("more", "0123456789012345678901234567890123456789"), LOG_INT("i", i));
    }
    log_collect(false);
    log_event(LOG_INFO, "last", LOG_INT("n", 2));
}

/* Lines wait for the flush, none is lost or cut when more come than are kept, and the order stays.
 */
static void test_collecting(void **state)
{
    (void)state;
    log_configure(LOG_INFO, LOG_FORM_TEXT, false);
    capture(write_collected);
    assert_non_null(strstr(got, "info first n=1\n"));
    const char *at = got;
    for (int i = 0; i < 40; i++) {
        char want[16];
        (void)snprintf(want, sizeof(want), " i=%d\n", i);
        at = strstr(at, want);
        assert_non_null(at);
    }
    assert_non_null(strstr(at, "info last n=2\n"));
    size_t lines = 0;
    for (const char *c = got; *c != '\0'; c++) {
        lines += *c == '\n';
    }
    assert_int_equal(lines, 42);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),       cmocka_unit_test(test_escapes),
        cmocka_unit_test(test_json),       cmocka_unit_test(test_cuts_values),
        cmocka_unit_test(test_cuts_lines), cmocka_unit_test(test_levels),
        cmocka_unit_test(test_addresses),  cmocka_unit_test(test_collecting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
