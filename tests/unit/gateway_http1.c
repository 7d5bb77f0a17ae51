/* The HTTP/1 machine through its operations: every transcript is run whole, byte by byte, and cut
 * in two at every byte; events and answers must be the same each time. */
#include "gateway/http1.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define FIXED_WALL_MS INT64_C(1795435200000)

struct world {
    struct http_machine *machine;
    struct http_host host;
    struct buf log;    /* what the handler saw */
    struct buf out;    /* what the peer gets */
    struct buf unread; /* what the machine did not take yet */
    struct http_request *pending;
    size_t body_limit;
    bool later;       /* answer from outside the callback */
    bool refuse_head; /* answer 401 in on_head */
    bool mute;        /* never answer */
    bool too_large_by_handler;
    bool aborted;
    bool big_answer;
};

static void say(struct world *w, const char *format, ...) PRINTF_LIKE(2, 3);
static void say(struct world *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    assert_int_equal(buf_vprintf(&w->log, format, args), 0);
    va_end(args);
}

static void answer(struct world *w, struct http_request *request)
{
    if (w->big_answer) {
        size_t len = 100000;
        char *text = mem_zero(len);
        memset(text, 'x', len);
        http_reply(request, 200, NULL, 0, span_make(text, len));
        mem_free(text);
        return;
    }
    struct buf body;
    buf_init(&body, 1 << 20);
    assert_int_equal(buf_append(&body, buf_span(&request->body)), 0);
    const struct http_header headers[] = {{.name = SPAN_LIT("x-path"), .value = request->path}};
    http_reply(request, 200, headers, 1, buf_span(&body));
    buf_release(&body);
}

static size_t on_head(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    say(w, "head %.*s %.*s", SPAN_FMT(request->method), SPAN_FMT(request->target));
    if (request->query.len > 0) {
        say(w, " ?%.*s", SPAN_FMT(request->query));
    }
    say(w, " @%.*s", SPAN_FMT(request->authority));
    struct span extra = http_request_header(request, "x-extra");
    if (extra.data != NULL) {
        say(w, " extra=[%.*s]", SPAN_FMT(extra));
    }
    say(w, "\n");
    if (w->refuse_head) {
        http_reply(request, 401, NULL, 0, SPAN_LIT("no"));
    }
    return w->body_limit;
}

static void on_request(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    say(w, "request [%.*s]\n", SPAN_FMT(buf_span(&request->body)));
    if (w->later) {
        assert_null(w->pending);
        w->pending = request;
        return;
    }
    if (w->mute) {
        return;
    }
    answer(w, request);
}

static void on_gone(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    say(w, "gone %.*s\n", SPAN_FMT(request->path));
    w->pending = NULL;
}

static void on_too_large(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    say(w, "too large\n");
    http_reply(request, 413, NULL, 0, SPAN_LIT("big"));
}

static void on_output(void *ctx)
{
    (void)ctx;
}

static void on_abort(void *ctx)
{
    struct world *w = ctx;
    w->aborted = true;
}

static int64_t wall_ms(void *ctx)
{
    (void)ctx;
    return FIXED_WALL_MS;
}

static const struct http_handler handler = {
    .on_head = on_head, .on_request = on_request, .on_gone = on_gone};
static const struct http_handler handler_413 = {
    .on_head = on_head, .on_request = on_request, .on_gone = on_gone, .on_too_large = on_too_large};

static void world_open(struct world *w, const struct world *setting)
{
    *w = *setting;
    w->body_limit = w->body_limit != 0 ? w->body_limit : 1000;
    w->host = (struct http_host){
        .handler = w->too_large_by_handler ? &handler_413 : &handler,
        .handler_ctx = w,
        .peer = "192.0.2.1:4711",
        .peer_address = "192.0.2.1",
        .max_requests = 10,
        .on_output = on_output,
        .on_abort = on_abort,
        .wall_ms = wall_ms,
        .ctx = w,
    };
    buf_init(&w->log, 1 << 20);
    buf_init(&w->out, 64 << 20);
    buf_init(&w->unread, 64 << 20);
    w->machine = http1_new(&w->host);
}

static void world_close(struct world *w)
{
    if (w->machine != NULL) {
        w->machine->ops->free(w->machine);
    }
    buf_release(&w->log);
    buf_release(&w->out);
    buf_release(&w->unread);
}

static void world_collect(struct world *w)
{
    for (;;) {
        struct span out = {0};
        assert_int_equal(w->machine->ops->output(w->machine, &out), 0);
        if (out.len == 0) {
            return;
        }
        assert_int_equal(buf_append(&w->out, out), 0);
    }
}

/* As the session does it: what is not used is shown again with the next bytes, or after an answer.
 */
static void world_feed(struct world *w, struct span bytes)
{
    assert_int_equal(buf_append(&w->unread, bytes), 0);
    for (;;) {
        size_t used = 0;
        if (buf_len(&w->unread) > 0) {
            assert_int_equal(w->machine->ops->feed(w->machine, buf_span(&w->unread), &used), 0);
            buf_consume(&w->unread, used);
        }
        size_t before = buf_len(&w->out);
        world_collect(w);
        if (w->pending != NULL && !w->mute) {
            struct http_request *request = w->pending;
            w->pending = NULL;
            answer(w, request);
            world_collect(w);
        } else if ((used == 0 && buf_len(&w->out) == before) || buf_len(&w->unread) == 0) {
            return;
        }
    }
}

static struct span take_line(struct span *rest)
{
    size_t at = span_search(*rest, SPAN_LIT("\r\n"));
    assert_true(at < rest->len);
    struct span line = span_make(rest->data, at);
    *rest = span_make(rest->data + at + 2, rest->len - at - 2);
    return line;
}

/* Writes the answers in short: "200 keep [body]". Every answer must be well formed and carry Date.
 */
static void summarise(struct span out, bool is_head, struct buf *summary)
{
    while (out.len > 0) {
        struct span status = take_line(&out);
        assert_true(span_starts(status, SPAN_LIT("HTTP/1.1 ")));
        assert_true(status.len > 13);
        struct span code = span_make(status.data + 9, 3);
        uint64_t length = 0;
        bool has_date = false;
        const char *connection = "keep";
        for (;;) {
            struct span line = take_line(&out);
            if (line.len == 0) {
                break;
            }
            struct span name = span_cut(&line, ':');
            struct span value = span_trim(line);
            has_date = has_date || span_eq(name, SPAN_LIT("date"));
            if (span_eq(name, SPAN_LIT("content-length"))) {
                assert_int_equal(span_to_u64(value, 1 << 20, &length), 0);
            } else if (span_eq(name, SPAN_LIT("connection"))) {
                connection = span_eq(value, SPAN_LIT("close")) ? "close" : "keep-alive";
            }
        }
        if (span_eq(code, SPAN_LIT("100"))) {
            assert_int_equal(buf_printf(summary, "100\n"), 0);
            continue;
        }
        assert_true(has_date);
        length = is_head ? 0 : length;
        assert_true(length <= out.len);
        bool is_problem = length > 0 && out.data[0] == '{';
        assert_int_equal(buf_printf(summary, "%.*s %s [%.*s]\n", SPAN_FMT(code), connection,
                                    is_problem ? 7 : (int)length,
                                    is_problem ? "problem" : out.data),
                         0);
        out = span_make(out.data + length, out.len - length);
    }
}

struct transcript {
    const char *name;
    const char *in;
    const char *log;
    const char *out;
    struct world setting;
    bool is_head;
    enum http_phase phase;
};

static const struct transcript transcripts[] = {
    {.name = "one GET",
     .in = "GET /a/b?c=d&e HTTP/1.1\r\nHost: h.test:8080\r\nX-Extra:  v w \r\n\r\n",
     .log = "head GET /a/b?c=d&e ?c=d&e @h.test:8080 extra=[v w]\nrequest []\n",
     .out = "200 keep []\n"},
    {.name = "POST with length",
     .in = "POST /p HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello",
     .log = "head POST /p @h\nrequest [hello]\n",
     .out = "200 keep [hello]\n"},
    {.name = "chunked with extension and trailer",
     .in =
         "POST /p HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n "
         "world\r\n0\r\nx-extra: late\r\n\r\n",
     .log = "head POST /p @h\nrequest [hello world]\n",
     .out = "200 keep [hello world]\n"},
    {.name = "pipelined, answers in order, leading empty line borne",
     .in = "GET /1 HTTP/1.1\r\nhost: h\r\n\r\n\r\nPOST /2 HTTP/1.1\r\nhost: h\r\ncontent-length: "
           "2\r\n\r\nxyGET /3 HTTP/1.1\r\nhost: h\r\n\r\n",
     .log =
         "head GET /1 @h\nrequest []\nhead POST /2 @h\nrequest [xy]\nhead GET /3 @h\nrequest []\n",
     .out = "200 keep []\n200 keep [xy]\n200 keep []\n"},
    {.name = "pipelined, answered later",
     .in = "GET /1 HTTP/1.1\r\nhost: h\r\n\r\nPOST /2 HTTP/1.1\r\nhost: h\r\ncontent-length: "
           "2\r\n\r\nxyGET /3 HTTP/1.1\r\nhost: h\r\n\r\n",
     .log =
         "head GET /1 @h\nrequest []\nhead POST /2 @h\nrequest [xy]\nhead GET /3 @h\nrequest []\n",
     .out = "200 keep []\n200 keep [xy]\n200 keep []\n",
     .setting = {.later = true}},
    {.name = "connection close: what follows is not served",
     .in =
         "GET /1 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\nGET /2 HTTP/1.1\r\nhost: h\r\n\r\n",
     .log = "head GET /1 @h\nrequest []\n",
     .out = "200 close []\n",
     .phase = HTTP_PHASE_DONE},
    {.name = "1.0 closes",
     .in = "GET /1 HTTP/1.0\r\n\r\n",
     .log = "head GET /1 @\nrequest []\n",
     .out = "200 close []\n",
     .phase = HTTP_PHASE_DONE},
    {.name = "1.0 keep-alive",
     .in = "GET /1 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
     .log = "head GET /1 @\nrequest []\n",
     .out = "200 keep-alive []\n"},
    {.name = "HEAD has length but no body",
     .in = "HEAD /1 HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc",
     .log = "head HEAD /1 @h\nrequest [abc]\n",
     .out = "200 keep []\n",
     .is_head = true},
    {.name = "absolute form",
     .in = "GET http://a.test:1/x?y HTTP/1.1\r\nhost: b\r\n\r\n",
     .log = "head GET http://a.test:1/x?y ?y @a.test:1\nrequest []\n",
     .out = "200 keep []\n"},
    {.name = "expect 100-continue",
     .in = "POST /p HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi",
     .log = "head POST /p @h\nrequest [hi]\n",
     .out = "100\n200 keep [hi]\n"},
    {.name = "other expectation",
     .in = "POST /p HTTP/1.1\r\nhost: h\r\nexpect: tea\r\ncontent-length: 2\r\n\r\nhi",
     .log = "",
     .out = "417 close [problem]\n",
     .phase = HTTP_PHASE_LINGER},
    {.name = "upgrade offers are not taken up",
     .in =
         "GET /u HTTP/1.1\r\nhost: h\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: "
         "h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\nGET /v HTTP/1.1\r\nhost: h\r\n\r\n",
     .log = "head GET /u @h\nrequest []\nhead GET /v @h\nrequest []\n",
     .out = "200 keep []\n200 keep []\n"},
    {.name = "refused in the head, no body",
     .in = "GET /1 HTTP/1.1\r\nhost: h\r\n\r\n",
     .log = "head GET /1 @h\n",
     .out = "401 keep [no]\n",
     .setting = {.refuse_head = true}},
    {.name = "refused in the head, body dropped",
     .in = "POST /1 HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n0123456789more",
     .log = "head POST /1 @h\n",
     .out = "401 close [no]\n",
     .setting = {.refuse_head = true},
     .phase = HTTP_PHASE_LINGER},
    {.name = "length above the limit",
     .in =
         "POST /p HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\nhello world",
     .log = "head POST /p @h\ngone /p\n",
     .out = "413 close [problem]\n",
     .setting = {.body_limit = 10},
     .phase = HTTP_PHASE_LINGER},
    {.name = "chunks above the limit, handler answers",
     .in = "POST /p HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
           "8\r\n12345678\r\n3\r\nabc\r\n0\r\n\r\n",
     .log = "head POST /p @h\ntoo large\n",
     .out = "413 close [big]\n",
     .setting = {.body_limit = 10, .too_large_by_handler = true},
     .phase = HTTP_PHASE_LINGER},
    {.name = "body exactly at the limit",
     .in = "POST /p HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n0123456789",
     .log = "head POST /p @h\nrequest [0123456789]\n",
     .out = "200 keep [0123456789]\n",
     .setting = {.body_limit = 10}},
};

/* Inputs that must be refused before the handler hears of a request. */
struct refusal {
    const char *name;
    const char *in;
    const char *status;
};
#define REQ "POST / HTTP/1.1\r\nhost: h\r\n"
static const struct refusal refusals[] = {
    {"no host", "GET / HTTP/1.1\r\n\r\n", "400"},
    {"two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"},
    {"length and chunked", REQ "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
     "400"},
    {"chunked and length", REQ "transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
     "400"},
    {"two lengths", REQ "content-length: 3\r\ncontent-length: 3\r\n\r\nabc", "400"},
    {"length list", REQ "content-length: 3, 3\r\n\r\nabc", "400"},
    {"length signed", REQ "content-length: +3\r\n\r\nabc", "400"},
    {"length overflow", REQ "content-length: 99999999999999999999999\r\n\r\nabc", "400"},
    {"coding before chunked", REQ "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400"},
    {"coding unknown", REQ "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", "400"},
    {"two codings", REQ "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
     "400"},
    {"coding on 1.0", "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
    {"space before colon", "GET / HTTP/1.1\r\nhost : h\r\n\r\n", "400"},
    {"folded line", "GET / HTTP/1.1\r\nhost: h\r\nx-a: b\r\n c\r\n\r\n", "400"},
    {"bare LF", "GET / HTTP/1.1\nhost: h\n\n", "400"},
    {"bare CR", "GET / HTTP/1.1\r\nhost: h\r\nx: a\rcontent-length: 3\r\n\r\n", "400"},
    {"NUL", "GET / HTTP/1.1\r\nhost: h\r\nx: a\001b\r\n\r\n", "400"},
    {"TLS hello", "\026\003\001\002", "400"},
    {"preface of no version", "PRI * HTTP/1.1\r\n\r\n", "400"},
    {"preface late", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"},
    {"unknown method", "FETCH / HTTP/1.1\r\nhost: h\r\n\r\n", "400"},
    {"SMTP", "EHLO client\r\n", "400"},
    {"no target", "GET HTTP/1.1\r\nhost: h\r\n\r\n", "400"},
    {"relative target", "GET a/b HTTP/1.1\r\nhost: h\r\n\r\n", "400"},
    {"fragment", "GET /a#b HTTP/1.1\r\nhost: h\r\n\r\n", "400"},
    {"CONNECT", "CONNECT h:443 HTTP/1.1\r\nhost: h\r\n\r\n", "400"},
    {"0.9", "GET /\r\n\r\n", "505"},
    {"2.0 in words", "GET / HTTP/2.0\r\nhost: h\r\n\r\n", "505"},
};

static void feed_cut(struct world *w, struct span in, size_t cut)
{
    world_feed(w, span_make(in.data, cut));
    world_feed(w, span_make(in.data + cut, in.len - cut));
}

static void feed_bytes(struct world *w, struct span in)
{
    for (size_t i = 0; i < in.len; i++) {
        world_feed(w, span_make(in.data + i, 1));
    }
}

static void check_transcript(const struct transcript *t, struct world *w, const char *how)
{
    struct buf summary;
    buf_init(&summary, 1 << 20);
    summarise(buf_span(&w->out), t->is_head, &summary);
    if (!span_eq(buf_span(&summary), span_of(t->out)) ||
        !span_eq(buf_span(&w->log), span_of(t->log)) ||
        w->machine->ops->phase(w->machine) != t->phase) {
        fail_msg("%s (%s): answers\n%.*slog\n%.*sphase %d", t->name, how,
                 SPAN_FMT(buf_span(&summary)), SPAN_FMT(buf_span(&w->log)),
                 (int)w->machine->ops->phase(w->machine));
    }
    buf_release(&summary);
}

static void test_transcripts(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(transcripts) / sizeof(transcripts[0]); i++) {
        const struct transcript *t = &transcripts[i];
        struct span in = span_of(t->in);
        struct world w;
        for (size_t cut = 0; cut <= in.len; cut++) {
            world_open(&w, &t->setting);
            feed_cut(&w, in, cut);
            check_transcript(t, &w, "cut");
            world_close(&w);
        }
        world_open(&w, &t->setting);
        feed_bytes(&w, in);
        check_transcript(t, &w, "bytes");
        world_close(&w);
    }
}

static void check_refusal(const struct refusal *r, struct world *w, const char *how)
{
    struct span out = buf_span(&w->out);
    bool good = out.len > 12 && memcmp(out.data + 9, r->status, 3) == 0 && buf_len(&w->log) == 0 &&
                w->machine->ops->phase(w->machine) == HTTP_PHASE_LINGER &&
                span_search(out, SPAN_LIT("connection: close\r\n")) < out.len &&
                span_search(out, SPAN_LIT("application/problem+json")) < out.len;
    if (!good) {
        fail_msg("%s (%s): %.*s\n%.*s", r->name, how, SPAN_FMT(out), SPAN_FMT(buf_span(&w->log)));
    }
}

static void test_refusals(void **state)
{
    (void)state;
    const struct world setting = {0};
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        struct span in = span_of(refusals[i].in);
        struct world w;
        for (size_t cut = 0; cut <= in.len; cut++) {
            world_open(&w, &setting);
            feed_cut(&w, in, cut);
            check_refusal(&refusals[i], &w, "cut");
            world_close(&w);
        }
        world_open(&w, &setting);
        feed_bytes(&w, in);
        check_refusal(&refusals[i], &w, "bytes");
        world_close(&w);
    }
}

/* A refusal inside the body comes after the head was announced. */
static void test_bad_chunks(void **state)
{
    (void)state;
    static const char *const bodies[] = {"zz\r\n",
                                         "5\r\nhelloX\r\n",
                                         "-1\r\n",
                                         "ffffffffffffffffff\r\n",
                                         "5\nhello\r\n0\r\n\r\n",
                                         "5\r\nhello\n0\r\n\r\n",
                                         "0\r\n\nx",
                                         "0\r\nx: y\n\n",
                                         "0\r\n x: y\r\n\r\n",
                                         "0\r\nbad trailer\r\n\r\n"};
    for (size_t i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        const struct world setting = {0};
        struct world w;
        world_open(&w, &setting);
        world_feed(&w, SPAN_LIT(REQ "transfer-encoding: chunked\r\n\r\n"));
        world_feed(&w, span_of(bodies[i]));
        struct span out = buf_span(&w.out);
        if (out.len < 12 || memcmp(out.data + 9, "400", 3) != 0 ||
            !span_eq(buf_span(&w.log), SPAN_LIT("head POST / @h\ngone /\n"))) {
            fail_msg("body %zu: [%.*s] %.*s", i, SPAN_FMT(out), SPAN_FMT(buf_span(&w.log)));
        }
        world_close(&w);
    }
}

static void test_exact_bytes(void **state)
{
    (void)state;
    const struct world setting = {0};
    struct world w;
    world_open(&w, &setting);
    world_feed(&w, SPAN_LIT("GET /e HTTP/1.1\r\nhost: h\r\n\r\n"));
    struct span expected = SPAN_LIT("HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 12:00:00 GMT\r\n"
                                    "content-length: 0\r\nx-path: /e\r\n\r\n");
    assert_int_equal(buf_len(&w.out), expected.len);
    assert_memory_equal(w.out.data + w.out.start, expected.data, expected.len);
    world_close(&w);
}

static void test_head_limits(void **state)
{
    (void)state;
    const struct world setting = {0};
    struct world w;
    world_open(&w, &setting);
    world_feed(&w, SPAN_LIT("GET / HTTP/1.1\r\nhost: h\r\n"));
    for (size_t i = 0; i < HTTP_HEADERS_MAX - 1; i++) {
        world_feed(&w, SPAN_LIT("x-a: b\r\n"));
    }
    assert_int_equal(buf_len(&w.out), 0);
    world_feed(&w, SPAN_LIT("x-a: b\r\n"));
    assert_memory_equal(w.out.data + 9, "431", 3);
    world_close(&w);

    world_open(&w, &setting);
    char *line = mem_alloc(HTTP_HEAD_BYTES_MAX + 1);
    memset(line, 'a', HTTP_HEAD_BYTES_MAX + 1);
    world_feed(&w, SPAN_LIT("GET /"));
    world_feed(&w, span_make(line, HTTP_HEAD_BYTES_MAX - 5));
    assert_int_equal(buf_len(&w.out), 0);
    world_feed(&w, span_make(line, 1));
    assert_memory_equal(w.out.data + 9, "431", 3);
    mem_free(line);
    world_close(&w);
}

static void test_framing_limit(void **state)
{
    (void)state;
    const struct world setting = {.body_limit = 1 << 20};
    struct world w;
    world_open(&w, &setting);
    world_feed(&w, SPAN_LIT(REQ "transfer-encoding: chunked\r\n\r\n5;"));
    for (size_t i = 0; i < 70 && buf_len(&w.out) == 0; i++) {
        char junk[1024];
        memset(junk, 'x', sizeof(junk));
        world_feed(&w, span_make(junk, sizeof(junk)));
    }
    assert_memory_equal(w.out.data + 9, "400", 3);
    world_close(&w);
}

/* Bodies come before anybody has shown who he is: together they may hold so much and no more. */
static void test_bodies_of_all_connections(void **state)
{
    (void)state;
    const struct world setting = {.mute = true, .later = true};
    struct http_budget bodies = {.max_bytes = 100};
    struct world first;
    struct world second;
    world_open(&first, &setting);
    world_open(&second, &setting);
    first.host.bodies = &bodies;
    second.host.bodies = &bodies;
    char text[160];
    memset(text, 'x', sizeof(text));
    world_feed(&first, SPAN_LIT(REQ "content-length: 240\r\n\r\n"));
    world_feed(&first, span_make(text, 80));
    world_feed(&second, SPAN_LIT(REQ "content-length: 60\r\n\r\n"));
    world_feed(&second, span_make(text, 20));
    assert_int_equal(bodies.used_bytes, 100);
    assert_int_equal(buf_len(&second.out), 0);
    world_feed(&second, span_make(text, 40));
    assert_memory_equal(second.out.data + 9, "503", 3);
    assert_true(span_search(buf_span(&second.out), SPAN_LIT("\r\nretry-after: 5\r\n")) <
                buf_len(&second.out));
    assert_true(span_ends(buf_span(&second.log), SPAN_LIT("gone /\n")));
    assert_int_equal(bodies.used_bytes, 80);
    world_feed(&first, span_make(text, 160)); /* the only one: as large as it may be */
    assert_non_null(first.pending);
    assert_int_equal(bodies.used_bytes, 240);
    answer(&first, first.pending);
    assert_int_equal(bodies.used_bytes, 0);
    world_close(&first);
    world_close(&second);
}

static void test_timeouts(void **state)
{
    (void)state;
    const struct world setting = {0};
    struct world w;
    world_open(&w, &setting);
    w.machine->ops->timeout(w.machine);
    world_collect(&w);
    assert_int_equal(buf_len(&w.out), 0); /* idle: no answer to nothing */
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_DONE);
    world_close(&w);

    world_open(&w, &setting);
    world_feed(&w, SPAN_LIT("GET"));
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_HEAD);
    w.machine->ops->timeout(w.machine);
    world_collect(&w);
    assert_memory_equal(w.out.data + 9, "408", 3);
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_DONE);
    world_close(&w);

    world_open(&w, &setting);
    world_feed(&w, SPAN_LIT(REQ "content-length: 3\r\n\r\na"));
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_BODY);
    w.machine->ops->timeout(w.machine);
    world_collect(&w);
    assert_memory_equal(w.out.data + 9, "408", 3);
    assert_true(span_ends(buf_span(&w.log), SPAN_LIT("gone /\n")));
    world_close(&w);
}

static void test_drain(void **state)
{
    (void)state;
    const struct world setting = {.later = true, .mute = true};
    struct world w;
    world_open(&w, &setting);
    w.machine->ops->drain(w.machine);
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_DONE);
    world_close(&w);

    world_open(&w, &setting);
    world_feed(&w, SPAN_LIT("GET / HTTP/1.1\r\nho"));
    w.machine->ops->drain(w.machine);
    w.mute = false;
    world_feed(&w, SPAN_LIT("st: h\r\n\r\n"));
    assert_true(span_search(buf_span(&w.out), SPAN_LIT("connection: close")) < buf_len(&w.out));
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_DONE);
    world_close(&w);
}

/* The peer goes while the handler thinks. */
static void test_gone_while_waiting(void **state)
{
    (void)state;
    const struct world setting = {.mute = true};
    struct world w;
    world_open(&w, &setting);
    world_feed(&w, SPAN_LIT("GET /w HTTP/1.1\r\nhost: h\r\n\r\n"));
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_WAIT);
    w.machine->ops->free(w.machine);
    w.machine = NULL;
    assert_true(span_ends(buf_span(&w.log), SPAN_LIT("gone /w\n")));
    world_close(&w);
}

static void test_abort(void **state)
{
    (void)state;
    const struct world setting = {.later = true, .mute = true};
    struct world w;
    world_open(&w, &setting);
    world_feed(&w, SPAN_LIT("GET /w HTTP/1.1\r\nhost: h\r\n\r\n"));
    http_abort(w.pending);
    w.pending = NULL;
    assert_true(w.aborted);
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_DONE);
    world_collect(&w);
    assert_int_equal(buf_len(&w.out), 0);
    world_close(&w);
}

/* A peer that pipelines and does not fetch its answers makes us hold a bounded amount. */
static void test_pipeline_is_bounded(void **state)
{
    (void)state;
    const struct world setting = {.big_answer = true};
    struct world w;
    world_open(&w, &setting);
    struct buf in;
    buf_init(&in, 1 << 20);
    for (size_t i = 0; i < 1000; i++) {
        assert_int_equal(buf_append(&in, SPAN_LIT("GET / HTTP/1.1\r\nhost: h\r\n\r\n")), 0);
    }
    size_t used = 0;
    assert_int_equal(w.machine->ops->feed(w.machine, buf_span(&in), &used), 0);
    struct span out = {0};
    assert_int_equal(w.machine->ops->output(w.machine, &out), 0);
    assert_true(out.len < 500000);
    assert_true(used < buf_len(&in));
    buf_release(&in);
    world_close(&w);
}

static void test_reply_values_cannot_split(void **state)
{
    (void)state;
    const struct world setting = {.later = true, .mute = true};
    struct world w;
    world_open(&w, &setting);
    world_feed(&w, SPAN_LIT("GET /w HTTP/1.1\r\nhost: h\r\n\r\n"));
    const struct http_header headers[] = {
        {.name = SPAN_LIT("location"), .value = SPAN_LIT("/a\r\nset-cookie: b")}};
    http_reply(w.pending, 202, headers, 1, SPAN_LIT(""));
    w.pending = NULL;
    world_collect(&w);
    assert_true(span_search(buf_span(&w.out), SPAN_LIT("location: /a??set-cookie: b\r\n")) <
                buf_len(&w.out));
    world_close(&w);
}

static void test_query(void **state)
{
    (void)state;
    const struct world setting = {.later = true, .mute = true};
    struct world w;
    world_open(&w, &setting);
    world_feed(&w, SPAN_LIT("GET /q?from=a%40b&to=c&x&to=d+e&bad=%zz HTTP/1.1\r\nhost: h\r\n\r\n"));
    struct span value = {0};
    assert_true(http_request_query(w.pending, "from", &value));
    assert_true(span_eq(value, SPAN_LIT("a@b")));
    assert_true(http_request_query(w.pending, "x", &value));
    assert_int_equal(value.len, 0);
    assert_false(http_request_query(w.pending, "none", &value));
    assert_false(http_request_query(w.pending, "bad", &value));
    struct span rest = w.pending->query;
    struct span name = {0};
    bool bad = false;
    size_t count = 0;
    while (http_query_next(w.pending, &rest, &name, &value, &bad)) {
        count++;
    }
    assert_int_equal(count, 4);
    assert_true(bad);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transcripts),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_bad_chunks),
        cmocka_unit_test(test_exact_bytes),
        cmocka_unit_test(test_head_limits),
        cmocka_unit_test(test_framing_limit),
        cmocka_unit_test(test_bodies_of_all_connections),
        cmocka_unit_test(test_timeouts),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_gone_while_waiting),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_pipeline_is_bounded),
        cmocka_unit_test(test_reply_values_cannot_split),
        cmocka_unit_test(test_query),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
