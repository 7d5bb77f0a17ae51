/* Unit tests of backends/http_client against a scripted server: outcomes, headers, reuse,
 * deadlines. */
#include "backends/http_client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/https_server.h"

struct fixture {
    struct loop *loop;
    struct https_server server;
    struct http_client *client;
    enum https_action action;
    enum https_action early;
    int status;
    const char *headers;
    const char *body;
    char seen_target[200];
    char seen_body[200];
    char seen_header[200];
    size_t seen_length;
    bool closed;
};

struct call {
    struct http_request request;
    struct http_result result;
    char body[200];
    size_t body_len;
    int start_result;
    size_t starts;
    bool done;
    bool *all_done;
};

static void handle(void *ctx, const struct https_request *request, bool early,
                   struct https_reply *reply)
{
    struct fixture *f = ctx;
    if (early) {
        reply->action = f->early;
        return;
    }
    snprintf(f->seen_target, sizeof(f->seen_target), "%.*s", SPAN_FMT(request->target));
    snprintf(f->seen_body, sizeof(f->seen_body), "%.*s", SPAN_FMT(request->body));
    snprintf(f->seen_header, sizeof(f->seen_header), "%.*s",
             SPAN_FMT(https_field(request->head, "x-test")));
    f->seen_length = request->body.len;
    reply->action = f->action;
    reply->status = f->status;
    snprintf(reply->headers, sizeof(reply->headers), "%s", f->headers);
    reply->body = f->body;
}

static int on_start(struct http_request *request)
{
    struct call *call = request->ctx;
    call->starts++;
    return call->start_result;
}

static void on_done(struct http_request *request, const struct http_result *result)
{
    struct call *call = request->ctx;
    assert_false(call->done);
    call->result = *result;
    call->body_len = result->body.len;
    snprintf(call->body, sizeof(call->body), "%.*s",
             (int)(result->body.len < 190 ? result->body.len : 190),
             result->body.len > 0 ? result->body.data : "");
    call->done = true;
}

static void setup(struct fixture *f)
{
    *f = (struct fixture){.status = 200, .headers = "", .body = "hello"};
    f->loop = loop_new("test");
    https_server_start(&f->server, f->loop);
    f->server.handle = handle;
    f->server.ctx = f;
    f->client = http_client_new(f->loop, 4);
}

static void on_closed(void *ctx)
{
    *(bool *)ctx = true;
}

static void teardown(struct fixture *f)
{
    if (f->client != NULL) {
        http_client_close(&f->client, on_closed, &f->closed);
    }
    https_run_until(f->loop, &f->closed);
    https_server_release(&f->server);
    loop_free(&f->loop);
}

static void prepare(struct fixture *f, struct call *call, const char *method, struct span body)
{
    static char url[100];
    snprintf(url, sizeof(url), "https://127.0.0.1:%u/path:x?y=1", f->server.port);
    *call = (struct call){.request = {.method = method,
                                      .url = url,
                                      .body = body,
                                      .ca_file = f->server.ca_file,
                                      .connect_timeout_ms = 5000,
                                      .reply_timeout_ms = 5000,
                                      .on_start = on_start,
                                      .on_done = on_done}};
    call->request.ctx = call;
}

static void run(struct fixture *f, struct call *call)
{
    http_client_send(f->client, &call->request);
    assert_false(call->done);
    https_run_until(f->loop, &call->done);
}

static void posts_and_reads_the_answer(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    f.status = 429;
    f.headers = "RETRY-AFTER: 7\r\nx-ms-request-id: r1\r\nX-Ms-Error-Code: Code1\r\n";
    prepare(&f, &call, "POST", SPAN_LIT("the body"));
    http_client_request_header(&call.request, SPAN_LIT("X-Test"), SPAN_LIT("v 1"));
    run(&f, &call);
    assert_int_equal(call.result.outcome, HTTP_ANSWERED);
    assert_int_equal(call.result.status, 429);
    assert_int_equal(call.result.retry_after_ms, 7000);
    assert_string_equal(call.result.request_id, "r1");
    assert_string_equal(call.result.error_code, "Code1");
    assert_string_equal(call.body, "hello");
    assert_string_equal(f.seen_target, "/path:x?y=1");
    assert_string_equal(f.seen_body, "the body");
    assert_string_equal(f.seen_header, "v 1");
    assert_int_equal(call.starts, 1);
    teardown(&f);
}

static void keeps_connections(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    for (int i = 0; i < 3; i++) {
        prepare(&f, &call, i == 1 ? "GET" : "POST", i == 1 ? SPAN_LIT("") : SPAN_LIT("b"));
        run(&f, &call);
        assert_int_equal(call.result.status, 200);
    }
    assert_int_equal(f.server.accepted, 1);
    assert_int_equal(f.server.requests, 3);
    teardown(&f);
}

static void sends_large_bodies(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    size_t len = 9000000;
    char *body = mem_zero(len);
    memset(body, 'x', len);
    prepare(&f, &call, "POST", span_make(body, len));
    run(&f, &call);
    assert_int_equal(call.result.status, 200);
    assert_int_equal(f.seen_length, len);
    teardown(&f);
    mem_free(body);
}

static void a_refused_start_sends_nothing(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    prepare(&f, &call, "POST", SPAN_LIT("b"));
    call.start_result = ERR_STALE;
    run(&f, &call);
    assert_int_equal(call.result.outcome, HTTP_NOT_SENT);
    assert_true(call.result.start_refused);
    assert_int_equal(f.server.requests, 0);
    teardown(&f);
}

static void a_lost_answer_is_lost(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    f.action = HTTPS_DROP;
    prepare(&f, &call, "POST", SPAN_LIT("b"));
    run(&f, &call);
    assert_int_equal(call.result.outcome, HTTP_LOST);
    assert_int_not_equal(call.result.why[0], '\0');
    assert_int_equal(f.server.requests, 1);
    teardown(&f);
}

/* libcurl would send again by itself on a new connection, and the service could act twice. */
static void a_lost_answer_on_a_kept_connection_is_not_sent_again(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    prepare(&f, &call, "POST", SPAN_LIT("first"));
    run(&f, &call);
    f.action = HTTPS_DROP;
    prepare(&f, &call, "POST", SPAN_LIT("second"));
    run(&f, &call);
    assert_int_equal(call.result.outcome, HTTP_LOST);
    assert_int_equal(f.server.requests, 2);
    assert_int_equal(call.starts, 1);
    teardown(&f);
}

static void a_connection_cut_in_the_body_is_not_sent(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    size_t len = 20000000;
    char *body = mem_zero(len);
    memset(body, 'x', len);
    f.early = HTTPS_DROP_HEAD;
    prepare(&f, &call, "POST", span_make(body, len));
    run(&f, &call);
    assert_int_equal(call.result.outcome, HTTP_NOT_SENT);
    assert_int_equal(call.starts, 1);
    assert_false(call.result.start_refused);
    teardown(&f);
    mem_free(body);
}

static void nobody_there_is_not_sent(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    prepare(&f, &call, "POST", SPAN_LIT("b"));
    https_server_stop_listening(&f.server);
    loop_run_once(f.loop);
    run(&f, &call);
    assert_int_equal(call.result.outcome, HTTP_NOT_SENT);
    assert_int_equal(call.starts, 0);
    teardown(&f);
}

static void an_unknown_certificate_is_refused(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    prepare(&f, &call, "POST", SPAN_LIT("b"));
    call.request.ca_file = NULL;
    run(&f, &call);
    assert_int_equal(call.result.outcome, HTTP_NOT_SENT);
    assert_int_equal(call.starts, 0);
    assert_int_equal(f.server.requests, 0);
    teardown(&f);
}

static void only_https(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    prepare(&f, &call, "GET", SPAN_LIT(""));
    char url[100];
    snprintf(url, sizeof(url), "http://127.0.0.1:%u/", f.server.port);
    call.request.url = url;
    run(&f, &call);
    assert_int_equal(call.result.outcome, HTTP_NOT_SENT);
    assert_int_equal(f.server.accepted, 0);
    teardown(&f);
}

static void does_not_follow_redirects(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    f.status = 302;
    f.headers = "Location: /elsewhere\r\n";
    prepare(&f, &call, "GET", SPAN_LIT(""));
    run(&f, &call);
    assert_int_equal(call.result.status, 302);
    assert_int_equal(f.server.requests, 1);
    teardown(&f);
}

static void silence_ends_at_the_deadline(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    f.action = HTTPS_HANG;
    prepare(&f, &call, "POST", SPAN_LIT("b"));
    call.request.reply_timeout_ms = 150;
    run(&f, &call);
    assert_int_equal(call.result.outcome, HTTP_LOST);
    teardown(&f);
}

static void cancel_tells_how_it_stood(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    prepare(&f, &call, "POST", SPAN_LIT("b"));
    http_client_send(f.client, &call.request);
    http_client_cancel(f.client, &call.request);
    assert_false(call.done);
    https_run_until(f.loop, &call.done);
    assert_int_equal(call.result.outcome, HTTP_NOT_SENT);

    f.action = HTTPS_HANG;
    prepare(&f, &call, "POST", SPAN_LIT("b"));
    http_client_send(f.client, &call.request);
    while (f.server.requests == 0) {
        loop_run_once(f.loop);
    }
    http_client_cancel(f.client, &call.request);
    https_run_until(f.loop, &call.done);
    assert_int_equal(call.result.outcome, HTTP_LOST);
    assert_int_equal(http_client_pending(f.client), 0);
    teardown(&f);
}

static void close_ends_what_runs(void **state)
{
    (void)state;
    struct fixture f;
    struct call calls[3];
    setup(&f);
    f.action = HTTPS_HANG;
    for (size_t i = 0; i < 3; i++) {
        prepare(&f, &calls[i], "POST", SPAN_LIT("b"));
        http_client_send(f.client, &calls[i].request);
    }
    while (f.server.requests < 3) {
        loop_run_once(f.loop);
    }
    http_client_close(&f.client, on_closed, &f.closed);
    https_run_until(f.loop, &f.closed);
    for (size_t i = 0; i < 3; i++) {
        assert_true(calls[i].done);
        assert_int_equal(calls[i].result.outcome, HTTP_LOST);
    }
    teardown(&f);
}

static void an_answer_is_cut_at_its_limit(void **state)
{
    (void)state;
    struct fixture f;
    struct call call;
    setup(&f);
    char *long_body = mem_zero(3000001);
    memset(long_body, 'y', 3000000);
    f.body = long_body;
    f.status = 503;
    prepare(&f, &call, "POST", SPAN_LIT("b"));
    run(&f, &call);
    assert_int_equal(call.result.outcome, HTTP_ANSWERED);
    assert_int_equal(call.result.status, 503);
    assert_true(call.body_len <= HTTP_ANSWER_MAX);
    teardown(&f);
    mem_free(long_body);
}

struct chain {
    struct call first;
    struct call second;
    struct fixture *fixture;
};

static void on_first_done(struct http_request *request, const struct http_result *result)
{
    struct chain *chain = request->ctx;
    (void)result;
    http_client_send(chain->fixture->client, &chain->second.request);
}

static void a_callback_may_send_again(void **state)
{
    (void)state;
    struct fixture f;
    struct chain chain = {.fixture = &f};
    setup(&f);
    prepare(&f, &chain.first, "GET", SPAN_LIT(""));
    prepare(&f, &chain.second, "GET", SPAN_LIT(""));
    chain.first.request.on_done = on_first_done;
    chain.first.request.on_start = NULL;
    chain.first.request.ctx = &chain;
    http_client_send(f.client, &chain.first.request);
    https_run_until(f.loop, &chain.second.done);
    assert_int_equal(chain.second.result.status, 200);
    teardown(&f);
}

static void retry_after_in_both_forms(void **state)
{
    (void)state;
    const int64_t now_ms = INT64_C(784111777000); /* Sun, 06 Nov 1994 08:49:37 GMT */
    assert_int_equal(http_retry_after_ms(SPAN_LIT("0"), now_ms), 0);
    assert_int_equal(http_retry_after_ms(SPAN_LIT(" 60 "), now_ms), 60000);
    assert_int_equal(http_retry_after_ms(SPAN_LIT("Sun, 06 Nov 1994 08:49:40 GMT"), now_ms), 3000);
    assert_int_equal(http_retry_after_ms(SPAN_LIT("Sun, 06 Nov 1994 08:00:00 GMT"), now_ms), 0);
    assert_int_equal(http_retry_after_ms(SPAN_LIT("99999999999"), now_ms), 604800000);
    assert_int_equal(http_retry_after_ms(SPAN_LIT("soon"), now_ms), -1);
    assert_int_equal(http_retry_after_ms(SPAN_LIT("-1"), now_ms), -1);
    assert_int_equal(http_retry_after_ms(SPAN_LIT(""), now_ms), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(posts_and_reads_the_answer),
        cmocka_unit_test(keeps_connections),
        cmocka_unit_test(sends_large_bodies),
        cmocka_unit_test(a_refused_start_sends_nothing),
        cmocka_unit_test(a_lost_answer_is_lost),
        cmocka_unit_test(a_lost_answer_on_a_kept_connection_is_not_sent_again),
        cmocka_unit_test(a_connection_cut_in_the_body_is_not_sent),
        cmocka_unit_test(nobody_there_is_not_sent),
        cmocka_unit_test(an_unknown_certificate_is_refused),
        cmocka_unit_test(only_https),
        cmocka_unit_test(does_not_follow_redirects),
        cmocka_unit_test(silence_ends_at_the_deadline),
        cmocka_unit_test(cancel_tells_how_it_stood),
        cmocka_unit_test(close_ends_what_runs),
        cmocka_unit_test(an_answer_is_cut_at_its_limit),
        cmocka_unit_test(a_callback_may_send_again),
        cmocka_unit_test(retry_after_in_both_forms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
