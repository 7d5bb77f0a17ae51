/* Unit tests of backends/graph: the message per batch, and deliveries against a scripted service.
 */
#include "backends/graph.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "gateway/base/codec.h"
#include "tests/lib/rest_fixture.h"

static const char sample[] = "Received: by x\r\n"
                             "From: \"App\" <app@contoso.com>\r\n"
                             "To: =?utf-8?Q?Eins?= <R1@example.com>, other@example.com,\r\n"
                             " r3@example.com\r\n"
                             "Cc: r2@example.com (Zwei)\r\n"
                             "Subject: s\r\n"
                             "Message-ID: <1@x>\r\n"
                             "\r\n"
                             "body \xc3\xa4\r\n";

/* ---- The message ---- */

static void assert_written(const char *message, size_t from, size_t count, const char *mailbox,
                           const char *want)
{
    struct sent sent;
    struct buf out;
    sent_prepare(&sent, 50, span_of(message));
    buf_init(&out, 1 << 20);
    assert_int_equal(graph_message_write(&sent.delivery, from, count, span_of(mailbox), &out), 0);
    if (!span_eq(buf_span(&out), span_of(want))) {
        fail_msg("got:\n%.*s\nwant:\n%s", SPAN_FMT(buf_span(&out)), want);
    }
    buf_release(&out);
}

static void keeps_the_batchs_own_recipients(void **state)
{
    (void)state;
    assert_written(sample, 0, 3, "notify1@contoso.com",
                   "To: =?utf-8?Q?Eins?= <R1@example.com>\r\n"
                   "Cc: r2@example.com (Zwei)\r\n"
                   "Bcc: r0@example.com\r\n"
                   "Received: by x\r\n"
                   "From: \"App\" <notify1@contoso.com>\r\n"
                   "X-Original-From: \"App\" <app@contoso.com>\r\n"
                   "Reply-To: \"App\" <app@contoso.com>\r\n"
                   "Subject: s\r\n"
                   "Message-ID: <1@x>\r\n"
                   "\r\n"
                   "body \xc3\xa4\r\n");
}

static void hides_those_that_were_hidden(void **state)
{
    (void)state;
    assert_written("From: n@c.d\r\nTo: x@y.z\r\nbcc: r0@example.com\r\nResent-To: q@y.z\r\n\r\nb",
                   4, 2, "n@c.d",
                   "To: undisclosed-recipients:;\r\n"
                   "Bcc: r4@example.com,\r\n r5@example.com\r\n"
                   "From: <n@c.d>\r\n"
                   "\r\nb");
}

static void a_repeated_address_is_written_once(void **state)
{
    (void)state;
    assert_written(
        "From: n@c.d\r\nTo: r1@example.com, r1@EXAMPLE.com\r\nCc: r1@example.com\r\n\r\n", 1, 1,
        "n@c.d", "To: r1@example.com\r\nFrom: <n@c.d>\r\n\r\n");
}

/* ---- Deliveries ---- */

struct world {
    struct fixture f;
    struct credential_conf credential;
    size_t tokens;
    int token_status;
    char token_body[200];
};

static const char *const mailboxes[] = {"notify1@contoso.com", "notify2@contoso.com"};

static void world_handle(void *ctx, const struct https_request *request, bool early,
                         struct https_reply *reply)
{
    struct world *world = ctx;
    if (span_search(request->target, SPAN_LIT("/oauth2/")) == request->target.len) {
        fixture_handle(&world->f, request, early, reply);
        return;
    }
    if (early) {
        return;
    }
    world->tokens++;
    snprintf(world->token_body, sizeof(world->token_body),
             world->token_status == 200
                 ? "{\"expires_in\":3599,\"access_token\":\"token-%zu\"}"
                 : "{\"error\":\"invalid_client\",\"error_codes\":[7000215],\"x\":%zu}",
             world->tokens);
    reply->status = world->token_status;
    reply->body = world->token_body;
}

static void setup(struct world *world, const struct step *steps, size_t step_count,
                  size_t mailbox_count)
{
    fixture_init(&world->f, steps, step_count);
    world->tokens = 0;
    world->token_status = 200;
    world->f.server.handle = world_handle;
    world->f.server.ctx = world;
    world->credential = (struct credential_conf){.name = "entra",
                                                 .authority = world->f.endpoint,
                                                 .tenant_id = "t",
                                                 .client_id = "c",
                                                 .client_secret = "s",
                                                 .ca_file = world->f.server.ca_file};
    world->f.conf.type = "graph";
    world->f.conf.credential = &world->credential;
    world->f.conf.mailboxes = mailboxes;
    world->f.conf.mailbox_count = mailbox_count;
    fixture_open(&world->f, NULL);
}

static const struct step accepted = {.status = 202};
#define GRAPH_ERROR(status_, code_)                                                               \
    {                                                                                             \
        .status = (status_), .body = "{\"error\":{\"code\":\"" code_ "\",\"message\":\"words\"}}" \
    }

static void sends_mime_with_a_token(void **state)
{
    (void)state;
    struct world world;
    struct sent sent;
    struct buf mime;
    setup(&world, &accepted, 1, 2);
    assert_int_equal(backend_room(world.f.backend), 8);
    sent_prepare(&sent, 3, span_of(sample));
    sent_run(&world.f, &sent);
    assert_int_equal(sent.answers[2].verdict, VERDICT_DELIVERED);
    assert_int_equal(sent.answers[2].code, 202);
    assert_string_equal(sent.account, "notify1@contoso.com");
    assert_int_equal(sent.starts, 1);
    assert_string_equal(world.f.targets[0], "/v1.0/users/notify1%40contoso.com/sendMail");
    struct span head = span_of(world.f.heads[0]);
    assert_true(span_eq(https_field(head, "authorization"), SPAN_LIT("Bearer token-1")));
    assert_true(span_eq(https_field(head, "content-type"), SPAN_LIT("text/plain")));
    assert_int_equal(https_field(head, "client-request-id").len, CODEC_ULID_LEN);
    buf_init(&mime, 1 << 20);
    assert_int_equal(codec_base64_decode(span_of(world.f.bodies[0]), false, &mime), 0);
    assert_true(
        span_starts(buf_span(&mime), SPAN_LIT("To: =?utf-8?Q?Eins?= <R1@example.com>\r\n")));
    assert_true(span_ends(buf_span(&mime), SPAN_LIT("\r\n\r\nbody \xc3\xa4\r\n")));
    buf_release(&mime);

    sent_prepare(&sent, 1, span_of(sample));
    sent_run(&world.f, &sent);
    assert_string_equal(sent.account, "notify2@contoso.com"); /* taking turns */
    assert_int_equal(world.tokens, 1);
    fixture_release(&world.f);
}

static void only_202_is_success(void **state)
{
    (void)state;
    static const struct {
        struct step step;
        enum verdict verdict;
        enum verdict_scope scope;
        int64_t wait_ms;
    } rows[] = {
        {{.status = 202, .headers = "Retry-After: 5\r\n"}, VERDICT_DELIVERED, SCOPE_NONE, 0},
        {{.status = 200}, VERDICT_TRANSIENT, SCOPE_NONE, 0},
        {{.status = 429, .headers = "Retry-After: 5\r\n"}, VERDICT_THROTTLED, SCOPE_ACCOUNT, 5000},
        {{.status = 503, .headers = "Retry-After: 9\r\n"}, VERDICT_THROTTLED, SCOPE_ACCOUNT, 9000},
        {{.status = 503}, VERDICT_UNKNOWN, SCOPE_NONE, 0},
        {{.status = 504}, VERDICT_UNKNOWN, SCOPE_NONE, 0},
        {{.action = HTTPS_DROP}, VERDICT_UNKNOWN, SCOPE_NONE, 0},
        {GRAPH_ERROR(403, "ErrorExceededMessageLimit"), VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT,
         14400000},
        {GRAPH_ERROR(429, "ErrorExceededMessageLimit"), VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT,
         14400000},
        {GRAPH_ERROR(403, "ErrorSendAsDenied"), VERDICT_CONFIG, SCOPE_ACCOUNT, 300000},
        {GRAPH_ERROR(400, "ErrorInvalidRecipients"), VERDICT_RECIPIENT_PERMANENT, SCOPE_NONE, 0},
        {{.status = 413}, VERDICT_MESSAGE_PERMANENT, SCOPE_NONE, 0},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct world world;
        struct sent sent;
        setup(&world, &rows[i].step, 1, 2);
        sent_prepare(&sent, 1, span_of(sample));
        sent_run(&world.f, &sent);
        if (sent.answers[0].verdict != rows[i].verdict || sent.answers[0].scope != rows[i].scope ||
            sent.answers[0].wait_ms != rows[i].wait_ms) {
            fail_msg("row %zu: %s scope %d wait %ld \"%s\"", i,
                     verdict_name(sent.answers[0].verdict), (int)sent.answers[0].scope,
                     (long)sent.answers[0].wait_ms, sent.answers[0].text);
        }
        /* A mailbox that is out leaves the other one. */
        assert_int_equal(backend_room(world.f.backend), rows[i].scope == SCOPE_ACCOUNT ? 4 : 8);
        fixture_release(&world.f);
    }
}

static void a_refused_token_is_renewed_once(void **state)
{
    (void)state;
    static const struct step once[] = {GRAPH_ERROR(401, "InvalidAuthenticationToken"),
                                       {.status = 202}};
    static const struct step always[] = {GRAPH_ERROR(401, "InvalidAuthenticationToken")};
    struct world world;
    struct sent sent;
    setup(&world, once, 2, 1);
    sent_prepare(&sent, 1, span_of(sample));
    sent_run(&world.f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_DELIVERED);
    assert_int_equal(world.tokens, 2);
    assert_true(span_eq(https_field(span_of(world.f.heads[1]), "authorization"),
                        SPAN_LIT("Bearer token-2")));
    assert_int_equal(sent.starts, 1);
    fixture_release(&world.f);

    setup(&world, always, 1, 1);
    sent_prepare(&sent, 1, span_of(sample));
    sent_run(&world.f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_CONFIG);
    assert_int_equal(sent.answers[0].scope, SCOPE_BACKEND);
    assert_int_equal(world.f.request_count, 2);
    assert_int_equal(backend_room(world.f.backend), 0);
    assert_string_equal(world.f.health, "config notify1@contoso.com");
    fixture_release(&world.f);
}

static void without_a_token_nothing_is_sent(void **state)
{
    (void)state;
    struct world world;
    struct sent sent;
    setup(&world, &accepted, 1, 2);
    world.token_status = 401;
    sent_prepare(&sent, 2, span_of(sample));
    sent_run(&world.f, &sent);
    assert_int_equal(sent.answers[1].verdict, VERDICT_CONFIG);
    assert_non_null(strstr(sent.answers[1].remedy, "secret"));
    assert_int_equal(world.f.request_count, 0);
    assert_int_equal(sent.starts, 0);
    assert_int_equal(backend_room(world.f.backend), 0);
    fixture_release(&world.f);
}

static void one_bad_recipient_is_found(void **state)
{
    (void)state;
    static const struct step steps[] = {
        GRAPH_ERROR(400, "ErrorInvalidRecipients"), /* 0 1 2 */
        GRAPH_ERROR(400, "ErrorInvalidRecipients"), /* 0 */
        {.status = 202},                            /* 1 2 */
    };
    struct world world;
    struct sent sent;
    setup(&world, steps, 3, 1);
    sent_prepare(&sent, 3, span_of(sample));
    sent_run(&world.f, &sent);
    assert_int_equal(world.f.request_count, 3);
    assert_int_equal(sent.answers[0].verdict, VERDICT_RECIPIENT_PERMANENT);
    assert_int_equal(sent.answers[1].verdict, VERDICT_DELIVERED);
    assert_int_equal(sent.answers[2].verdict, VERDICT_DELIVERED);
    fixture_release(&world.f);
}

static void large_messages_are_refused_before_sending(void **state)
{
    (void)state;
    struct world world;
    struct sent sent;
    struct buf body;
    setup(&world, &accepted, 1, 1);
    buf_init(&body, 8000000);
    assert_int_equal(buf_append(&body, SPAN_LIT("From: a@b.c\r\n\r\n")), 0);
    while (buf_len(&body) < 3200000) {
        assert_int_equal(
            buf_append(&body, SPAN_LIT("0123456789012345678901234567890123456789\r\n")), 0);
    }
    sent_prepare(&sent, 1, buf_span(&body));
    sent_run(&world.f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_MESSAGE_PERMANENT);
    assert_non_null(strstr(sent.answers[0].text, "3145728"));
    sent_prepare(&sent, 1, span_make(buf_span(&body).data, 3140000));
    sent_run(&world.f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_DELIVERED);
    fixture_release(&world.f);
    buf_release(&body);
}

static void four_at_once_per_mailbox(void **state)
{
    (void)state;
    static const struct step hang[] = {{.action = HTTPS_HANG}};
    struct world world;
    struct sent sents[9];
    setup(&world, hang, 1, 2);
    for (size_t i = 0; i < 8; i++) {
        sent_prepare(&sents[i], 1, span_of(sample));
        assert_int_equal(backend_deliver(world.f.backend, &sents[i].delivery), 0);
        assert_int_equal(backend_room(world.f.backend), 7 - i);
    }
    sent_prepare(&sents[8], 1, span_of(sample));
    assert_int_equal(backend_deliver(world.f.backend, &sents[8].delivery), ERR_FULL);
    while (world.f.request_count < 8) {
        loop_run_once(world.f.loop);
    }
    size_t first = 0;
    for (size_t i = 0; i < 8; i++) {
        first += strstr(world.f.targets[i], "notify1") != NULL ? 1 : 0;
    }
    assert_int_equal(first, 4);
    backend_close(&world.f.backend, 20, fixture_on_closed, &world.f.closed);
    https_run_until(world.f.loop, &world.f.closed);
    for (size_t i = 0; i < 8; i++) {
        assert_true(sents[i].done);
        assert_int_equal(sents[i].answers[0].verdict, VERDICT_UNKNOWN);
    }
    fixture_release(&world.f);
}

static void close_takes_back_what_waits_for_a_token(void **state)
{
    (void)state;
    struct world world;
    struct sent sent;
    setup(&world, &accepted, 1, 1);
    https_server_stop_listening(&world.f.server);
    sent_prepare(&sent, 1, span_of(sample));
    assert_int_equal(backend_deliver(world.f.backend, &sent.delivery), 0);
    backend_close(&world.f.backend, 0, fixture_on_closed, &world.f.closed);
    https_run_until(world.f.loop, &world.f.closed);
    assert_true(sent.done);
    assert_int_equal(sent.answers[0].verdict, VERDICT_TRANSIENT);
    fixture_release(&world.f);
}

static void bad_settings_are_named(void **state)
{
    (void)state;
    struct loop *loop = loop_new("test");
    const struct backend_env env = {.loop = loop};
    struct credential_conf credential = {.name = "entra"};
    struct backend *backend = NULL;
    for (size_t i = 0; i < 4; i++) {
        struct err err = {.code = 0};
        struct backend_conf conf = {.name = "graph1",
                                    .type = "graph",
                                    .endpoint = i == 0   ? "http://x"
                                                : i == 1 ? "https://x/"
                                                         : "https://x",
                                    .mailboxes = mailboxes,
                                    .mailbox_count = i == 2 ? 0 : 1,
                                    .credential = &credential};
        assert_int_equal(backend_open(&env, &conf, &backend, &err), ERR_INVAL);
        assert_non_null(strstr(err.text, i == 3 ? "entra" : "graph1"));
    }
    loop_run_once(loop);
    loop_free(&loop);
}

static void rows_find_their_examples(void **state)
{
    (void)state;
    check_rows(KIND_GRAPH | KIND_TOKEN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_the_batchs_own_recipients),
        cmocka_unit_test(hides_those_that_were_hidden),
        cmocka_unit_test(a_repeated_address_is_written_once),
        cmocka_unit_test(sends_mime_with_a_token),
        cmocka_unit_test(only_202_is_success),
        cmocka_unit_test(a_refused_token_is_renewed_once),
        cmocka_unit_test(without_a_token_nothing_is_sent),
        cmocka_unit_test(one_bad_recipient_is_found),
        cmocka_unit_test(large_messages_are_refused_before_sending),
        cmocka_unit_test(four_at_once_per_mailbox),
        cmocka_unit_test(close_takes_back_what_waits_for_a_token),
        cmocka_unit_test(bad_settings_are_named),
        cmocka_unit_test(rows_find_their_examples),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
