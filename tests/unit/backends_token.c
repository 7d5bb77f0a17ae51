/* Unit tests of backends/token against a scripted token service, and of the table rows for its
 * answers. */
#include "backends/token.h"

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
    struct token_source *source;
    struct credential_conf credential;
    char authority[100];
    int status;
    const char *headers;
    const char *body; /* NULL: a numbered token */
    const char *life;
    char made[200];
    enum https_action action;
    char seen_target[200];
    char seen_body[500];
    bool closed;
};

struct ask {
    struct token_waiter waiter;
    char token[100];
    struct answer why;
    bool failed;
    bool done;
};

static void handle(void *ctx, const struct https_request *request, bool early,
                   struct https_reply *reply)
{
    struct fixture *f = ctx;
    if (early) {
        return;
    }
    snprintf(f->seen_target, sizeof(f->seen_target), "%.*s", SPAN_FMT(request->target));
    snprintf(f->seen_body, sizeof(f->seen_body), "%.*s", SPAN_FMT(request->body));
    snprintf(f->made, sizeof(f->made),
             "{\"token_type\":\"Bearer\",\"expires_in\":%s,\"access_token\":\"token-%zu\"}",
             f->life, f->server.requests);
    reply->action = f->action;
    reply->status = f->status;
    snprintf(reply->headers, sizeof(reply->headers), "%s", f->headers);
    reply->body = f->body != NULL ? f->body : f->made;
}

static void on_token(struct token_waiter *waiter, struct span token, const struct answer *why)
{
    struct ask *ask = waiter->ctx;
    assert_false(ask->done);
    ask->done = true;
    ask->failed = token.len == 0;
    snprintf(ask->token, sizeof(ask->token), "%.*s", (int)token.len,
             token.len > 0 ? token.data : "");
    if (why != NULL) {
        ask->why = *why;
    }
}

static void setup(struct fixture *f)
{
    struct err err = {.code = 0};
    *f = (struct fixture){.status = 200, .headers = "", .life = "3599"};
    f->loop = loop_new("test");
    https_server_start(&f->server, f->loop);
    f->server.handle = handle;
    f->server.ctx = f;
    f->client = http_client_new(f->loop, 0);
    snprintf(f->authority, sizeof(f->authority), "https://127.0.0.1:%u/", f->server.port);
    f->credential = (struct credential_conf){.name = "entra",
                                             .authority = f->authority,
                                             .tenant_id = "tenant 1",
                                             .client_id = "id",
                                             .client_secret = "s&cret=",
                                             .ca_file = f->server.ca_file};
    assert_int_equal(
        token_source_new(f->loop, f->client, &f->credential, TOKEN_SCOPE_GRAPH, &f->source, &err),
        0);
}

static void on_closed(void *ctx)
{
    *(bool *)ctx = true;
}

static void teardown(struct fixture *f)
{
    http_client_close(&f->client, on_closed, &f->closed);
    https_run_until(f->loop, &f->closed);
    token_source_free(&f->source);
    https_server_release(&f->server);
    loop_free(&f->loop);
}

static void want(struct fixture *f, struct ask *ask)
{
    *ask = (struct ask){.waiter = {.on_token = on_token}};
    ask->waiter.ctx = ask;
    token_get(f->source, &ask->waiter);
    assert_false(ask->done);
}

static void get(struct fixture *f, struct ask *ask)
{
    want(f, ask);
    https_run_until(f->loop, &ask->done);
}

static void asks_as_services_md_says(void **state)
{
    (void)state;
    struct fixture f;
    struct ask ask;
    setup(&f);
    get(&f, &ask);
    assert_string_equal(ask.token, "token-1");
    assert_string_equal(f.seen_target, "/tenant%201/oauth2/v2.0/token");
    assert_string_equal(f.seen_body,
                        "client_id=id&scope=https%3A%2F%2Fgraph.microsoft.com%2F.default"
                        "&client_secret=s%26cret%3D&grant_type=client_credentials");
    teardown(&f);
}

static void one_request_serves_all(void **state)
{
    (void)state;
    struct fixture f;
    struct ask asks[5];
    setup(&f);
    for (size_t i = 0; i < 5; i++) {
        want(&f, &asks[i]);
    }
    token_cancel(f.source, &asks[2].waiter);
    https_run_until(f.loop, &asks[4].done);
    assert_false(asks[2].done);
    for (size_t i = 0; i < 5; i++) {
        assert_string_equal(asks[i].token, i == 2 ? "" : "token-1");
    }
    get(&f, &asks[2]);
    assert_string_equal(asks[2].token, "token-1");
    assert_int_equal(f.server.requests, 1);
    teardown(&f);
}

static void a_refused_token_is_replaced_once(void **state)
{
    (void)state;
    struct fixture f;
    struct ask ask;
    setup(&f);
    get(&f, &ask);
    token_refused(f.source, SPAN_LIT("token-0")); /* not the one that is held */
    get(&f, &ask);
    assert_string_equal(ask.token, "token-1");
    token_refused(f.source, SPAN_LIT("token-1"));
    get(&f, &ask);
    assert_string_equal(ask.token, "token-2");
    teardown(&f);
}

/* 1 s of life: renewed after 0.66 s in the background, while the old one is still handed out. */
static void short_lives_are_renewed_in_time(void **state)
{
    (void)state;
    struct fixture f;
    struct ask ask;
    setup(&f);
    f.life = "\"1\"";
    get(&f, &ask);
    assert_string_equal(ask.token, "token-1");
    int64_t start_ms = loop_now_ms(f.loop);
    while (f.server.requests == 1 && loop_now_ms(f.loop) - start_ms < 5000) {
        get(&f, &ask);
        assert_false(ask.failed);
    }
    assert_int_equal(f.server.requests, 2);
    assert_true(loop_now_ms(f.loop) - start_ms >= 600);
    while (strcmp(ask.token, "token-2") != 0 && loop_now_ms(f.loop) - start_ms < 5000) {
        get(&f, &ask);
        assert_false(ask.failed);
    }
    assert_string_equal(ask.token, "token-2");
    teardown(&f);
}

static void a_wrong_secret_waits_minutes(void **state)
{
    (void)state;
    struct fixture f;
    struct ask ask;
    setup(&f);
    f.status = 401;
    f.body = "{\"error\":\"invalid_client\",\"error_description\":\"AADSTS7000215: Invalid client "
             "secret provided.\",\"error_codes\":[7000215]}";
    get(&f, &ask);
    assert_true(ask.failed);
    assert_int_equal(ask.why.verdict, VERDICT_CONFIG);
    assert_int_equal(ask.why.scope, SCOPE_BACKEND);
    assert_true(ask.why.wait_ms > 200000);
    assert_non_null(ask.why.remedy);
    assert_non_null(strstr(ask.why.text, "AADSTS7000215"));
    get(&f, &ask);
    assert_int_equal(ask.why.verdict, VERDICT_CONFIG);
    assert_int_equal(f.server.requests, 1);
    teardown(&f);
}

static void trouble_passes(void **state)
{
    (void)state;
    struct fixture f;
    struct ask ask;
    setup(&f);
    f.status = 503;
    f.body = "";
    f.headers = "retry-after-ms: 50\r\n";
    get(&f, &ask);
    assert_int_equal(ask.why.verdict, VERDICT_THROTTLED);
    assert_true(ask.why.wait_ms <= 50);
    f.status = 200;
    f.body = NULL;
    do {
        get(&f, &ask);
    } while (ask.failed);
    assert_string_equal(ask.token, "token-2");
    teardown(&f);
}

static void unreadable_answers_and_lost_ones_are_transient(void **state)
{
    (void)state;
    static const struct {
        enum https_action action;
        const char *body;
    } rows[] = {
        {HTTPS_DROP, ""},
        {HTTPS_REPLY, ""},
        {HTTPS_REPLY, "{\"access_token\":\"t\"}"},
        {HTTPS_REPLY, "{\"access_token\":\"t\",\"expires_in\":0}"},
        {HTTPS_REPLY, "{\"access_token\":\"t\",\"expires_in\":-5}"},
        {HTTPS_REPLY, "{\"access_token\":7,\"expires_in\":60}"},
        {HTTPS_REPLY, "[]"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct fixture f;
        struct ask ask;
        setup(&f);
        f.action = rows[i].action;
        f.body = rows[i].body;
        get(&f, &ask);
        assert_true(ask.failed);
        assert_int_equal(ask.why.verdict, VERDICT_TRANSIENT);
        assert_true(ask.why.wait_ms > 0);
        teardown(&f);
    }
}

static void says_what_is_missing(void **state)
{
    (void)state;
    struct credential_conf credential = {
        .name = "entra", .authority = "https://a", .client_id = "c"};
    struct token_source *source = NULL;
    struct err err = {.code = 0};
    assert_int_equal(token_source_new(NULL, NULL, &credential, "s", &source, &err), ERR_INVAL);
    assert_non_null(strstr(err.text, "entra"));
    assert_int_equal(token_source_new(NULL, NULL, NULL, "s", &source, &err), ERR_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(asks_as_services_md_says),
        cmocka_unit_test(one_request_serves_all),
        cmocka_unit_test(a_refused_token_is_replaced_once),
        cmocka_unit_test(short_lives_are_renewed_in_time),
        cmocka_unit_test(a_wrong_secret_waits_minutes),
        cmocka_unit_test(trouble_passes),
        cmocka_unit_test(unreadable_answers_and_lost_ones_are_transient),
        cmocka_unit_test(says_what_is_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
