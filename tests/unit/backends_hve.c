/* Unit tests of backends/hve: the identity rewriting by table, and deliveries over STARTTLS to a
 * scripted server. */
#include "backends/hve.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/smtp_world.h"
#include "tests/lib/test_certs.h"

/* ---- Rewriting ---- */

#define ACCOUNT "hve@contoso.test"

static void check_rewrite(const char *message, const char *want)
{
    struct buf header;
    struct span rest;
    buf_init(&header, 100000);
    assert_int_equal(hve_rewrite(span_of(message), SPAN_LIT(ACCOUNT), &header, &rest), 0);
    assert_int_equal(buf_append(&header, rest), 0);
    if (!span_eq(buf_span(&header), span_of(want))) {
        fail_msg("got:\n%.*s\nwant:\n%s", SPAN_FMT(buf_span(&header)), want);
    }
    buf_release(&header);
}

static void identities_are_rewritten(void **state)
{
    (void)state;
    static const struct {
        const char *message;
        const char *want;
    } rows[] = {
        /* A bare address. */
        {"To: a@b\r\nFrom: erp@contoso.test\r\nSubject: x\r\n\r\nbody From: x\r\n",
         "To: a@b\r\nFrom: <" ACCOUNT ">\r\nX-Original-From: erp@contoso.test\r\n"
         "Reply-To: erp@contoso.test\r\nSubject: x\r\n\r\nbody From: x\r\n"},
        /* A display name; a Reply-To that was there stays the only one. */
        {"From: ERP System <erp@contoso.test>\r\nReply-To: x@y.test\r\n\r\n",
         "From: ERP System <" ACCOUNT ">\r\nX-Original-From: ERP System <erp@contoso.test>\r\n"
         "Reply-To: x@y.test\r\n\r\n"},
        /* Quoted, with what would end a name. */
        {"From: \"Doe, \\\"J\\\" <x>\" <j@contoso.test>\r\n\r\n",
         "From: \"Doe, \\\"J\\\" <x>\" <" ACCOUNT ">\r\n"
         "X-Original-From: \"Doe, \\\"J\\\" <x>\" <j@contoso.test>\r\n"
         "Reply-To: \"Doe, \\\"J\\\" <x>\" <j@contoso.test>\r\n\r\n"},
        /* Folded encoded words. */
        {"From: =?UTF-8?Q?M=C3=BCller?=\r\n =?UTF-8?Q?_KG?=\r\n <m@contoso.test>\r\nX: y\r\n\r\n",
         "From: =?UTF-8?Q?M=C3=BCller?=\r\n =?UTF-8?Q?_KG?= <" ACCOUNT ">\r\n"
         "X-Original-From: =?UTF-8?Q?M=C3=BCller?=\r\n =?UTF-8?Q?_KG?=\r\n <m@contoso.test>\r\n"
         "Reply-To: =?UTF-8?Q?M=C3=BCller?=\r\n =?UTF-8?Q?_KG?=\r\n <m@contoso.test>\r\nX: y\r\n\r\n"},
        /* cron: the name is a comment, with characters that need quotes before an address. */
        {"From: root@host.contoso.test (Cron: \\\"x\\\")\r\n\r\n",
         "From: \"Cron: \\\\\\\"x\\\\\\\"\" <" ACCOUNT ">\r\n"
         "X-Original-From: root@host.contoso.test (Cron: \\\"x\\\")\r\n"
         "Reply-To: root@host.contoso.test (Cron: \\\"x\\\")\r\n\r\n"},
        {"From: root@host.contoso.test (Cron Daemon)\r\n\r\n",
         "From: Cron Daemon <" ACCOUNT ">\r\n"
         "X-Original-From: root@host.contoso.test (Cron Daemon)\r\n"
         "Reply-To: root@host.contoso.test (Cron Daemon)\r\n\r\n"},
        /* Several authors, and the Sender they need. */
        {"From: A <a@x.test>, B <b@x.test>\r\nSender: a@x.test\r\n\r\n",
         "From: A <" ACCOUNT ">\r\nX-Original-From: A <a@x.test>, B <b@x.test>\r\n"
         "Reply-To: A <a@x.test>, B <b@x.test>\r\n\r\n"},
        /* A group (RFC 6854), and one without members. */
        {"From: Team: A <a@x.test>, b@x.test;\r\n\r\n",
         "From: A <" ACCOUNT ">\r\nX-Original-From: Team: A <a@x.test>, b@x.test;\r\n"
         "Reply-To: Team: A <a@x.test>, b@x.test;\r\n\r\n"},
        {"From: undisclosed:;\r\n\r\n",
         "From: <" ACCOUNT ">\r\nX-Original-From: undisclosed:;\r\n\r\n"},
        /* No address at all, an empty one, and none. */
        {"From: root\r\n\r\n", "From: <" ACCOUNT ">\r\nX-Original-From: root\r\n\r\n"},
        {"From:\r\nTo: a@b\r\n\r\n", "From: <" ACCOUNT ">\r\nTo: a@b\r\n\r\n"},
        {"Subject: x\r\n\r\nhi", "From: <" ACCOUNT ">\r\nSubject: x\r\n\r\nhi"},
        {"", "From: <" ACCOUNT ">\r\n"},
        {"\r\nhi\r\n", "From: <" ACCOUNT ">\r\n\r\nhi\r\n"},
        /* The account already: nothing to say, the name stays. */
        {"From: Alerts <HVE@contoso.test>\r\n\r\n", "From: Alerts <" ACCOUNT ">\r\n\r\n"},
        /* The account among others. */
        {"From: hve@contoso.test, b@x.test\r\n\r\n",
         "From: <" ACCOUNT ">\r\nX-Original-From: hve@contoso.test, b@x.test\r\n"
         "Reply-To: hve@contoso.test, b@x.test\r\n\r\n"},
        /* Two From fields, which would be refused. */
        {"FROM: a@x.test\r\nSubject: x\r\nfrom: b@x.test\r\n\r\n",
         "From: <" ACCOUNT ">\r\nX-Original-From: a@x.test\r\nReply-To: a@x.test\r\n"
         "Subject: x\r\n\r\n"},
        /* Fields that only look alike, and Resent-Sender, stay. */
        {"X-From: 1\r\nFrom-Me: 2\r\nResent-Sender: 3\r\nFrom: a@x.test\r\n\r\n",
         "X-From: 1\r\nFrom-Me: 2\r\nResent-Sender: 3\r\nFrom: <" ACCOUNT ">\r\n"
         "X-Original-From: a@x.test\r\nReply-To: a@x.test\r\n\r\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_rewrite(rows[i].message, rows[i].want);
    }
}

static void the_body_is_not_copied(void **state)
{
    (void)state;
    static const char message[] = "From: a@x.test\r\n\r\nbody\r\n";
    struct buf header;
    struct span rest;
    buf_init(&header, 1000);
    assert_int_equal(hve_rewrite(span_of(message), SPAN_LIT(ACCOUNT), &header, &rest), 0);
    assert_ptr_equal(rest.data, message + strlen("From: a@x.test\r\n"));
    buf_release(&header);
    buf_init(&header, 10);
    assert_int_equal(hve_rewrite(span_of(message), SPAN_LIT(ACCOUNT), &header, &rest), ERR_LIMIT);
    buf_release(&header);
}

/* ---- Deliveries ---- */

static struct test_certs certs;
static const struct backend_account accounts[] = {
    {.user = ACCOUNT, .password = "hve-password"},
    {.user = "hve2@contoso.test", .password = "hve-password"},
};

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

static struct world *world_new(const char *(*hook)(struct server *server, struct server_peer *peer,
                                                   struct span line))
{
    struct world *world = mem_alloc(sizeof *world);
    world_init(world);
    struct tls_server_conf tls = {
        .cert_file = certs.server_cert, .key_file = certs.server_key, .min_version = TLS_1_2};
    struct err err;
    assert_int_equal(tls_server_new(&tls, &world->server.tls, &err), 0);
    world->server.hook = hook;
    world->server.user = ACCOUNT;
    world->server.password = "hve-password";
    world->server.mechanisms = "LOGIN XOAUTH2";
    world->conf.type = "hve";
    world->conf.tls = BACKEND_TLS_STARTTLS;
    world->conf.auth = BACKEND_AUTH_LOGIN;
    world->conf.accounts = accounts;
    world->conf.account_count = 1;
    world->conf.ca_file = certs.ca;
    world->conf.connections = 2;
    return world;
}

static void world_end(struct world *world)
{
    world_release(world);
    mem_free(world);
}

static void assert_verdict(const struct sent *sent, size_t recipient, enum verdict verdict)
{
    if (sent->answers[recipient].verdict != verdict) {
        fail_msg("recipient %zu has verdict %d \"%s\", not %d", recipient,
                 (int)sent->answers[recipient].verdict, sent->answers[recipient].text,
                 (int)verdict);
    }
}

static const char mail[] = "From: ERP <erp@contoso.test>\r\nTo: a@contoso.test\r\n\r\n.hello\r\n";

static void a_mail_goes_out_as_the_account(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world_open(world, &backend_hve_ops);
    struct sent sent;
    world_send(world, &sent, "a@contoso.test,b@contoso.test", mail);
    assert_verdict(&sent, 0, VERDICT_DELIVERED);
    assert_string_equal(sent.account, ACCOUNT);
    assert_int_equal(world->server.tls_sessions, 1);
    assert_int_equal(world->server.mail_count, 1);
    struct server_mail *got = &world->server.mails[0];
    assert_true(span_starts(buf_span(&got->from), SPAN_LIT("MAIL FROM:<" ACCOUNT "> SIZE=")));
    assert_true(
        span_eq(buf_span(&got->content), SPAN_LIT("From: ERP <" ACCOUNT ">\r\n"
                                                  "X-Original-From: ERP <erp@contoso.test>\r\n"
                                                  "Reply-To: ERP <erp@contoso.test>\r\n"
                                                  "To: a@contoso.test\r\n\r\n.hello\r\n")));
    world_end(world);
}

static void a_wrong_password_stops_the_account(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world->server.password = "another";
    world_open(world, &backend_hve_ops);
    struct sent sent;
    world_send(world, &sent, "a@contoso.test", mail);
    assert_verdict(&sent, 0, VERDICT_CONFIG);
    assert_string_equal(sent.answers[0].text, "535 5.7.3 Authentication unsuccessful");
    assert_int_equal(world->backend->ops->room(world->backend), 0);
    assert_string_equal(world->health, ACCOUNT " config|");
    assert_non_null(strstr(world->remedy, "password"));
    assert_int_equal(world->server.connections, 1);
    world_end(world);
}

static void an_untrusted_certificate_gets_no_password(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world->conf.ca_file = certs.alien;
    world_open(world, &backend_hve_ops);
    struct sent sent;
    world_send(world, &sent, "a@contoso.test", mail);
    assert_verdict(&sent, 0, VERDICT_CONFIG);
    assert_non_null(strstr(sent.answers[0].text, "not trusted"));
    assert_non_null(strstr(world->remedy, "ca_file"));
    assert_int_equal(world->server.mail_count, 0);
    world_end(world);
}

static void a_server_without_starttls_gets_nothing(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    tls_context_unref(&world->server.tls);
    world->server.user = NULL;
    world_open(world, &backend_hve_ops);
    struct sent sent;
    world_send(world, &sent, "a@contoso.test", mail);
    assert_verdict(&sent, 0, VERDICT_CONFIG);
    assert_non_null(strstr(sent.answers[0].text, "STARTTLS"));
    assert_int_equal(world->server.mail_count, 0);
    world_end(world);
}

/* The first account is throttled; the second carries on. Connections come in the order of the
 * accounts. */
static const char *hook_first_is_throttled(struct server *server, struct server_peer *peer,
                                           struct span line)
{
    if (span_ieq(line, SPAN_LIT("AUTH LOGIN"))) {
        server->user = accounts[peer->number - 1].user;
    }
    return peer->number == 1 && span_eq(line, SPAN_LIT("DOT"))
               ? "432 4.3.2 Concurrent connections limit exceeded."
               : NULL;
}

static void a_throttled_account_leaves_the_work_to_the_other(void **state)
{
    (void)state;
    struct world *world = world_new(hook_first_is_throttled);
    world->conf.account_count = 2;
    world->conf.connections = 1;
    world_open(world, &backend_hve_ops);
    assert_int_equal(world_room(world), 2);
    struct sent sent;
    world_send(world, &sent, "a@contoso.test", mail);
    assert_verdict(&sent, 0, VERDICT_THROTTLED);
    assert_string_equal(sent.account, ACCOUNT);
    assert_true(world_room(world) > 0);
    for (int i = 0; i < 3; i++) {
        struct sent next;
        world_send(world, &next, "a@contoso.test", mail);
        assert_verdict(&next, 0, VERDICT_DELIVERED);
        assert_string_equal(next.account, "hve2@contoso.test");
    }
    world_end(world);
}

static void accounts_take_turns(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    static const struct backend_account twins[] = {
        {.user = ACCOUNT, .password = "hve-password"},
        {.user = ACCOUNT, .password = "hve-password"},
    };
    world->conf.accounts = twins;
    world->conf.account_count = 2;
    world_open(world, &backend_hve_ops);
    for (int i = 0; i < 4; i++) {
        struct sent sent;
        world_send(world, &sent, "a@contoso.test", mail);
        assert_verdict(&sent, 0, VERDICT_DELIVERED);
    }
    assert_int_equal(world->server.connections, 2);
    for (struct server_peer *peer = world->server.peers; peer != NULL; peer = peer->next) {
        assert_int_equal(peer->messages, 2);
    }
    world_end(world);
}

static void more_recipients_than_allowed_are_refused(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world->conf.recipients_per_message = 2;
    world_open(world, &backend_hve_ops);
    struct sent sent;
    sent_init(world, &sent, "a@contoso.test,b@contoso.test,c@contoso.test", span_of(mail));
    assert_int_equal(world_deliver(world, &sent), ERR_INVAL);
    world_end(world);
}

static void settings_are_checked(void **state)
{
    (void)state;
    static const struct backend_account bad_user = {.user = "alerts", .password = "x"};
    static const struct backend_account no_password = {.user = ACCOUNT};
    for (int i = 0; i < 8; i++) {
        struct world *world = world_new(NULL);
        struct backend_conf *conf = &world->conf;
        const char *word = NULL;
        switch (i) {
        case 0:
            conf->host = NULL;
            word = "host";
            break;
        case 1:
            conf->account_count = 0;
            word = "account";
            break;
        case 2:
            conf->tls = BACKEND_TLS_OPTIONAL;
            word = "starttls";
            break;
        case 3:
            conf->tls = BACKEND_TLS_IMPLICIT;
            word = "starttls";
            break;
        case 4:
            conf->auth = BACKEND_AUTH_XOAUTH2;
            word = "not supported by this version";
            break;
        case 5:
            conf->accounts = &bad_user;
            word = "mail address";
            break;
        case 6:
            conf->accounts = &no_password;
            word = "password";
            break;
        default:
            conf->ca_file = "/nonexistent/ca.pem";
            word = "ca.pem";
            break;
        }
        struct err err = {0};
        assert_true(backend_hve_ops.open(&world->env, conf, &world->backend, &err) < 0);
        if (strstr(err.text, word) == NULL) {
            fail_msg("\"%s\" does not say \"%s\"", err.text, word);
        }
        world_end(world);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identities_are_rewritten),
        cmocka_unit_test(the_body_is_not_copied),
        cmocka_unit_test(a_mail_goes_out_as_the_account),
        cmocka_unit_test(a_wrong_password_stops_the_account),
        cmocka_unit_test(an_untrusted_certificate_gets_no_password),
        cmocka_unit_test(a_server_without_starttls_gets_nothing),
        cmocka_unit_test(a_throttled_account_leaves_the_work_to_the_other),
        cmocka_unit_test(accounts_take_turns),
        cmocka_unit_test(more_recipients_than_allowed_are_refused),
        cmocka_unit_test(settings_are_checked),
    };
    return cmocka_run_group_tests(tests, make_certs, remove_certs);
}
