/* heave-load's pure parts: options, message content, the tally, the HTTP response reader. */
#include "bench/load/content.h"
#include "bench/load/http_reply.h"
#include "bench/load/options.h"
#include "bench/load/tally.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

/* ---- Options ---- */

static int read_words(struct load_options *out, struct err *err, const char *const *words)
{
    char *argv[16];
    int count = 0;
    for (; words[count] != NULL; count++) {
        assert_true((size_t)count < sizeof(argv) / sizeof(argv[0]));
        argv[count] = (char *)words[count]; /* main() has no const; nothing is written */
    }
    return load_options_read(count, argv, out, err);
}

#define READ(out, err, ...) \
    read_words(out, err, (const char *const[]){"heave-load", __VA_ARGS__, NULL})

static void options_defaults(void **state)
{
    (void)state;
    struct load_options options;
    struct err err;
    assert_int_equal(READ(&options, &err, "smtp", "--to", "a@b.test"), 0);
    assert_int_equal(options.kind, LOAD_SMTP);
    assert_string_equal(options.from, "a@b.test");
    assert_string_equal(options.host, "127.0.0.1");
    assert_int_equal(options.port, 2525);
    assert_int_equal(options.messages, 1);
    assert_int_equal(options.rate, 0);
    assert_int_equal(READ(&options, &err, "http", "--to", "a@b.test", "--duration", "5"), 0);
    assert_int_equal(options.port, 8080);
    assert_string_equal(options.path, "/v1/messages");
    assert_true(options.messages == UINT64_MAX);
}

static void options_places(void **state)
{
    (void)state;
    struct load_options options;
    struct err err;
    assert_int_equal(READ(&options, &err, "smtp", "--to=a@b.test", "--server", "[::1]:25"), 0);
    assert_string_equal(options.host, "::1");
    assert_int_equal(options.port, 25);
    assert_int_equal(READ(&options, &err, "http", "--to=a@b.test", "--url", "https://gw.test"), 0);
    assert_true(options.tls);
    assert_int_equal(options.port, 443);
    assert_string_equal(options.path, "/v1/messages");
    assert_int_equal(READ(&options, &err, "http", "--to=a@b.test", "--url=http://gw:8/x?y"), 0);
    assert_false(options.tls);
    assert_int_equal(options.port, 8);
    assert_string_equal(options.path, "/x?y");
    assert_int_equal(READ(&options, &err, "smtp", "--to=a@b.test", "--rate", "30/s"), 0);
    assert_int_equal(options.rate, 30);
}

static void options_mistakes(void **state)
{
    (void)state;
    struct load_options options;
    struct err err;
    assert_int_equal(READ(&options, &err, "bulk", "--to", "a@b.test"), ERR_UNSUPPORTED);
    assert_int_equal(READ(&options, &err, "smtp"), ERR_INVAL);
    assert_int_equal(READ(&options, &err, "smtp", "--help"), 1);
    static const char *const BAD[] = {
        "--messages=0",     "--messages=x",     "--recipients=100001", "--size=1",
        "--connections=0",  "--rate=0/s",       "--rate=fast",         "--server=:25",
        "--server=h:99999", "--server=h:x",     "--from=nobody",       "--from=a@b@c",
        "--from=a b@c",     "--from=\"a\"@c",   "--auth=nocolon",      "--nope",
        "--tls=yes",        "--key=k",          "--url=http://h",      "--to=<a@b>",
        "positional",       "--auth=u:p\r\nX:", "--timeout",
    };
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++) {
        assert_int_equal(READ(&options, &err, "smtp", "--to", "a@b.test", BAD[i]), ERR_INVAL);
        assert_true(err.text[0] != '\0');
    }
    assert_int_equal(READ(&options, &err, "http", "--to=a@b.test", "--auth-login"), ERR_INVAL);
    assert_int_equal(READ(&options, &err, "http", "--to=a@b.test", "--key=k", "--auth=u:p"),
                     ERR_INVAL);
    assert_int_equal(READ(&options, &err, "http", "--to=a@b.test", "--url=ftp://x"), ERR_INVAL);
    assert_int_equal(READ(&options, &err, "http", "--to=a@b.test", "--url=http://h/a b"),
                     ERR_INVAL);
}

/* ---- Content ---- */

/* Every size gives exactly that many bytes in whole lines of at most 78 without leading dots. */
static void content_sizes(void **state)
{
    (void)state;
    for (size_t size = 2; size < 400; size++) {
        struct content content;
        content_init(&content, 1000);
        assert_int_equal(content_put_body(&content, size, SPAN_LIT("\r\n"), 2), 0);
        struct span text = buf_span(&content.rest);
        assert_int_equal(text.len, size);
        assert_true(span_ends(text, SPAN_LIT("\r\n")));
        while (text.len > 0) {
            struct span line = span_cut(&text, '\n');
            assert_true(line.len <= 77 && line.data[line.len - 1] == '\r');
            assert_true(line.data[0] != '.');
            assert_int_equal(span_find(line, '\r'), line.len - 1);
        }
        content_release(&content);
        content_init(&content, 1000);
        assert_int_equal(content_put_body(&content, size, SPAN_LIT("\\n"), 1), 0);
        size_t escapes = 0;
        text = buf_span(&content.rest);
        for (size_t i = 0; i < text.len; i++) {
            escapes += text.data[i] == '\\' ? 1 : 0;
        }
        assert_int_equal(text.len - escapes, size);
        content_release(&content);
    }
}

static void content_numbers(void **state)
{
    (void)state;
    struct content content;
    char room[CONTENT_HEAD_MAX];
    content_init(&content, 10);
    assert_int_equal(content_put_text(&content, SPAN_LIT("a#b ")), 0);
    assert_int_equal(content_put(&content, "x#y#"), 0);
    struct span head = content_head(&content, 1234567890, room);
    assert_true(span_eq(head, SPAN_LIT("a#b x1234567890y1234567890")));
    head = content_head(&content, 7, room);
    assert_true(span_eq(head, SPAN_LIT("a#b x0000000007y0000000007")));
    assert_int_equal(content_put_body(&content, 100, SPAN_LIT("\r\n"), 2), ERR_LIMIT);
    content_release(&content);
}

static void content_addresses(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, 100);
    assert_int_equal(content_put_address(&out, "to@dom.test", 1, 1), 0);
    assert_int_equal(content_put_address(&out, "to@dom.test", 12, 500), 0);
    assert_true(span_eq(buf_span(&out), SPAN_LIT("to@dom.testto12@dom.test")));
    buf_release(&out);
}

/* ---- Tally ---- */

static void histogram_exact_when_short(void **state)
{
    (void)state;
    struct histogram *h = mem_zero(sizeof(*h));
    assert_int_equal(histogram_quantile(h, 500), 0);
    for (uint64_t us = 1; us <= 100; us++) {
        histogram_add(h, us);
    }
    assert_int_equal(histogram_quantile(h, 500), 50);
    assert_int_equal(histogram_quantile(h, 950), 95);
    assert_int_equal(histogram_quantile(h, 990), 99);
    assert_int_equal(histogram_quantile(h, 1000), 100);
    mem_free(h);
}

static void histogram_bounds_the_error(void **state)
{
    (void)state;
    for (unsigned bit = 0; bit < 63; bit++) {
        for (uint64_t add = 0; add < 3; add++) {
            struct histogram *h = mem_zero(sizeof(*h));
            uint64_t us = (UINT64_C(1) << bit) + add * (UINT64_C(1) << bit) / 3;
            histogram_add(h, us);
            histogram_add(h, UINT64_MAX);
            uint64_t got = histogram_quantile(h, 500);
            if (bit < HISTOGRAM_BITS) {
                assert_true(got >= us && got - us <= us / 64);
            } else {
                assert_int_equal(got, (UINT64_C(1) << HISTOGRAM_BITS) - 1);
            }
            assert_true(h->max_us == UINT64_MAX);
            mem_free(h);
        }
    }
}

static void tally_counts_kinds(void **state)
{
    (void)state;
    struct tally *tally = mem_zero(sizeof(*tally));
    assert_int_equal(tally_error(tally, "452 4.3.1"), 1);
    assert_int_equal(tally_error(tally, "503"), 1);
    assert_int_equal(tally_error(tally, "452 4.3.1"), 2);
    for (unsigned i = 0; i < 200; i++) {
        char kind[40];
        (void)snprintf(kind, sizeof(kind), "kind %u", i);
        (void)tally_error(tally, kind);
    }
    assert_int_equal(tally->kind_count, TALLY_KINDS_MAX);
    assert_string_equal(tally->kinds[TALLY_KINDS_MAX - 1].name, "other");
    assert_int_equal(tally->kinds[TALLY_KINDS_MAX - 1].count, 200 - (TALLY_KINDS_MAX - 3));
    mem_free(tally);
}

static void tally_prints_json(void **state)
{
    (void)state;
    struct tally *tally = mem_zero(sizeof(*tally));
    struct buf out;
    buf_init(&out, 65536);
    tally->accepted = 10;
    tally->recipients = 20;
    tally->failed = 1;
    tally->bytes = 99;
    histogram_add(&tally->latency, 100);
    (void)tally_error(tally, "503");
    (void)tally_error(tally, "closed");
    assert_int_equal(tally_json(tally, 2000000, &out), 0);
    assert_string_equal(
        buf_text(&out),
        "{\"accepted\":10,\"accepted_per_s\":5.0,\"recipients\":20,\"recipients_per_s\":10.0,"
        "\"failed\":1,\"retried\":0,\"p50_ms\":0.100,\"p95_ms\":0.100,\"p99_ms\":0.100,"
        "\"p999_ms\":0.100,"
        "\"max_ms\":0.100,\"errors\":{\"503\":1,\"closed\":1},\"seconds\":2.000000,\"bytes\":99}");
    buf_release(&out);
    mem_free(tally);
}

/* ---- HTTP responses ---- */

/* Shows `text` in pieces of `piece` bytes as a stream does: what is not taken is shown again.
 * Returns the last step's result; `*out_left` is what stays. */
static int feed(struct http_reply *reply, const char *text, size_t piece, size_t *out_left)
{
    struct span all = span_of(text);
    size_t taken = 0;
    size_t shown = 0;
    int rc = STEP_WAIT;
    while (rc == STEP_WAIT && shown < all.len) {
        shown = shown + piece < all.len ? shown + piece : all.len;
        struct span bytes = span_make(all.data + taken, shown - taken);
        rc = http_reply_step(reply, &bytes);
        taken = shown - bytes.len;
    }
    *out_left = all.len - taken;
    return rc;
}

/* Whole, byte by byte, and in every other size of pieces. */
static void expect(const char *text, int result, uint32_t status, const char *location, size_t left)
{
    for (size_t piece = 1; piece <= strlen(text); piece++) {
        struct http_reply reply;
        size_t rest = 0;
        http_reply_reset(&reply);
        assert_int_equal(feed(&reply, text, piece, &rest), result);
        if (result == STEP_DONE) {
            assert_int_equal(reply.status, status);
            assert_true(span_eq(http_reply_location(&reply), span_of(location)));
        }
        if (result == STEP_DONE && piece == strlen(text)) {
            assert_int_equal(rest, left);
        }
    }
}

static void http_whole_responses(void **state)
{
    (void)state;
    expect("HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\nlocation: /v1/messages/4bX\r\n\r\nabcdeX",
           STEP_DONE, 202, "/v1/messages/4bX", 1);
    expect("HTTP/1.1 204 No Content\r\n\r\n", STEP_DONE, 204, "", 0);
    expect("HTTP/1.1 503\r\nRetry-After: 7\r\nContent-Length:0\r\n\r\n", STEP_DONE, 503, "", 0);
    expect("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", STEP_DONE,
           200, "", 0);
    expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nabcde\r\n1A\r\n"
           "abcdefghijklmnopqrstuvwxyz\r\n0\r\nT: v\r\n\r\nrest",
           STEP_DONE, 200, "", 4);
}

static void http_facts(void **state)
{
    (void)state;
    struct http_reply reply;
    size_t left = 0;
    http_reply_reset(&reply);
    assert_int_equal(feed(&reply,
                          "HTTP/1.1 429 Slow\r\nRetry-After: 30\r\nConnection: close\r\n"
                          "Content-Length: 0\r\n\r\n",
                          1000, &left),
                     STEP_DONE);
    assert_int_equal(reply.retry_after_s, 30);
    assert_true(reply.close);
    http_reply_reset(&reply);
    assert_int_equal(feed(&reply, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 1000, &left),
                     STEP_DONE);
    assert_true(reply.close);
    assert_int_equal(reply.retry_after_s, 0);
}

static void http_incomplete(void **state)
{
    (void)state;
    expect("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcd", STEP_WAIT, 0, "", 0);
    expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde", STEP_WAIT, 0, "", 0);
    expect("HTTP/1.1 200 OK\r\nContent-Le", STEP_WAIT, 0, "", 0);
}

static void http_refused(void **state)
{
    (void)state;
    static const char *const BAD[] = {
        "HTTP/2 200 OK\r\n",
        "HTTP/1.1 20 OK\r\n",
        "HTTP/1.1 099 No\r\n",
        "HTTP/1.1 2000\r\n",
        "SSH-2.0-x\r\n",
        "HTTP/1.1 200 OK\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 101 Switching\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n",
        "HTTP/1.1 200 OK\r\nName : x\r\n",
        "HTTP/1.1 200 OK\r\n: x\r\n",
        "HTTP/1.1 200 OK\r\n folded\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    };
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++) {
        expect(BAD[i], ERR_PROTO, 0, "", 0);
    }
}

static void http_bounds(void **state)
{
    (void)state;
    struct http_reply reply;
    http_reply_reset(&reply);
    struct buf text;
    buf_init(&text, 100000);
    assert_int_equal(buf_append(&text, SPAN_LIT("HTTP/1.1 200 OK\r\n")), 0);
    for (size_t i = 0; i <= HTTP_REPLY_LINES_MAX; i++) {
        assert_int_equal(buf_append(&text, SPAN_LIT("A: b\r\n")), 0);
    }
    struct span bytes = buf_span(&text);
    assert_int_equal(http_reply_step(&reply, &bytes), ERR_PROTO);
    buf_reset(&text);
    for (size_t i = 0; i <= HTTP_REPLY_LINE_MAX; i++) {
        assert_int_equal(buf_append_byte(&text, 'a'), 0);
    }
    http_reply_reset(&reply);
    bytes = buf_span(&text);
    assert_int_equal(http_reply_step(&reply, &bytes), ERR_PROTO);
    /* Many chunks are no abuse. */
    buf_reset(&text);
    assert_int_equal(
        buf_append(&text, SPAN_LIT("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")), 0);
    for (size_t i = 0; i < 1000; i++) {
        assert_int_equal(buf_append(&text, SPAN_LIT("1\r\na\r\n")), 0);
    }
    assert_int_equal(buf_append(&text, SPAN_LIT("0\r\n\r\n")), 0);
    http_reply_reset(&reply);
    bytes = buf_span(&text);
    assert_int_equal(http_reply_step(&reply, &bytes), STEP_DONE);
    assert_int_equal(bytes.len, 0);
    buf_release(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_defaults),
        cmocka_unit_test(options_places),
        cmocka_unit_test(options_mistakes),
        cmocka_unit_test(content_sizes),
        cmocka_unit_test(content_numbers),
        cmocka_unit_test(content_addresses),
        cmocka_unit_test(histogram_exact_when_short),
        cmocka_unit_test(histogram_bounds_the_error),
        cmocka_unit_test(tally_counts_kinds),
        cmocka_unit_test(tally_prints_json),
        cmocka_unit_test(http_whole_responses),
        cmocka_unit_test(http_facts),
        cmocka_unit_test(http_incomplete),
        cmocka_unit_test(http_refused),
        cmocka_unit_test(http_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
