/* SMTP sessions over real connections on loopback: policy, AUTH, TLS, limits, deadlines, drain.
 * Intake is a double in this file: what it was handed and what it answers is up to each test. */
#include "gateway/smtp_session.h"

#include "gateway/base/log.h"
#include "gateway/base/stream.h"
#include "gateway/listener.h"
#include "tests/lib/test_certs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define PATIENCE_MS 20000

/* ---- Intake's double ---- */

struct intake {
    struct loop *loop;
    enum intake_verdict ready;
    enum intake_verdict verdict;
    const char *detail;
    bool hold; /* answers only when told */
    struct submission *held;
    struct loop_task task;
    int submissions;
    struct buf message; /* the last one */
    char with[16];
    char client[32];
    size_t recipients;
    struct loop *stop_loop; /* stopped at the next submission */
};

enum intake_verdict intake_ready(struct intake *intake, const struct policy_client *client,
                                 const char **out_why)
{
    assert_non_null(client);
    *out_why = "Not now.";
    return intake->ready;
}

const char *intake_recipient_check(const struct intake *intake, const struct policy_client *client,
                                   struct span address, bool smtputf8)
{
    (void)intake;
    (void)smtputf8;
    assert_non_null(client);
    return span_starts(address, SPAN_LIT("nobody")) ? "No route." : NULL;
}

static void intake_answer(void *ctx)
{
    struct intake *intake = ctx;
    struct submission *submission = intake->held;
    intake->held = NULL;
    struct intake_result result = {
        .verdict = intake->verdict, .detail = intake->detail, .id = SPAN_LIT("ID-1")};
    submission->on_result(submission, &result);
}

void intake_submit(struct intake *intake, struct submission *submission)
{
    assert_null(intake->held);
    intake->submissions++;
    buf_reset(&intake->message);
    assert_int_equal(buf_append(&intake->message, submission->message), 0);
    (void)snprintf(intake->with, sizeof intake->with, "%s", submission->with);
    (void)snprintf(intake->client, sizeof intake->client, "%s", submission->client->conf->name);
    intake->recipients = submission->recipient_count;
    assert_non_null(arena_alloc(&submission->arena, 100));
    intake->held = submission;
    submission->on_message_taken(submission);
    if (!intake->hold) {
        loop_defer(intake->loop, &intake->task, LOOP_TASK_QUEUE, intake_answer, intake);
    }
    if (intake->stop_loop != NULL) {
        loop_stop(intake->stop_loop);
        intake->stop_loop = NULL;
    }
}

/* ---- The world ---- */

static char password_hash[200];
static const char *const zabbix_from[] = {"*@contoso.test"};
static const struct policy_client_conf clients[] = {
    {.name = "zabbix",
     .user = "zabbix",
     .password_hash = password_hash,
     .from = zabbix_from,
     .from_count = 1,
     .scopes = POLICY_SCOPE_SEND},
    {.name = "reader",
     .user = "reader",
     .password_hash = password_hash,
     .scopes = POLICY_SCOPE_READ},
};

struct world {
    struct loop *loop;
    struct events *events;
    struct policy *policy;
    struct policy_cache *cache;
    struct intake intake;
    struct tls_context *tls;
    struct tls_context *client_tls;
    struct smtp_server *server;
    struct listener *listener;
    struct smtp_server_conf conf;
    bool late;
    bool drained;
};

static const char *const loopback[] = {"127.0.0.0/8"};
static const char *const elsewhere[] = {"192.0.2.0/24"};
static struct test_certs certs;

static void make_tls(struct world *w)
{
    const struct tls_server_conf server = {
        .cert_file = certs.server_cert, .key_file = certs.server_key, .min_version = TLS_1_2};
    const struct tls_client_conf client = {
        .ca_file = certs.ca, .min_version = TLS_1_2, .verify = true};
    struct err err;
    assert_int_equal(tls_server_new(&server, &w->tls, &err), 0);
    assert_int_equal(tls_client_new(&client, &w->client_tls, &err), 0);
}

/* A world whose settings a test changes before open_server(). */
static void make_world(struct world *w)
{
    *w = (struct world){.loop = loop_new("test"), .events = events_new()};
    assert_int_equal(policy_new(clients, 2, &w->policy, NULL), 0);
    w->cache = policy_cache_new(w->loop);
    w->intake.loop = w->loop;
    buf_init(&w->intake.message, 1 << 20);
    make_tls(w);
    w->conf = (struct smtp_server_conf){
        .hostname = "gw.test",
        .tls = SMTP_TLS_STARTTLS,
        .tls_context = w->tls,
        .auth = SMTP_AUTH_OPTIONAL,
        .networks = loopback,
        .network_count = 1,
        .policy = w->policy,
    };
}

static void open_server(struct world *w)
{
    struct err err;
    assert_int_equal(
        smtp_server_new(w->loop, &w->conf, w->cache, &w->intake, w->events, &w->server, &err), 0);
    assert_int_equal(
        listener_open(w->loop, "127.0.0.1:0", smtp_server_accept, w->server, &w->listener, &err),
        0);
}

static void on_late(void *ctx)
{
    struct world *w = ctx;
    w->late = true;
    loop_stop(w->loop);
}

/* Runs until somebody stops the loop; a test that waits in vain fails. */
static void run(struct world *w)
{
    struct loop_timer timer = {0};
    loop_timer_start(w->loop, &timer, PATIENCE_MS, on_late, w);
    loop_run(w->loop);
    loop_timer_stop(&timer);
    assert_false(w->late);
}

static void on_drained(void *ctx)
{
    struct world *w = ctx;
    w->drained = true;
    loop_stop(w->loop);
}

static void end_world(struct world *w)
{
    listener_close(&w->listener);
    if (!w->drained) {
        smtp_server_drain(w->server, on_drained, w);
        smtp_server_abort(w->server);
        run(w);
    }
    assert_int_equal(smtp_server_sessions(w->server), 0);
    smtp_server_free(&w->server);
    policy_cache_free(&w->cache);
    policy_unref(&w->policy);
    tls_context_unref(&w->tls);
    tls_context_unref(&w->client_tls);
    loop_free(&w->loop);
    events_free(&w->events);
    buf_release(&w->intake.message);
}

/* ---- A client ---- */

struct client {
    struct world *world;
    struct stream *stream;
    struct buf received;
    const char *awaited; /* NULL: the end */
    bool closed;
};

static void client_open(void *ctx)
{
    struct client *c = ctx;
    if (c->awaited != NULL && c->awaited[0] == '\0') {
        loop_stop(c->world->loop);
    }
}

static size_t client_data(void *ctx, struct span bytes)
{
    struct client *c = ctx;
    assert_int_equal(buf_append(&c->received, bytes), 0);
    if (c->awaited != NULL && c->awaited[0] != '\0' &&
        span_search(buf_span(&c->received), span_of(c->awaited)) < buf_len(&c->received)) {
        loop_stop(c->world->loop);
    }
    return bytes.len;
}

static void client_close(void *ctx, int status, const char *why)
{
    (void)status;
    (void)why;
    struct client *c = ctx;
    c->stream = NULL;
    c->closed = true;
    loop_stop(c->world->loop);
}

static const struct stream_ops client_ops = {
    .on_open = client_open,
    .on_data = client_data,
    .on_close = client_close,
};

static void connect_client(struct client *c, struct world *w, bool tls)
{
    *c = (struct client){.world = w, .awaited = "\n"};
    buf_init(&c->received, 1 << 20);
    const struct stream_target target = {
        .host = "127.0.0.1",
        .port = listener_port(w->listener),
        .tls = tls ? w->client_tls : NULL,
        .tls_host = "localhost",
    };
    assert_int_equal(stream_connect(w->loop, &target, &client_ops, c, NULL, &c->stream), 0);
}

/* Everything received up to and with `text` is there, and is forgotten afterwards. */
static void expect(struct client *c, const char *text)
{
    c->awaited = text;
    while (!c->closed &&
           span_search(buf_span(&c->received), span_of(text)) == buf_len(&c->received)) {
        run(c->world);
    }
    size_t at = span_search(buf_span(&c->received), span_of(text));
    if (at == buf_len(&c->received)) {
        print_error("expected \"%s\", got \"%.*s\"\n", text, SPAN_FMT(buf_span(&c->received)));
        fail();
    }
    buf_consume(&c->received, at + strlen(text));
}

static void expect_end(struct client *c)
{
    c->awaited = NULL;
    while (!c->closed) {
        run(c->world);
    }
}

static void say(struct client *c, const char *text)
{
    assert_int_equal(stream_write(c->stream, span_of(text)), 0);
}

static void talk(struct client *c, const char *text, const char *answer)
{
    say(c, text);
    expect(c, answer);
}

static void leave(struct client *c)
{
    if (c->stream != NULL) {
        stream_abort(c->stream);
        expect_end(c);
    }
    buf_release(&c->received);
}

#define ENVELOPE(from) "MAIL FROM:<" from ">\r\nRCPT TO:<x@contoso.test>\r\nDATA\r\n"

/* ---- Tests ---- */

static void a_network_may_send(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    make_world(&w);
    open_server(&w);
    connect_client(&c, &w, false);
    expect(&c, "220 gw.test ESMTP heave\r\n");
    talk(&c, "EHLO me\r\n", "250 SMTPUTF8\r\n");
    /* Three messages and QUIT in one breath: what stands behind a dot waits for its verdict. */
    talk(
        &c,
        ENVELOPE("anybody@else.test") "one\r\n.\r\n" ENVELOPE(
            "a@b.test") "two\r\n.\r\n"
                        "MAIL FROM:<>\r\nRCPT TO:<nobody@x.test>\r\nRCPT TO:<x@x.test>\r\nDATA\r\nthree\r\n.\r\n"
                        "QUIT\r\n",
        "250 2.0.0 Ok: queued as ID-1\r\n");
    expect(&c, "250 2.0.0 Ok: queued as ID-1\r\n");
    expect(&c, "550 5.7.1 No route.\r\n250 2.1.5 Recipient ok\r\n354 ");
    expect(&c, "250 2.0.0 Ok: queued as ID-1\r\n221 2.0.0 Bye\r\n");
    expect_end(&c);
    assert_int_equal(w.intake.submissions, 3);
    assert_true(span_eq(buf_span(&w.intake.message), SPAN_LIT("three\r\n")));
    assert_string_equal(w.intake.with, "ESMTP");
    assert_string_equal(w.intake.client, "network");
    assert_int_equal(w.intake.recipients, 1);
    leave(&c);
    end_world(&w);
}

static void no_open_relay(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    make_world(&w);
    w.conf.networks = elsewhere;
    open_server(&w);
    connect_client(&c, &w, false);
    talk(&c, "EHLO me\r\nMAIL FROM:<a@contoso.test>\r\n", "530 5.7.0 Authentication required\r\n");
    leave(&c);
    w.conf.auth = SMTP_AUTH_OFF;
    assert_int_equal(smtp_server_reconfigure(w.server, &w.conf, NULL), 0);
    connect_client(&c, &w, false);
    talk(&c, "EHLO me\r\nMAIL FROM:<a@contoso.test>\r\n", "554 5.7.1 Relay access denied");
    leave(&c);
    w.conf.auth = SMTP_AUTH_REQUIRED;
    w.conf.networks = loopback;
    assert_int_equal(smtp_server_reconfigure(w.server, &w.conf, NULL), 0);
    connect_client(&c, &w, false);
    talk(&c, "EHLO me\r\nMAIL FROM:<a@contoso.test>\r\n", "530 5.7.0 Authentication required\r\n");
    leave(&c);
    static const char *const bad[] = {"10.0.0.1/8"};
    w.conf.networks = bad;
    struct err err;
    assert_int_equal(smtp_server_reconfigure(w.server, &w.conf, &err), ERR_INVAL);
    assert_non_null(strstr(err.text, "10.0.0.1/8"));
    end_world(&w);
}

static void passwords_open_the_door(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    make_world(&w);
    w.conf.networks = elsewhere;
    w.conf.auth_without_tls = true;
    open_server(&w);
    connect_client(&c, &w, false);
    talk(&c, "EHLO me\r\n", "250-AUTH PLAIN LOGIN\r\n");
    talk(&c, "AUTH PLAIN AHphYmJpeAB3cm9uZw==\r\n", "535 5.7.8 ");
    talk(&c, "AUTH PLAIN AG5vYm9keQBzZWNyZXQ=\r\n", "535 5.7.8 ");
    /* Pipelined behind AUTH: waits for the password, then goes on. */
    talk(&c,
         "AUTH PLAIN AHphYmJpeABzZWNyZXQ=\r\nMAIL FROM:<a@other.test>\r\n" ENVELOPE(
             "a@contoso.test") "x\r\n.\r\n",
         "235 2.7.0 Authentication successful\r\n553 5.7.1 ");
    expect(&c, "250 2.0.0 Ok: queued as ID-1\r\n");
    assert_string_equal(w.intake.with, "ESMTPA");
    assert_string_equal(w.intake.client, "zabbix");
    leave(&c);
    connect_client(&c, &w, false);
    talk(&c, "EHLO me\r\nAUTH LOGIN\r\n", "334 VXNlcm5hbWU6\r\n");
    talk(&c, "cmVhZGVy\r\n", "334 UGFzc3dvcmQ6\r\n");
    talk(&c, "c2VjcmV0\r\nMAIL FROM:<a@contoso.test>\r\n", "235 2.7.0 ");
    expect(&c, "550 5.7.1 This client may not send\r\n");
    leave(&c);
    end_world(&w);
}

static void tls_starts_anew(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    make_world(&w);
    open_server(&w);
    connect_client(&c, &w, false);
    /* The NOOP is plain text behind STARTTLS: it must be gone. */
    talk(&c, "EHLO me\r\n", "250-STARTTLS\r\n");
    talk(&c, "STARTTLS\r\nNOOP\r\n", "220 2.0.0 Ready to start TLS\r\n");
    c.awaited = "";
    assert_int_equal(stream_start_tls(c.stream, w.client_tls, "localhost"), 0);
    run(&w);
    talk(&c, "MAIL FROM:<a@b.test>\r\n", "503 5.5.1 Say EHLO first\r\n");
    talk(&c, "EHLO me\r\n", "250-AUTH PLAIN LOGIN\r\n");
    talk(&c, "AUTH PLAIN AHphYmJpeABzZWNyZXQ=\r\n", "235 2.7.0 ");
    talk(&c, ENVELOPE("a@contoso.test") "x\r\n.\r\n", "250 2.0.0 Ok: queued as ID-1\r\n");
    assert_string_equal(w.intake.with, "ESMTPSA");
    leave(&c);
    w.conf.tls = SMTP_TLS_IMPLICIT;
    assert_int_equal(smtp_server_reconfigure(w.server, &w.conf, NULL), 0);
    connect_client(&c, &w, true);
    expect(&c, "220 gw.test ESMTP heave\r\n");
    talk(&c, "EHLO me\r\n" ENVELOPE("a@b.test") "x\r\n.\r\n", "250 2.0.0 Ok: queued as ID-1\r\n");
    assert_string_equal(w.intake.with, "ESMTPS");
    leave(&c);
    end_world(&w);
}

static void verdicts_become_replies(void **state)
{
    (void)state;
    static const struct {
        enum intake_verdict verdict;
        const char *detail;
        const char *reply;
    } rows[] = {
        {INTAKE_REPLAYED, NULL, "250 2.0.0 Ok: queued as ID-1\r\n"},
        {INTAKE_CONFLICT, "Other content.", "554 5.6.0 Other content.\r\n"},
        {INTAKE_RUNNING, "Being taken.", "451 4.3.0 Being taken.\r\n"},
        {INTAKE_SENDER_DENIED, "Not this From.", "550 5.7.1 Not this From.\r\n"},
        {INTAKE_NO_RECIPIENT, "Nobody.", "554 5.5.1 Nobody.\r\n"},
        {INTAKE_BAD_MESSAGE, "Broken.\r\n250 smuggled", "554 5.6.0 Broken.??250 smuggled\r\n"},
        {INTAKE_BAD_MESSAGE, "Too many hops: a mail loop.", "554 5.4.6 Too many hops"},
        {INTAKE_TOO_LARGE, "Large.", "552 5.3.4 Large.\r\n"},
        {INTAKE_FULL, "Full.", "452 4.3.1 Full.\r\n"},
        {INTAKE_UNAVAILABLE, NULL, "451 4.3.0 "},
    };
    struct world w;
    struct client c;
    make_world(&w);
    open_server(&w);
    connect_client(&c, &w, false);
    talk(&c, "EHLO me\r\n", "250 SMTPUTF8\r\n");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        w.intake.verdict = rows[i].verdict;
        w.intake.detail = rows[i].detail;
        talk(&c, ENVELOPE("a@b.test") "x\r\n.\r\n", rows[i].reply);
    }
    w.intake.ready = INTAKE_UNAVAILABLE;
    talk(&c, "MAIL FROM:<a@b.test>\r\n", "451 4.3.0 Not now.\r\n");
    w.intake.ready = INTAKE_FULL;
    talk(&c, "MAIL FROM:<a@b.test>\r\n", "452 4.3.1 Not now.\r\n");
    w.intake.ready = INTAKE_ACCEPTED;
    talk(&c, "MAIL FROM:<a@b.test>\r\n", "250 ");
    leave(&c);
    end_world(&w);
}

static void a_peer_may_go_while_intake_works(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    make_world(&w);
    open_server(&w);
    connect_client(&c, &w, false);
    w.intake.hold = true;
    w.intake.stop_loop = w.loop;
    talk(&c, "EHLO me\r\n", "250 SMTPUTF8\r\n");
    say(&c, ENVELOPE("a@b.test") "x\r\n.\r\n");
    run(&w);
    assert_non_null(w.intake.held);
    leave(&c);
    smtp_server_drain(w.server, on_drained, &w);
    for (int i = 0; i < 50; i++) {
        loop_run_once(w.loop);
    }
    assert_int_equal(smtp_server_sessions(w.server), 1);
    assert_true(span_eq(buf_span(&w.intake.message), SPAN_LIT("x\r\n")));
    intake_answer(&w.intake);
    assert_int_equal(smtp_server_sessions(w.server), 0);
    run(&w);
    assert_true(w.drained);
    end_world(&w);
}

static void connections_are_counted(void **state)
{
    (void)state;
    struct world w;
    struct client c[4];
    make_world(&w);
    w.conf.max_connections = 3;
    w.conf.max_connections_per_address = 2;
    open_server(&w);
    for (int i = 0; i < 2; i++) {
        connect_client(&c[i], &w, false);
        expect(&c[i], "220 gw.test ESMTP heave\r\n");
    }
    connect_client(&c[2], &w, false);
    expect(&c[2], "421 4.3.2 gw.test Too many connections from your address\r\n");
    expect_end(&c[2]);
    leave(&c[2]);
    w.conf.max_connections = 2;
    w.conf.max_connections_per_address = 0;
    assert_int_equal(smtp_server_reconfigure(w.server, &w.conf, NULL), 0);
    connect_client(&c[2], &w, false);
    expect(&c[2], "421 4.3.2 gw.test Too many connections\r\n");
    expect_end(&c[2]);
    leave(&c[2]);
    talk(&c[0], "QUIT\r\n", "221 2.0.0 Bye\r\n");
    expect_end(&c[0]);
    leave(&c[0]);
    /* One left: there is room again, once the server has seen the last of it. */
    while (smtp_server_sessions(w.server) > 1) {
        loop_run_once(w.loop);
    }
    connect_client(&c[3], &w, false);
    expect(&c[3], "220 gw.test ESMTP heave\r\n");
    leave(&c[1]);
    leave(&c[3]);
    end_world(&w);
}

static void silence_ends_a_session(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    make_world(&w);
    w.conf.idle_timeout_ms = 50;
    open_server(&w);
    connect_client(&c, &w, false);
    say(&c, "NOO");
    expect(&c, "421 4.4.2 gw.test Timeout, closing\r\n");
    expect_end(&c);
    leave(&c);
    connect_client(&c, &w, false);
    talk(&c, "EHLO me\r\n" ENVELOPE("a@b.test") "x\r\n", "354 ");
    expect(&c, "421 4.4.2 gw.test Timeout, closing\r\n");
    expect_end(&c);
    leave(&c);
    assert_int_equal(w.intake.submissions, 0);
    end_world(&w);
}

static void bad_line_ends_are_answered(void **state)
{
    (void)state;
    struct world w;
    struct client c;
    make_world(&w);
    open_server(&w);
    connect_client(&c, &w, false);
    talk(&c, "EHLO me\r\n" ENVELOPE("a@b.test"), "354 End data with <CR><LF>.<CR><LF>\r\n");
    talk(&c, "x\n.\ny\r\n.\r\n", "550 5.6.11 ");
    talk(&c, "\r\n", "500 5.5.2 ");
    talk(&c, ENVELOPE("a@b.test") "x\r\n.\r\n", "250 2.0.0 Ok: queued as ID-1\r\n");
    assert_int_equal(w.intake.submissions, 1);
    leave(&c);
    end_world(&w);
}

static void held_messages_are_bounded(void **state)
{
    (void)state;
    struct world w;
    struct client c[3];
    make_world(&w);
    w.conf.max_message_bytes = 40000;
    w.conf.max_held_bytes = 1; /* becomes 80,000 */
    open_server(&w);
    static char line[30002];
    memset(line, 'a', 30000);
    for (int i = 0; i < 3; i++) {
        connect_client(&c[i], &w, false);
        talk(&c[i], "EHLO me\r\n" ENVELOPE("a@b.test"), "354 ");
    }
    for (int i = 0; i < 3; i++) {
        say(&c[i], line);
    }
    for (int i = 0; i < 50; i++) {
        loop_run_once(w.loop);
    }
    /* Two fit, whatever the order; one is told to come again. */
    int refused = 0;
    for (int i = 0; i < 3; i++) {
        expect(&c[i], "\r\n"); /* the rest of 354 */
        talk(&c[i], "\r\n.\r\n", " ");
        expect(&c[i], "\r\n");
    }
    refused = 3 - w.intake.submissions;
    assert_int_equal(refused, 1);
    for (int i = 0; i < 3; i++) {
        talk(&c[i], ENVELOPE("a@b.test") "x\r\n.\r\n", "250 2.0.0 Ok: queued as ID-1\r\n");
        leave(&c[i]);
    }
    end_world(&w);
}

static void a_drain_lets_transactions_finish(void **state)
{
    (void)state;
    struct world w;
    struct client idle;
    struct client busy;
    struct client late;
    make_world(&w);
    open_server(&w);
    connect_client(&idle, &w, false);
    talk(&idle, "EHLO me\r\n", "250 SMTPUTF8\r\n");
    connect_client(&busy, &w, false);
    talk(&busy, "EHLO me\r\n" ENVELOPE("a@b.test") "half", "354 ");
    smtp_server_drain(w.server, on_drained, &w);
    expect(&idle, "421 4.3.2 gw.test Shutting down\r\n");
    expect_end(&idle);
    leave(&idle);
    connect_client(&late, &w, false);
    expect(&late, "421 4.3.2 gw.test Shutting down\r\n");
    expect_end(&late);
    leave(&late);
    talk(&busy, " whole\r\n.\r\n",
         "250 2.0.0 Ok: queued as ID-1\r\n421 4.3.2 gw.test Shutting down\r\n");
    expect_end(&busy);
    leave(&busy);
    while (!w.drained) {
        run(&w);
    }
    assert_true(span_eq(buf_span(&w.intake.message), SPAN_LIT("half whole\r\n")));
    end_world(&w);
}

static int before_all(void **state)
{
    (void)state;
    test_certs_make(&certs);
    log_configure(LOG_ERROR, LOG_FORM_TEXT, false);
    return policy_hash(SPAN_LIT("secret"), password_hash, sizeof password_hash);
}

static int after_all(void **state)
{
    (void)state;
    test_certs_remove(&certs);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_network_may_send),
        cmocka_unit_test(no_open_relay),
        cmocka_unit_test(passwords_open_the_door),
        cmocka_unit_test(tls_starts_anew),
        cmocka_unit_test(verdicts_become_replies),
        cmocka_unit_test(a_peer_may_go_while_intake_works),
        cmocka_unit_test(connections_are_counted),
        cmocka_unit_test(silence_ends_a_session),
        cmocka_unit_test(bad_line_ends_are_answered),
        cmocka_unit_test(held_messages_are_bounded),
        cmocka_unit_test(a_drain_lets_transactions_finish),
    };
    return cmocka_run_group_tests(tests, before_all, after_all);
}
