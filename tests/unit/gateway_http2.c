/* The HTTP/2 machine against nghttp2's client session, back to back in memory. */
#include "gateway/http2.h"

#include <nghttp2/nghttp2.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define STREAMS_MAX 600

struct world;

struct client_stream {
    int32_t id;
    int status;
    int informational;
    bool closed;
    uint32_t error;
    struct buf body;
    struct span upload; /* what is left to send */
};

struct world {
    struct http_machine *machine;
    struct http_host host;
    nghttp2_session *client;
    struct client_stream streams[STREAMS_MAX];
    size_t stream_count;
    bool goaway;
    uint32_t goaway_error;
    struct http_request *pending[STREAMS_MAX];
    size_t pending_count;
    size_t heads;
    size_t requests;
    size_t gone;
    size_t body_limit;
    bool later;
    bool refuse_head;
    size_t step; /* bytes a time between the two; 0: all */
    bool aborted;
    bool server_failed;
};

static void answer(struct http_request *request)
{
    const struct http_header headers[] = {
        {.name = SPAN_LIT("x-path"), .value = request->path},
        {.name = SPAN_LIT("connection"), .value = SPAN_LIT("close")}};
    http_reply(request, 200, headers, 2, buf_span(&request->body));
}

static size_t on_head(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    w->heads++;
    assert_int_equal(request->version, 2);
    assert_true(span_eq(request->authority, SPAN_LIT("h.test")));
    if (w->refuse_head) {
        http_reply(request, 401, NULL, 0, SPAN_LIT("no"));
    }
    return w->body_limit;
}

static void on_request(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    w->requests++;
    if (w->later) {
        assert_true(w->pending_count < STREAMS_MAX);
        w->pending[w->pending_count++] = request;
        return;
    }
    answer(request);
}

static void on_gone(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    w->gone++;
    for (size_t i = 0; i < w->pending_count; i++) {
        if (w->pending[i] == request) {
            w->pending[i] = w->pending[--w->pending_count];
        }
    }
}

static const struct http_handler handler = {
    .on_head = on_head, .on_request = on_request, .on_gone = on_gone};

static void on_output(void *ctx)
{
    (void)ctx;
}

static void on_abort(void *ctx)
{
    ((struct world *)ctx)->aborted = true;
}

static int64_t wall_ms(void *ctx)
{
    (void)ctx;
    return INT64_C(1795435200000);
}

/* The client. */

static struct client_stream *stream_of(struct world *w, int32_t id)
{
    for (size_t i = 0; i < w->stream_count; i++) {
        if (w->streams[i].id == id) {
            return &w->streams[i];
        }
    }
    return NULL;
}

static int client_on_header(nghttp2_session *session, const nghttp2_frame *frame,
                            const uint8_t *name, size_t name_len, const uint8_t *value,
                            size_t value_len, uint8_t flags, void *user)
{
    (void)session;
    (void)flags;
    struct client_stream *stream = stream_of(user, frame->hd.stream_id);
    struct span field = span_make((const char *)name, name_len);
    assert_false(span_eq(field, SPAN_LIT("connection")));
    if (span_eq(field, SPAN_LIT(":status"))) {
        uint64_t status = 0;
        assert_int_equal(span_to_u64(span_make((const char *)value, value_len), 999, &status), 0);
        if (status < 200) {
            stream->informational = (int)status;
        } else {
            stream->status = (int)status;
        }
    }
    return 0;
}

static int client_on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id,
                          const uint8_t *data, size_t len, void *user)
{
    (void)session;
    (void)flags;
    struct client_stream *stream = stream_of(user, stream_id);
    assert_int_equal(buf_append(&stream->body, span_make((const char *)data, len)), 0);
    return 0;
}

static int client_on_close(nghttp2_session *session, int32_t stream_id, uint32_t error, void *user)
{
    (void)session;
    struct client_stream *stream = stream_of(user, stream_id);
    stream->closed = true;
    stream->error = error;
    return 0;
}

static int client_on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)session;
    struct world *w = user;
    if (frame->hd.type == NGHTTP2_GOAWAY) {
        w->goaway = true;
        w->goaway_error = frame->goaway.error_code;
    }
    return 0;
}

static ssize_t client_read(nghttp2_session *session, int32_t stream_id, uint8_t *room, size_t len,
                           uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)source;
    struct client_stream *stream = stream_of(user, stream_id);
    size_t count = stream->upload.len < len ? stream->upload.len : len;
    memcpy(room, stream->upload.data, count);
    stream->upload = span_make(stream->upload.data + count, stream->upload.len - count);
    if (stream->upload.len == 0) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    }
    return (ssize_t)count;
}

static nghttp2_nv nv(const char *name, const char *value)
{
    return (nghttp2_nv){.name = (uint8_t *)name,
                        .value = (uint8_t *)value,
                        .namelen = strlen(name),
                        .valuelen = strlen(value)};
}

static struct client_stream *client_send(struct world *w, const char *method, const char *path,
                                         struct span body, const char *expect)
{
    assert_true(w->stream_count < STREAMS_MAX);
    nghttp2_nv fields[] = {nv(":method", method), nv(":scheme", "http"), nv(":authority", "h.test"),
                           nv(":path", path), nv("expect", expect != NULL ? expect : "")};
    nghttp2_data_provider provider = {.read_callback = client_read};
    int32_t id = nghttp2_submit_request(w->client, NULL, fields, expect != NULL ? 5 : 4,
                                        body.len > 0 ? &provider : NULL, NULL);
    assert_true(id > 0);
    struct client_stream *stream = &w->streams[w->stream_count++];
    *stream = (struct client_stream){.id = id, .upload = body};
    buf_init(&stream->body, 32 << 20);
    return stream;
}

static void client_open(struct world *w)
{
    nghttp2_session_callbacks *callbacks = NULL;
    assert_int_equal(nghttp2_session_callbacks_new(&callbacks), 0);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, client_on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, client_on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, client_on_close);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, client_on_frame);
    nghttp2_option *option = NULL;
    assert_int_equal(nghttp2_option_new(&option), 0);
    nghttp2_option_set_peer_max_concurrent_streams(option, STREAMS_MAX);
    assert_int_equal(nghttp2_session_client_new2(&w->client, callbacks, w, option), 0);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    assert_int_equal(nghttp2_submit_settings(w->client, NGHTTP2_FLAG_NONE, NULL, 0), 0);
}

static void world_open(struct world *w, size_t step)
{
    memset(w, 0, sizeof(*w));
    w->step = step;
    w->body_limit = 8 << 20;
    w->host = (struct http_host){
        .handler = &handler,
        .handler_ctx = w,
        .peer = "192.0.2.1:1",
        .peer_address = "192.0.2.1",
        .max_requests = 100,
        .on_output = on_output,
        .on_abort = on_abort,
        .wall_ms = wall_ms,
        .ctx = w,
    };
    w->machine = http2_new(&w->host);
    assert_non_null(w->machine);
    client_open(w);
}

static void world_close(struct world *w)
{
    if (w->machine != NULL) {
        w->machine->ops->free(w->machine);
    }
    nghttp2_session_del(w->client);
    for (size_t i = 0; i < w->stream_count; i++) {
        buf_release(&w->streams[i].body);
    }
}

static void to_server(struct world *w, const uint8_t *data, size_t len)
{
    size_t step = w->step > 0 ? w->step : len;
    for (size_t at = 0; at < len && !w->server_failed; at += step) {
        size_t count = len - at < step ? len - at : step;
        size_t used = 0;
        int rc = w->machine->ops->feed(w->machine, span_make((const char *)data + at, count),
                                       &used);
        w->server_failed = rc != 0;
    }
}

/* Lets both talk until neither has anything to say. */
static void talk(struct world *w)
{
    bool moved = true;
    while (moved && !w->server_failed) {
        moved = false;
        const uint8_t *data = NULL;
        ssize_t len = nghttp2_session_mem_send(w->client, &data);
        assert_true(len >= 0);
        if (len > 0) {
            moved = true;
            to_server(w, data, (size_t)len);
        }
        struct span out = {0};
        assert_int_equal(w->machine->ops->output(w->machine, &out), 0);
        if (out.len > 0) {
            moved = true;
            assert_int_equal(
                nghttp2_session_mem_recv(w->client, (const uint8_t *)out.data, out.len),
                (ssize_t)out.len);
        }
    }
}

static void test_requests(void **state)
{
    (void)state;
    static const size_t steps[] = {0, 1, 7, 100};
    for (size_t i = 0; i < 4; i++) {
        struct world w;
        world_open(&w, steps[i]);
        struct client_stream *get = client_send(&w, "GET", "/a?b", SPAN_LIT(""), NULL);
        struct client_stream *post = client_send(&w, "POST", "/p", SPAN_LIT("hello"), NULL);
        struct client_stream *head = client_send(&w, "HEAD", "/p", SPAN_LIT("x"), NULL);
        talk(&w);
        assert_int_equal(get->status, 200);
        assert_int_equal(post->status, 200);
        assert_int_equal(head->status, 200);
        assert_int_equal(buf_len(&get->body), 0);
        assert_int_equal(buf_len(&head->body), 0);
        assert_true(span_eq(buf_span(&post->body), SPAN_LIT("hello")));
        assert_true(get->closed && post->closed && head->closed);
        assert_int_equal(w.machine->requests, 3);
        assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_IDLE);
        world_close(&w);
    }
}

/* 5 MiB up and down: more than any window. */
static void test_large_bodies(void **state)
{
    (void)state;
    size_t len = 5 << 20;
    char *data = mem_alloc(len);
    for (size_t i = 0; i < len; i++) {
        data[i] = (char)(i * 31 + i / 251);
    }
    struct world w;
    world_open(&w, 0);
    struct client_stream *a = client_send(&w, "POST", "/a", span_make(data, len), NULL);
    struct client_stream *b = client_send(&w, "POST", "/b", span_make(data, len), NULL);
    talk(&w);
    assert_true(span_eq(buf_span(&a->body), span_make(data, len)));
    assert_true(span_eq(buf_span(&b->body), span_make(data, len)));
    world_close(&w);
    mem_free(data);
}

static void test_answers_in_any_order(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 0);
    w.later = true;
    for (size_t i = 0; i < 50; i++) {
        (void)client_send(&w, "POST", "/x", SPAN_LIT("body"), NULL);
    }
    talk(&w);
    assert_int_equal(w.pending_count, 50);
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_WAIT);
    while (w.pending_count > 0) {
        size_t pick = w.pending_count * 7 / 11;
        struct http_request *request = w.pending[pick];
        w.pending[pick] = w.pending[--w.pending_count];
        answer(request);
    }
    talk(&w);
    for (size_t i = 0; i < 50; i++) {
        assert_int_equal(w.streams[i].status, 200);
        assert_true(span_eq(buf_span(&w.streams[i].body), SPAN_LIT("body")));
    }
    assert_int_equal(w.gone, 0);
    world_close(&w);
}

static void test_expect_continue(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 0);
    struct client_stream *post = client_send(&w, "POST", "/p", SPAN_LIT("hello"), "100-continue");
    talk(&w);
    assert_int_equal(post->informational, 100);
    assert_int_equal(post->status, 200);
    world_close(&w);
}

static void test_too_large(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 0);
    w.body_limit = 10;
    struct client_stream *post = client_send(&w, "POST", "/p", SPAN_LIT("hello world"), NULL);
    struct client_stream *good = client_send(&w, "POST", "/q", SPAN_LIT("0123456789"), NULL);
    talk(&w);
    assert_int_equal(post->status, 413);
    assert_int_equal(good->status, 200);
    assert_int_equal(w.requests, 1);
    assert_int_equal(w.gone, 1);
    world_close(&w);
}

/* Other connections hold what all together may hold: nothing was processed, so the stream may be
 * tried again. */
static void test_no_room_for_a_body(void **state)
{
    (void)state;
    struct http_budget bodies = {.used_bytes = 100, .max_bytes = 104};
    struct world w;
    world_open(&w, 0);
    w.host.bodies = &bodies;
    struct client_stream *refused = client_send(&w, "POST", "/p", SPAN_LIT("hello"), NULL);
    struct client_stream *good = client_send(&w, "POST", "/q", SPAN_LIT("four"), NULL);
    talk(&w);
    assert_true(refused->closed);
    assert_int_equal(refused->error, NGHTTP2_REFUSED_STREAM);
    assert_int_equal(good->status, 200);
    assert_int_equal(w.gone, 1);
    assert_int_equal(bodies.used_bytes, 100);
    world_close(&w);
}

/* Answered in on_head: the upload is dropped for a while, and reset past that (RFC 9113 8.1). */
static void test_refused_in_head(void **state)
{
    (void)state;
    size_t len = 70 << 20;
    char *data = mem_zero(len);
    struct world w;
    world_open(&w, 0);
    w.refuse_head = true;
    struct client_stream *small = client_send(&w, "POST", "/p", span_make(data, 3 << 20), NULL);
    talk(&w);
    assert_int_equal(small->status, 401);
    assert_true(small->closed);
    assert_int_equal(small->error, NGHTTP2_NO_ERROR);
    assert_int_equal(small->upload.len, 0);
    struct client_stream *post = client_send(&w, "POST", "/p", span_make(data, len), NULL);
    talk(&w);
    assert_int_equal(post->status, 401);
    assert_true(post->closed);
    assert_int_equal(post->error, NGHTTP2_NO_ERROR);
    assert_true(post->upload.len > 0);
    assert_int_equal(w.requests + w.gone, 0);
    world_close(&w);
    mem_free(data);
}

static void test_reset_tells_the_handler(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 0);
    w.later = true;
    struct client_stream *get = client_send(&w, "GET", "/a", SPAN_LIT(""), NULL);
    talk(&w);
    assert_int_equal(w.pending_count, 1);
    assert_int_equal(
        nghttp2_submit_rst_stream(w.client, NGHTTP2_FLAG_NONE, get->id, NGHTTP2_CANCEL), 0);
    talk(&w);
    assert_int_equal(w.gone, 1);
    assert_int_equal(w.pending_count, 0);
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_IDLE);
    world_close(&w);
}

static void test_rapid_reset(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 0);
    w.later = true;
    talk(&w);
    for (size_t i = 0; i < 500 && !w.goaway; i++) {
        struct client_stream *get = client_send(&w, "GET", "/a", SPAN_LIT(""), NULL);
        talk(&w);
        (void)nghttp2_submit_rst_stream(w.client, NGHTTP2_FLAG_NONE, get->id, NGHTTP2_CANCEL);
        talk(&w);
    }
    assert_true(w.goaway);
    assert_int_equal(w.goaway_error, NGHTTP2_ENHANCE_YOUR_CALM);
    assert_true(w.stream_count < 250);
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_DONE);
    assert_int_equal(w.gone, w.heads);
    world_close(&w);
}

static void test_drain(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 0);
    w.later = true;
    struct client_stream *get = client_send(&w, "GET", "/a", SPAN_LIT(""), NULL);
    talk(&w);
    w.machine->ops->drain(w.machine);
    talk(&w);
    assert_true(w.goaway);
    assert_int_equal(w.goaway_error, NGHTTP2_NO_ERROR);
    assert_int_not_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_DONE);
    answer(w.pending[0]);
    w.pending_count = 0;
    talk(&w);
    assert_int_equal(get->status, 200);
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_DONE);
    world_close(&w);
}

static void test_timeout_and_free(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 0);
    w.later = true;
    (void)client_send(&w, "GET", "/a", SPAN_LIT(""), NULL);
    (void)client_send(&w, "GET", "/b", SPAN_LIT(""), NULL);
    talk(&w);
    w.machine->ops->timeout(w.machine);
    talk(&w);
    assert_true(w.goaway);
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_DONE);
    w.machine->ops->free(w.machine);
    w.machine = NULL;
    assert_int_equal(w.gone, 2);
    world_close(&w);
}

static void test_header_limits(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 0);
    nghttp2_nv fields[HTTP_HEADERS_MAX + 5];
    fields[0] = nv(":method", "GET");
    fields[1] = nv(":scheme", "http");
    fields[2] = nv(":authority", "h.test");
    fields[3] = nv(":path", "/");
    for (size_t i = 4; i < HTTP_HEADERS_MAX + 5; i++) {
        fields[i] = nv("x-a", "b");
    }
    for (size_t extra = 0; extra < 2; extra++) {
        int32_t id = nghttp2_submit_request(w.client, NULL, fields, HTTP_HEADERS_MAX + 4 + extra,
                                            NULL, NULL);
        w.streams[w.stream_count] = (struct client_stream){.id = id};
        buf_init(&w.streams[w.stream_count++].body, 1 << 20);
    }
    talk(&w);
    assert_int_equal(w.streams[0].status, 200);
    assert_int_equal(w.streams[1].status, 431);
    assert_int_equal(w.heads, 1);
    world_close(&w);
}

static void test_no_preface(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 0);
    size_t used = 0;
    int rc = w.machine->ops->feed(w.machine, SPAN_LIT("GET / HTTP/1.1\r\nhost: h\r\n\r\n"), &used);
    assert_int_equal(rc, ERR_PROTO);
    world_close(&w);
}

static void test_abort(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 0);
    w.later = true;
    (void)client_send(&w, "GET", "/a", SPAN_LIT(""), NULL);
    talk(&w);
    http_abort(w.pending[0]);
    assert_true(w.aborted);
    assert_int_equal(w.machine->ops->phase(w.machine), HTTP_PHASE_DONE);
    world_close(&w);
    assert_int_equal(w.gone, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_large_bodies),
        cmocka_unit_test(test_answers_in_any_order),
        cmocka_unit_test(test_expect_continue),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_no_room_for_a_body),
        cmocka_unit_test(test_refused_in_head),
        cmocka_unit_test(test_reset_tells_the_handler),
        cmocka_unit_test(test_rapid_reset),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_timeout_and_free),
        cmocka_unit_test(test_header_limits),
        cmocka_unit_test(test_no_preface),
        cmocka_unit_test(test_abort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
