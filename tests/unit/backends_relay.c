/* Unit tests of backends/relay (type smtp): settings, TLS modes, sign-in, and that messages pass
 * untouched. */
#include "backends/backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/smtp_world.h"
#include "tests/lib/test_certs.h"

static struct test_certs certs;
static const struct backend_account account = {.user = "app", .password = "app-password"};

static int make_certs(void **state)
{
    (void)state;
    test_certs_make(&certs);
    return 0;
}

static int remove_certs(void **state)
{
    (void)state;
    test_certs_remove(&certs);
    return 0;
}

static struct world *world_new(bool with_tls)
{
    struct world *world = mem_alloc(sizeof *world);
    world_init(world);
    world->conf.type = "smtp";
    if (with_tls) {
        struct tls_server_conf tls = {
            .cert_file = certs.server_cert, .key_file = certs.server_key, .min_version = TLS_1_2};
        struct err err;
        assert_int_equal(tls_server_new(&tls, &world->server.tls, &err), 0);
    }
    return world;
}

static void world_end(struct world *world)
{
    world_release(world);
    mem_free(world);
}

static const char mail[] =
    "Received: from x\r\n by y\r\nFROM:  ERP <erp@contoso.test>\r\nSender: z@x.test\r\n\r\n..\r\n.\r\nend";

static void check_delivered(struct world *world, unsigned tls_sessions)
{
    world_open(world, &backend_smtp_ops);
    struct sent sent;
    world_send(world, &sent, "a@x.test", mail);
    if (sent.answers[0].verdict != VERDICT_DELIVERED) {
        fail_msg("not delivered: \"%s\"", sent.answers[0].text);
    }
    assert_int_equal(world->server.mail_count, 1);
    assert_int_equal(world->server.tls_sessions, tls_sessions);
    /* Byte for byte, but for the line end that the final dot needs. */
    struct span content = buf_span(&world->server.mails[0].content);
    assert_true(span_eq(content, SPAN_LIT("Received: from x\r\n by y\r\n"
                                          "FROM:  ERP <erp@contoso.test>\r\nSender: z@x.test\r\n"
                                          "\r\n..\r\n.\r\nend\r\n")));
    assert_true(span_starts(buf_span(&world->server.mails[0].from),
                            SPAN_LIT("MAIL FROM:<sender@contoso.test>")));
}

static void a_plain_relay_gets_the_message_untouched(void **state)
{
    (void)state;
    struct world *world = world_new(false);
    check_delivered(world, 0);
    world_end(world);
}

static void every_tls_mode_works(void **state)
{
    (void)state;
    static const enum backend_tls modes[] = {BACKEND_TLS_STARTTLS, BACKEND_TLS_IMPLICIT};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        struct world *world = world_new(true);
        world->conf.tls = modes[i];
        world->conf.ca_file = certs.ca;
        world->server.implicit_tls = modes[i] == BACKEND_TLS_IMPLICIT;
        check_delivered(world, 1);
        world_end(world);
    }
}

static void optional_tls_takes_any_certificate_and_none(void **state)
{
    (void)state;
    struct world *world = world_new(true);
    world->conf.tls = BACKEND_TLS_OPTIONAL; /* no ca_file: nobody has signed this certificate */
    check_delivered(world, 1);
    world_end(world);
    world = world_new(false);
    world->conf.tls = BACKEND_TLS_OPTIONAL;
    check_delivered(world, 0);
    world_end(world);
}

static const char *hook_broken_tls(struct server *server, struct server_peer *peer,
                                   struct span line)
{
    (void)server;
    (void)peer;
    /* Says yes and goes on in clear: the handshake fails. */
    return span_eq(line, SPAN_LIT("STARTTLS")) ? "220 go\r\nno TLS here" : NULL;
}

static void optional_tls_that_breaks_goes_on_in_clear(void **state)
{
    (void)state;
    struct world *world = world_new(true);
    world->server.hook = hook_broken_tls;
    world->conf.tls = BACKEND_TLS_OPTIONAL;
    world->conf.reply_timeout_ms = 200;
    check_delivered(world, 0);
    assert_int_equal(world->server.connections, 2);
    assert_string_equal(world->health, "");
    world_end(world);
}

static void a_sign_in_by_plain_and_by_login(void **state)
{
    (void)state;
    static const char *const mechanisms[] = {"PLAIN LOGIN", "LOGIN", "PLAIN"};
    for (size_t i = 0; i < sizeof mechanisms / sizeof *mechanisms; i++) {
        struct world *world = world_new(true);
        world->server.user = "app";
        world->server.password = "app-password";
        world->server.mechanisms = mechanisms[i];
        world->conf.tls = BACKEND_TLS_STARTTLS;
        world->conf.ca_file = certs.ca;
        world->conf.auth = BACKEND_AUTH_LOGIN;
        world->conf.accounts = &account;
        world->conf.account_count = 1;
        check_delivered(world, 1);
        world_end(world);
    }
}

static void a_bounce_keeps_the_null_sender(void **state)
{
    (void)state;
    struct world *world = world_new(false);
    world_open(world, &backend_smtp_ops);
    struct sent sent;
    sent_init(world, &sent, "a@x.test", span_of(mail));
    sent.delivery.reverse_path = SPAN_LIT("");
    assert_int_equal(world_deliver(world, &sent), 0);
    RUN_UNTIL(world, sent.dones > 0);
    assert_int_equal(sent.answers[0].verdict, VERDICT_DELIVERED);
    assert_true(
        span_starts(buf_span(&world->server.mails[0].from), SPAN_LIT("MAIL FROM:<> SIZE=")));
    world_end(world);
}

static void eight_bit_needs_are_said_or_refused(void **state)
{
    (void)state;
    for (int offered = 0; offered < 2; offered++) {
        struct world *world = world_new(false);
        world->server.no_8bitmime = offered == 0;
        world_open(world, &backend_smtp_ops);
        struct sent sent;
        sent_init(world, &sent, "a@x.test", span_of(mail));
        sent.delivery.needs_8bitmime = true;
        assert_int_equal(world_deliver(world, &sent), 0);
        RUN_UNTIL(world, sent.dones > 0);
        assert_int_equal(sent.answers[0].verdict,
                         offered == 0 ? VERDICT_MESSAGE_PERMANENT : VERDICT_DELIVERED);
        assert_int_equal(world->server.mail_count, (size_t)offered);
        if (offered != 0) {
            assert_true(
                span_ends(buf_span(&world->server.mails[0].from), SPAN_LIT(" BODY=8BITMIME")));
        }
        world_end(world);
    }
}

static void too_large_is_refused_before_anything_is_sent(void **state)
{
    (void)state;
    struct world *world = world_new(false);
    world->conf.message_bytes = 20;
    world_open(world, &backend_smtp_ops);
    struct sent sent;
    world_send(world, &sent, "a@x.test", mail);
    assert_int_equal(sent.answers[0].verdict, VERDICT_MESSAGE_PERMANENT);
    assert_int_equal(sent.starts, 0);
    world_end(world);
}

static void settings_are_checked(void **state)
{
    (void)state;
    static const struct backend_account no_password = {.user = "app"};
    for (int i = 0; i < 5; i++) {
        struct world *world = world_new(false);
        struct backend_conf *conf = &world->conf;
        const char *word = NULL;
        switch (i) {
        case 0:
            conf->host = "";
            word = "host";
            break;
        case 1:
            conf->auth = BACKEND_AUTH_XOAUTH2;
            word = "not supported by this version";
            break;
        case 2:
            conf->auth = BACKEND_AUTH_LOGIN;
            word = "user";
            break;
        case 3:
            conf->auth = BACKEND_AUTH_LOGIN;
            conf->accounts = &no_password;
            conf->account_count = 1;
            word = "password";
            break;
        default:
            conf->tls = BACKEND_TLS_STARTTLS;
            conf->ca_file = "/nonexistent/ca.pem";
            word = "ca.pem";
            break;
        }
        struct err err = {0};
        assert_true(backend_smtp_ops.open(&world->env, conf, &world->backend, &err) < 0);
        if (strstr(err.text, word) == NULL) {
            fail_msg("\"%s\" does not say \"%s\"", err.text, word);
        }
        world_end(world);
    }
}

static void the_registry_knows_the_kinds(void **state)
{
    (void)state;
    static const char *const types[] = {"hve", "smtp", "acs", "graph"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const struct backend_defaults *defaults = backend_defaults(types[i]);
        assert_string_equal(defaults->type, types[i]);
        assert_true(defaults->recipients <= BATCH_RECIPIENTS_MAX);
        assert_true(defaults->concurrency > 0);
        assert_int_equal(defaults->internal_only, i == 0);
    }
    assert_null(backend_defaults("x400"));
    assert_null(backend_defaults(NULL));
    assert_string_equal(verdict_name(VERDICT_DELIVERED), "delivered");
    assert_string_equal(verdict_name(VERDICT_UNKNOWN), "unknown");

    struct world *world = world_new(false);
    struct err err;
    world->conf.type = "x400";
    assert_int_equal(backend_open(&world->env, &world->conf, &world->backend, &err), ERR_NOTFOUND);
    assert_non_null(strstr(err.text, "x400"));
    world->conf.type = "smtp";
    world->conf.recipients_per_message = 2;
    assert_int_equal(backend_open(&world->env, &world->conf, &world->backend, &err), 0);
    assert_int_equal(backend_room(world->backend), 10);
    struct sent sent;
    sent_init(world, &sent, "a@x.test,b@x.test,c@x.test", span_of(mail));
    assert_int_equal(backend_deliver(world->backend, &sent.delivery), ERR_INVAL);
    sent.delivery.recipient_count = 2;
    assert_int_equal(backend_deliver(world->backend, &sent.delivery), 0);
    RUN_UNTIL(world, sent.dones > 0);
    assert_int_equal(sent.answers[1].verdict, VERDICT_DELIVERED);
    backend_close(&world->backend, 1000, world_on_closed, world);
    assert_null(world->backend);
    RUN_UNTIL(world, world->closed);
    world_end(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plain_relay_gets_the_message_untouched),
        cmocka_unit_test(every_tls_mode_works),
        cmocka_unit_test(optional_tls_takes_any_certificate_and_none),
        cmocka_unit_test(optional_tls_that_breaks_goes_on_in_clear),
        cmocka_unit_test(a_sign_in_by_plain_and_by_login),
        cmocka_unit_test(a_bounce_keeps_the_null_sender),
        cmocka_unit_test(eight_bit_needs_are_said_or_refused),
        cmocka_unit_test(too_large_is_refused_before_anything_is_sent),
        cmocka_unit_test(settings_are_checked),
        cmocka_unit_test(the_registry_knows_the_kinds),
    };
    return cmocka_run_group_tests(tests, make_certs, remove_certs);
}
