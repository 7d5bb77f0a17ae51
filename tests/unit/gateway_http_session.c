/* Sessions and listeners over loopback sockets, client and server on one loop. Waits are for
 * events; the only clock is that of the deadlines under test. */
#include "gateway/http2.h"
#include "gateway/listener.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

struct world {
    struct loop *loop;
    struct listener *listener;
    struct http_server *server;
    struct http_limits limits;
    struct loop_timer guard;
    struct http_request *pending;
    size_t requests, gone, started, ended;
    char end[32];
    char protocol[16];
    bool later;
};

struct client {
    struct world *world;
    struct stream *stream;
    struct buf in;
    bool open, closed;
};

static void overdue(void *ctx)
{
    (void)fprintf(stderr, "gateway_http_session: nothing happened for 30 s while waiting for %s\n",
                  (const char *)ctx);
    abort();
}

#define WAIT(w, condition)                                                              \
    do {                                                                                \
        loop_timer_start((w)->loop, &(w)->guard, 30000, overdue, (void *)(#condition)); \
        while (!(condition)) {                                                          \
            loop_run((w)->loop);                                                        \
        }                                                                               \
        loop_timer_stop(&(w)->guard);                                                   \
    } while (0)

/* The server's handler. */

static size_t on_head(void *ctx, struct http_request *request)
{
    (void)ctx;
    assert_string_equal(request->peer_address, "127.0.0.1");
    return 1 << 20;
}

static void on_request(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    w->requests++;
    loop_stop(w->loop);
    if (w->later) {
        w->pending = request;
        return;
    }
    http_reply(request, 200, NULL, 0, request->path);
}

static void on_gone(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    assert_true(w->pending == NULL || request == w->pending); /* NULL: its body never came */
    w->pending = NULL;
    w->gone++;
    loop_stop(w->loop);
}

static void on_session_start(void *ctx, const char *protocol)
{
    struct world *w = ctx;
    w->started++;
    (void)snprintf(w->protocol, sizeof(w->protocol), "%s", protocol);
}

static void on_session_end(void *ctx, const char *protocol, const char *peer, uint64_t requests,
                           uint64_t bytes_in, int64_t duration_ms, const char *end,
                           const char *tls_version)
{
    struct world *w = ctx;
    (void)requests;
    (void)bytes_in;
    assert_string_equal(protocol, w->protocol);
    assert_true(span_starts(span_of(peer), SPAN_LIT("127.0.0.1:")));
    assert_true(duration_ms >= 0);
    assert_string_equal(tls_version, "");
    w->ended++;
    (void)snprintf(w->end, sizeof(w->end), "%s", end);
    loop_stop(w->loop);
}

static const struct http_handler handler = {.on_head = on_head,
                                            .on_request = on_request,
                                            .on_gone = on_gone,
                                            .on_session_start = on_session_start,
                                            .on_session_end = on_session_end};

static int on_connection(void *ctx, uv_stream_t *socket)
{
    struct world *w = ctx;
    return http_server_accept(w->server, socket, NULL);
}

static void world_open(struct world *w)
{
    *w = (struct world){
        .loop = loop_new("test"),
        .limits = {.head_timeout_ms = 10000, .body_timeout_ms = 10000, .idle_timeout_ms = 10000}};
}

static void world_serve(struct world *w)
{
    struct err err;
    w->server = http_server_new(w->loop, &handler, w, &w->limits);
    assert_int_equal(listener_open(w->loop, "127.0.0.1:0", on_connection, w, &w->listener, &err),
                     0);
    assert_true(listener_port(w->listener) > 0);
}

static void world_close(struct world *w)
{
    http_server_free(&w->server);
    assert_int_equal(w->started, w->ended);
    listener_close(&w->listener);
    loop_free(&w->loop);
}

/* The client. */

static void client_on_open(void *ctx)
{
    struct client *c = ctx;
    c->open = true;
    loop_stop(c->world->loop);
}

static size_t client_on_data(void *ctx, struct span bytes)
{
    struct client *c = ctx;
    assert_int_equal(buf_append(&c->in, bytes), 0);
    loop_stop(c->world->loop);
    return bytes.len;
}

static void client_on_close(void *ctx, int status, const char *why)
{
    struct client *c = ctx;
    (void)status;
    (void)why;
    c->closed = true;
    c->stream = NULL;
    loop_stop(c->world->loop);
}

static const struct stream_ops client_ops = {
    .on_open = client_on_open, .on_data = client_on_data, .on_close = client_on_close};

static void client_open(struct world *w, struct client *c)
{
    *c = (struct client){.world = w};
    buf_init(&c->in, 64 << 20);
    struct stream_target target = {.host = "127.0.0.1", .port = listener_port(w->listener)};
    assert_int_equal(stream_connect(w->loop, &target, &client_ops, c, NULL, &c->stream), 0);
    WAIT(w, c->open);
}

static void client_send(struct client *c, const char *text)
{
    assert_int_equal(stream_write(c->stream, span_of(text)), 0);
}

static bool client_has(const struct client *c, const char *text)
{
    return span_search(buf_span(&c->in), span_of(text)) < buf_len(&c->in);
}

static size_t client_count(const struct client *c, const char *text)
{
    struct span rest = buf_span(&c->in);
    size_t count = 0;
    for (;;) {
        size_t at = span_search(rest, span_of(text));
        if (at == rest.len) {
            return count;
        }
        count++;
        rest = span_make(rest.data + at + 1, rest.len - at - 1);
    }
}

static void client_close(struct client *c)
{
    if (c->stream != NULL) {
        stream_abort(c->stream);
        WAIT(c->world, c->closed);
    }
    buf_release(&c->in);
}

#define GET(path) "GET " path " HTTP/1.1\r\nhost: h\r\n\r\n"

static void test_keep_alive_and_end(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    world_open(&w);
    world_serve(&w);
    client_open(&w, &c);
    client_send(&c, GET("/one"));
    WAIT(&w, client_has(&c, "/one"));
    client_send(&c, GET("/two"));
    WAIT(&w, client_has(&c, "/two"));
    assert_int_equal(http_server_sessions(w.server), 1);
    client_close(&c);
    WAIT(&w, w.ended == 1);
    assert_string_equal(w.protocol, "http1");
    assert_int_equal(http_server_sessions(w.server), 0);
    world_close(&w);
}

static void test_sessions_are_bounded(void **state)
{
    (void)state;
    struct world w;
    struct client first;
    struct client second;
    world_open(&w);
    w.limits.max_sessions = 1;
    world_serve(&w);
    client_open(&w, &first);
    client_send(&first, GET("/one"));
    WAIT(&w, client_has(&first, "/one"));
    client_open(&w, &second); /* by the kernel; the server closes it unheard */
    WAIT(&w, second.closed);
    client_send(&first, GET("/two"));
    WAIT(&w, client_has(&first, "/two"));
    assert_int_equal(http_server_sessions(w.server), 1);
    client_close(&second);
    client_close(&first);
    WAIT(&w, w.ended == 1);
    world_close(&w);
}

/* Requests wait in the stream while one is being answered, and go on by themselves. */
static void test_pipeline_waits(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    world_open(&w);
    w.later = true;
    world_serve(&w);
    client_open(&w, &c);
    client_send(&c, GET("/1") GET("/2") GET("/3"));
    for (size_t i = 1; i <= 3; i++) {
        WAIT(&w, w.pending != NULL);
        assert_int_equal(w.requests, i);
        struct http_request *request = w.pending;
        w.pending = NULL;
        http_reply(request, 200, NULL, 0, request->path);
    }
    WAIT(&w, client_has(&c, "/3"));
    assert_int_equal(client_count(&c, "HTTP/1.1 200"), 3);
    client_close(&c);
    world_close(&w);
}

static void test_prior_knowledge(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    world_open(&w);
    world_serve(&w);
    client_open(&w, &c);
    client_send(&c, "PRI * HT"); /* as many bytes as leave it open */
    loop_run_once(w.loop);
    assert_int_equal(w.started, 0);
    client_send(&c, &HTTP2_PREFACE[8]);
    static const char settings[] = "\0\0\0\4\0\0\0\0\0";
    assert_int_equal(stream_write(c.stream, span_make(settings, 9)), 0);
    WAIT(&w, buf_len(&c.in) >= 9);
    assert_string_equal(w.protocol, "h2");
    assert_int_equal(c.in.data[c.in.start + 3], 4); /* our SETTINGS come first */
    client_close(&c);
    world_close(&w);
}

static void test_preface_that_is_none(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    world_open(&w);
    world_serve(&w);
    client_open(&w, &c);
    client_send(&c, "PRI * HTTP/1.1\r\n\r\n");
    WAIT(&w, client_has(&c, "HTTP/1.1 400"));
    client_close(&c);
    WAIT(&w, w.ended == 1);
    assert_string_equal(w.protocol, "http1");
    world_close(&w);
}

static void test_head_timeout(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    world_open(&w);
    w.limits.head_timeout_ms = 50;
    world_serve(&w);
    client_open(&w, &c);
    client_send(&c, "GET / HT");
    WAIT(&w, c.closed && w.ended == 1);
    assert_true(client_has(&c, "HTTP/1.1 408"));
    assert_string_equal(w.end, "timeout");
    client_close(&c);
    world_close(&w);
}

static void test_silent_peer(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    world_open(&w);
    w.limits.head_timeout_ms = 50;
    world_serve(&w);
    client_open(&w, &c);
    WAIT(&w, c.closed && w.ended == 1);
    assert_int_equal(buf_len(&c.in), 0);
    assert_string_equal(w.end, "timeout");
    client_close(&c);
    world_close(&w);
}

static void test_body_and_idle_timeout(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    world_open(&w);
    w.limits.body_timeout_ms = 50;
    w.limits.idle_timeout_ms = 60;
    world_serve(&w);
    client_open(&w, &c);
    client_send(&c, "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nab");
    WAIT(&w, c.closed && w.ended == 1);
    assert_true(client_has(&c, "HTTP/1.1 408"));
    client_close(&c);
    client_open(&w, &c);
    client_send(&c, GET("/idle"));
    WAIT(&w, c.closed && w.ended == 2);
    assert_true(client_has(&c, "/idle"));
    assert_string_equal(w.end, "timeout");
    client_close(&c);
    world_close(&w);
}

static void test_peer_gone(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    world_open(&w);
    w.later = true;
    world_serve(&w);
    client_open(&w, &c);
    client_send(&c, GET("/x"));
    WAIT(&w, w.pending != NULL);
    client_close(&c);
    WAIT(&w, w.ended == 1);
    assert_int_equal(w.gone, 1);
    world_close(&w);
}

static void test_drain(void **state)
{
    (void)state;
    struct world w;
    struct client idle;
    struct client busy;
    world_open(&w);
    world_serve(&w);
    client_open(&w, &idle);
    client_send(&idle, GET("/a"));
    WAIT(&w, client_has(&idle, "/a"));
    w.later = true;
    client_open(&w, &busy);
    client_send(&busy, GET("/b"));
    WAIT(&w, w.pending != NULL);
    http_server_drain(w.server);
    WAIT(&w, idle.closed && w.ended == 1);
    assert_string_equal(w.end, "drain");
    assert_false(busy.closed);
    http_reply(w.pending, 200, NULL, 0, SPAN_LIT("done"));
    w.pending = NULL;
    WAIT(&w, busy.closed && w.ended == 2);
    assert_true(client_has(&busy, "connection: close"));
    assert_true(client_has(&busy, "done"));
    assert_int_equal(http_server_sessions(w.server), 0);
    client_close(&idle);
    client_close(&busy);
    world_close(&w);
}

static void test_free_with_requests(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    world_open(&w);
    w.later = true;
    world_serve(&w);
    client_open(&w, &c);
    client_send(&c, GET("/x"));
    WAIT(&w, w.pending != NULL);
    http_server_free(&w.server);
    assert_int_equal(w.gone, 1);
    assert_int_equal(w.ended, 1);
    WAIT(&w, c.closed);
    client_close(&c);
    world_close(&w);
}

static void test_abort(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    world_open(&w);
    w.later = true;
    world_serve(&w);
    client_open(&w, &c);
    client_send(&c, GET("/x"));
    WAIT(&w, w.pending != NULL);
    http_abort(w.pending);
    w.pending = NULL;
    WAIT(&w, c.closed && w.ended == 1);
    assert_int_equal(buf_len(&c.in), 0);
    assert_int_equal(w.gone, 0);
    assert_string_equal(w.end, "aborted");
    client_close(&c);
    world_close(&w);
}

/* An answer far above the stream's high water arrives whole. */
static void test_large_answer(void **state)
{
    (void)state;
    size_t len = 20 << 20;
    char *text = mem_zero(len);
    memset(text, 'z', len);
    struct world w;
    struct client c;
    world_open(&w);
    w.later = true;
    world_serve(&w);
    client_open(&w, &c);
    client_send(&c, GET("/x"));
    WAIT(&w, w.pending != NULL);
    http_reply(w.pending, 200, NULL, 0, span_make(text, len));
    w.pending = NULL;
    WAIT(&w, buf_len(&c.in) > len);
    assert_true(span_ends(buf_span(&c.in), span_make(text, len)));
    client_close(&c);
    world_close(&w);
    mem_free(text);
}

static void test_bind_texts(void **state)
{
    (void)state;
    static const char *const bad[] = {"",           "nonsense",        "127.0.0.1",
                                      "127.0.0.1:", "127.0.0.1:99999", "::1:80",
                                      "[::1:80",    "127.0.0.1:x"};
    struct loop *loop = loop_new("test");
    struct listener *listener = NULL;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err err = {0};
        assert_int_equal(listener_open(loop, bad[i], on_connection, NULL, &listener, &err),
                         ERR_INVAL);
        assert_true(strlen(err.text) > 10);
    }
    struct err err = {0};
    assert_int_equal(listener_open(loop, "192.0.2.1:0", on_connection, NULL, &listener, &err),
                     ERR_IO);
    assert_int_equal(listener_open(loop, "*:0", on_connection, NULL, &listener, &err), 0);
    listener_close(&listener);
    loop_free(&loop);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keep_alive_and_end),
        cmocka_unit_test(test_sessions_are_bounded),
        cmocka_unit_test(test_pipeline_waits),
        cmocka_unit_test(test_prior_knowledge),
        cmocka_unit_test(test_preface_that_is_none),
        cmocka_unit_test(test_head_timeout),
        cmocka_unit_test(test_silent_peer),
        cmocka_unit_test(test_body_and_idle_timeout),
        cmocka_unit_test(test_peer_gone),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_free_with_requests),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_large_answer),
        cmocka_unit_test(test_bind_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
