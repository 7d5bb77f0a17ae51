/* Unit tests of backends/smtp_pool against a scripted server: connections, their loss, time-outs,
 * health, closing. */
#include "backends/smtp_pool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/smtp_world.h"

static const char body[] = "Subject: x\r\n\r\n.one\r\ntwo\r\n";

static struct world *world_new(const char *(*hook)(struct server *server, struct server_peer *peer,
                                                   struct span line))
{
    struct world *world = mem_alloc(sizeof *world);
    world_init(world);
    world->server.hook = hook;
    return world;
}

static void world_start(struct world *world, uint32_t connections)
{
    world->conf.concurrency = connections;
    world_open(world, &backend_smtp_ops);
}

static void world_end(struct world *world)
{
    world_release(world);
    mem_free(world);
}

static void assert_text(struct span got, const char *want)
{
    if (!span_eq(got, span_of(want))) {
        fail_msg("got \"%.*s\", want \"%s\"", SPAN_FMT(got), want);
    }
}

static void assert_verdict(const struct sent *sent, size_t recipient, enum verdict verdict)
{
    assert_int_equal(sent->dones, 1);
    if (sent->answers[recipient].verdict != verdict) {
        fail_msg("recipient %zu has verdict %d \"%s\", not %d", recipient,
                 (int)sent->answers[recipient].verdict, sent->answers[recipient].text,
                 (int)verdict);
    }
}

/* ---- Delivering ---- */

static void a_mail_arrives_as_it_was_given(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world_start(world, 3);
    assert_int_equal(world_room(world), 3);
    struct sent sent;
    world_send(world, &sent, "a@x.test,b@x.test", body);
    assert_verdict(&sent, 0, VERDICT_DELIVERED);
    assert_verdict(&sent, 1, VERDICT_DELIVERED);
    assert_string_equal(sent.answers[1].text, "250 2.0.0 queued");
    assert_string_equal(sent.account, "127.0.0.1");
    assert_int_equal(sent.starts, 1);
    assert_int_equal(world->server.mail_count, 1);
    const struct server_mail *mail = &world->server.mails[0];
    assert_text(buf_span(&mail->from), "MAIL FROM:<sender@contoso.test> SIZE=25");
    assert_text(buf_span(&mail->recipients), "RCPT TO:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n");
    assert_text(buf_span(&mail->content), body);
    assert_int_equal(world_room(world), 6); /* the server pipelines */
    assert_string_equal(world->health, "");
    world_end(world);
}

static void a_connection_is_used_again(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world_start(world, 3);
    for (size_t i = 0; i < 5; i++) {
        struct sent sent;
        world_send(world, &sent, "a@x.test", body);
        assert_verdict(&sent, 0, VERDICT_DELIVERED);
    }
    assert_int_equal(world->server.connections, 1);
    world_end(world);
}

/* Keeps the pool full until `total` are sent. */
static struct sent *send_many(struct world *world, size_t total)
{
    struct sent *all = mem_zero(total * sizeof *all);
    size_t given = 0;
    while (world->done_count < total) {
        while (given < total && world_room(world) > 0) {
            sent_init(world, &all[given], "a@x.test", span_of(body));
            assert_int_equal(world_deliver(world, &all[given]), 0);
            given++;
        }
        size_t before = world->done_count;
        RUN_UNTIL(world, world->done_count > before);
    }
    for (size_t i = 0; i < total; i++) {
        assert_verdict(&all[i], 0, VERDICT_DELIVERED);
        assert_int_equal(all[i].starts, 1);
    }
    return all;
}

static void many_mails_share_few_connections(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world_start(world, 3);
    struct sent *all = send_many(world, 200);
    assert_int_equal(world->server.connections, 3);
    assert_int_equal(world->server.mail_count, 200);
    mem_free(all);
    world_end(world);
}

static void without_pipelining_a_connection_has_one_at_a_time(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world->server.no_pipelining = true;
    world_start(world, 2);
    struct sent *all = send_many(world, 30);
    assert_int_equal(world->server.connections, 2);
    assert_int_equal(world_room(world), 2);
    mem_free(all);
    world_end(world);
}

static void a_connection_is_replaced_after_a_thousand_mails(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world_start(world, 1);
    struct sent *all = send_many(world, 2001);
    assert_int_equal(world->server.connections, 3);
    mem_free(all);
    world_end(world);
}

static void no_room_is_an_error_at_once(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world_start(world, 1);
    struct sent first;
    struct sent second;
    sent_init(world, &first, "a@x.test", span_of(body));
    sent_init(world, &second, "a@x.test", span_of(body));
    assert_int_equal(world_deliver(world, &first), 0);
    assert_int_equal(world_room(world), 0);
    assert_int_equal(world_deliver(world, &second), ERR_FULL);
    second.delivery.recipient_count = 0;
    assert_int_equal(world_deliver(world, &second), ERR_INVAL);
    second.delivery.recipient_count = BATCH_RECIPIENTS_MAX + 1;
    assert_int_equal(world_deliver(world, &second), ERR_INVAL);
    RUN_UNTIL(world, first.dones > 0);
    assert_int_equal(second.dones, 0);
    world_end(world);
}

static void a_large_mail_arrives_whole(void **state)
{
    (void)state;
    size_t size = (size_t)8 << 20;
    char *large = mem_alloc(size);
    for (size_t i = 0; i < size; i++) {
        large[i] = i % 61 == 59   ? '\r'
                   : i % 61 == 60 ? '\n'
                   : i % 61 == 0  ? '.'
                                  : (char)('a' + i % 7);
    }
    memcpy(large + size - 2, "\r\n", 2);
    struct world *world = world_new(NULL);
    world_start(world, 1);
    struct sent sent;
    sent_init(world, &sent, "a@x.test", span_make(large, size));
    assert_int_equal(world_deliver(world, &sent), 0);
    RUN_UNTIL(world, sent.dones > 0);
    assert_verdict(&sent, 0, VERDICT_DELIVERED);
    assert_true(span_eq(buf_span(&world->server.mails[0].content), span_make(large, size)));
    world_end(world);
    mem_free(large);
}

static const char *hook_partial(struct server *server, struct server_peer *peer, struct span line)
{
    (void)server;
    (void)peer;
    return span_eq(line, SPAN_LIT("RCPT TO:<b@x.test>"))   ? "550 5.1.1 nobody"
           : span_eq(line, SPAN_LIT("RCPT TO:<c@x.test>")) ? "450 4.2.0 later"
                                                           : NULL;
}

static void a_refused_recipient_does_not_hinder_the_others(void **state)
{
    (void)state;
    struct world *world = world_new(hook_partial);
    world_start(world, 1);
    struct sent sent;
    world_send(world, &sent, "a@x.test,b@x.test,c@x.test,d@x.test", body);
    assert_verdict(&sent, 0, VERDICT_DELIVERED);
    assert_verdict(&sent, 1, VERDICT_RECIPIENT_PERMANENT);
    assert_verdict(&sent, 2, VERDICT_TRANSIENT);
    assert_verdict(&sent, 3, VERDICT_DELIVERED);
    assert_text(buf_span(&world->server.mails[0].recipients),
                "RCPT TO:<a@x.test>\r\nRCPT TO:<d@x.test>\r\n");
    world_end(world);
}

static const char *hook_two_at_once(struct server *server, struct server_peer *peer,
                                    struct span line)
{
    (void)server;
    return span_istarts(line, SPAN_LIT("RCPT")) && peer->recipients == 2
               ? "452 4.5.3 Too many recipients"
               : NULL;
}

static void too_many_recipients_go_in_rounds(void **state)
{
    (void)state;
    struct world *world = world_new(hook_two_at_once);
    world_start(world, 1);
    struct sent sent;
    world_send(world, &sent, "a@x.test,b@x.test,c@x.test,d@x.test,e@x.test", body);
    for (size_t i = 0; i < 5; i++) {
        assert_verdict(&sent, i, VERDICT_DELIVERED);
    }
    assert_int_equal(sent.starts, 1);
    assert_int_equal(world->server.mail_count, 3);
    assert_text(buf_span(&world->server.mails[2].recipients), "RCPT TO:<e@x.test>\r\n");
    world_end(world);
}

static void a_start_that_fails_sends_nothing(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world_start(world, 1);
    struct sent sent;
    sent_init(world, &sent, "a@x.test", span_of(body));
    sent.start_fails = true;
    assert_int_equal(world_deliver(world, &sent), 0);
    RUN_UNTIL(world, sent.dones > 0);
    assert_verdict(&sent, 0, VERDICT_TRANSIENT);
    assert_int_equal(world->server.mail_count, 0);
    struct sent next;
    world_send(world, &next, "a@x.test", body);
    assert_verdict(&next, 0, VERDICT_DELIVERED);
    assert_int_equal(world->server.connections, 2);
    world_end(world);
}

/* ---- Losses ---- */

static const char *hook_drop_at_dot(struct server *server, struct server_peer *peer,
                                    struct span line)
{
    (void)server;
    (void)peer;
    return span_eq(line, SPAN_LIT("DOT")) ? SERVER_DROP : NULL;
}

static void a_connection_lost_after_the_dot_is_unknown(void **state)
{
    (void)state;
    struct world *world = world_new(hook_drop_at_dot);
    world_start(world, 1);
    struct sent sent;
    world_send(world, &sent, "a@x.test,b@x.test", body);
    assert_verdict(&sent, 0, VERDICT_UNKNOWN);
    assert_verdict(&sent, 1, VERDICT_UNKNOWN);
    assert_non_null(strstr(sent.answers[0].text, "lost"));
    assert_string_equal(sent.account, "127.0.0.1");
    world_end(world);
}

static const char *hook_drop_at_mail(struct server *server, struct server_peer *peer,
                                     struct span line)
{
    (void)server;
    (void)peer;
    return span_istarts(line, SPAN_LIT("MAIL")) ? SERVER_DROP : NULL;
}

static void a_fresh_connection_lost_before_content_is_transient(void **state)
{
    (void)state;
    struct world *world = world_new(hook_drop_at_mail);
    world_start(world, 1);
    struct sent sent;
    world_send(world, &sent, "a@x.test", body);
    assert_verdict(&sent, 0, VERDICT_TRANSIENT);
    assert_int_equal(sent.starts, 0);
    assert_string_equal(sent.account, "");
    assert_int_equal(world->server.connections, 1);
    world_end(world);
}

/* Every connection takes one mail and is dead for the next: the next must not suffer. */
static const char *hook_one_mail(struct server *server, struct server_peer *peer, struct span line)
{
    (void)server;
    return span_istarts(line, SPAN_LIT("MAIL")) && peer->messages > 0 ? SERVER_DROP : NULL;
}

static const char *hook_one_mail_421(struct server *server, struct server_peer *peer,
                                     struct span line)
{
    (void)server;
    return span_istarts(line, SPAN_LIT("MAIL")) && peer->messages > 0 ? "421 4.4.2 idle" : NULL;
}

static void a_dead_idle_connection_is_not_noticed(void **state)
{
    (void)state;
    for (int form = 0; form < 2; form++) {
        struct world *world = world_new(form == 0 ? hook_one_mail : hook_one_mail_421);
        world_start(world, 1);
        for (unsigned i = 1; i <= 3; i++) {
            struct sent sent;
            world_send(world, &sent, "a@x.test", body);
            assert_verdict(&sent, 0, VERDICT_DELIVERED);
            assert_int_equal(world->server.connections, i);
        }
        world_end(world);
    }
}

static const char *hook_never_again(struct server *server, struct server_peer *peer,
                                    struct span line)
{
    (void)peer;
    return span_istarts(line, SPAN_LIT("MAIL")) && server->mail_count > 0 ? SERVER_DROP : NULL;
}

static void a_delivery_is_not_passed_on_for_ever(void **state)
{
    (void)state;
    struct world *world = world_new(hook_never_again);
    world_start(world, 1);
    struct sent first;
    world_send(world, &first, "a@x.test", body);
    struct sent second;
    world_send(world, &second, "a@x.test", body);
    assert_verdict(&second, 0, VERDICT_TRANSIENT);
    assert_int_equal(world->server.connections, 2);
    world_end(world);
}

static const char *hook_silent_dot(struct server *server, struct server_peer *peer,
                                   struct span line)
{
    (void)server;
    (void)peer;
    return span_eq(line, SPAN_LIT("DOT")) ? SERVER_SILENT : NULL;
}

static const char *hook_silent_mail(struct server *server, struct server_peer *peer,
                                    struct span line)
{
    (void)server;
    (void)peer;
    return span_istarts(line, SPAN_LIT("MAIL")) ? SERVER_SILENT : NULL;
}

static const char *hook_silent_greeting(struct server *server, struct server_peer *peer,
                                        struct span line)
{
    (void)server;
    (void)peer;
    return span_eq(line, SPAN_LIT("CONNECT")) ? SERVER_SILENT : NULL;
}

static void a_silent_server_is_left(void **state)
{
    (void)state;
    static const struct {
        const char *(*hook)(struct server *server, struct server_peer *peer, struct span line);
        enum verdict verdict;
    } rows[] = {
        {hook_silent_dot, VERDICT_UNKNOWN},
        {hook_silent_greeting, VERDICT_TRANSIENT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct world *world = world_new(rows[i].hook);
        world->conf.reply_timeout_ms = 50;
        world_start(world, 1);
        struct sent sent;
        world_send(world, &sent, "a@x.test", body);
        assert_verdict(&sent, 0, rows[i].verdict);
        assert_non_null(strstr(sent.answers[0].text, "did not answer"));
        world_end(world);
    }
}

/* MAIL is not answered, but RCPT and DATA are, so the replies do not fit: still nothing may be
 * taken for sent. */
static void a_missing_answer_never_becomes_a_delivery(void **state)
{
    (void)state;
    struct world *world = world_new(hook_silent_mail);
    world->conf.reply_timeout_ms = 50;
    world_start(world, 1);
    struct sent sent;
    world_send(world, &sent, "a@x.test", body);
    assert_verdict(&sent, 0, VERDICT_TRANSIENT); /* "503" in the place of the answer to MAIL */
    assert_int_equal(sent.starts, 0);
    world_end(world);
}

/* ---- Health ---- */

static void a_refused_connection_backs_off(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    struct server other;
    server_start(&other, world->loop);
    world->conf.port = other.port;
    server_stop(&other); /* nobody listens there now */
    world_start(world, 4);
    struct sent sent[4];
    for (size_t i = 0; i < 4; i++) {
        sent_init(world, &sent[i], "a@x.test", span_of(body));
        assert_int_equal(world_deliver(world, &sent[i]), 0);
    }
    RUN_UNTIL(world, world->done_count == 4);
    for (size_t i = 0; i < 4; i++) {
        assert_verdict(&sent[i], 0, VERDICT_TRANSIENT);
        assert_non_null(strstr(sent[i].answers[0].text, "127.0.0.1"));
    }
    assert_int_equal(world_room(world), 0);
    assert_string_equal(world->health, "127.0.0.1 unreachable|");
    /* After the back-off one delivery may try again. */
    RUN_UNTIL(world, world_room(world) > 0);
    assert_int_equal(world_room(world), 1);
    world->conf.port = world->server.port;
    struct sent again;
    world_send(world, &again, "a@x.test", body);
    assert_verdict(&again, 0, VERDICT_DELIVERED);
    assert_string_equal(world->health, "127.0.0.1 unreachable|127.0.0.1 ok|");
    assert_true(world_room(world) > 1);
    world_end(world);
}

static const char *hook_note_quit(struct server *server, struct server_peer *peer, struct span line)
{
    (void)peer;
    struct world *world = server->ctx;
    if (span_eq(line, SPAN_LIT("QUIT"))) {
        (void)snprintf(world->remedy, sizeof world->remedy, "quit");
    }
    return NULL;
}

static const char *hook_two_connections(struct server *server, struct server_peer *peer,
                                        struct span line)
{
    (void)server;
    return span_eq(line, SPAN_LIT("CONNECT")) && peer->number > 2 ? "421 4.3.2 too many connections"
                                                                  : NULL;
}

/* A server that takes fewer connections than we would make is not unreachable. */
static void refused_connections_leave_the_others_at_work(void **state)
{
    (void)state;
    struct world *world = world_new(hook_two_connections);
    world_start(world, 5);
    struct sent *all = send_many(world, 100);
    assert_string_equal(world->health, "");
    assert_int_equal(world->server.mail_count, 100);
    assert_true(world->server.connections <= 10);
    assert_true(world_room(world) >= 4);
    mem_free(all);
    world_end(world);
}

static const struct backend_ops short_idle_ops;

static int short_idle_open(const struct backend_env *env, const struct backend_conf *conf,
                           struct backend **out, struct err *err)
{
    struct smtp_pool_conf pool_conf = {
        .env = env, .conf = conf, .kind = KIND_RELAY, .connections = 1, .idle_ms = 20};
    return smtp_pool_open(&pool_conf, &short_idle_ops, out, err);
}

static const struct backend_ops short_idle_ops = {
    .type = "smtp",
    .open = short_idle_open,
    .room = smtp_pool_room,
    .deliver = smtp_pool_deliver,
    .close = smtp_pool_close,
};

static void idle_connections_end_with_quit(void **state)
{
    (void)state;
    struct world *world = world_new(hook_note_quit);
    world_open(world, &short_idle_ops);
    struct sent sent;
    world_send(world, &sent, "a@x.test", body);
    assert_int_equal(world->server.open, 1);
    RUN_UNTIL(world, world->server.open == 0);
    assert_string_equal(world->remedy, "quit");
    world_send(world, &sent, "a@x.test", body);
    assert_verdict(&sent, 0, VERDICT_DELIVERED);
    assert_int_equal(world->server.connections, 2);
    world_end(world);
}

static const char *hook_busy(struct server *server, struct server_peer *peer, struct span line)
{
    (void)server;
    (void)peer;
    return span_eq(line, SPAN_LIT("CONNECT")) ? "421 4.3.2 too busy" : NULL;
}

static void a_busy_greeting_is_transient_with_its_words(void **state)
{
    (void)state;
    struct world *world = world_new(hook_busy);
    world_start(world, 1);
    struct sent sent;
    world_send(world, &sent, "a@x.test", body);
    assert_verdict(&sent, 0, VERDICT_TRANSIENT);
    assert_string_equal(sent.answers[0].text, "421 4.3.2 too busy");
    assert_int_equal(sent.answers[0].code, 421);
    assert_int_equal(world_room(world), 0);
    world_end(world);
}

static const char *hook_throttle(struct server *server, struct server_peer *peer, struct span line)
{
    (void)server;
    (void)peer;
    return span_eq(line, SPAN_LIT("DOT")) ? "432 4.3.2 Concurrent connections limit exceeded."
                                          : NULL;
}

static void a_throttle_parks_the_account_and_what_waits(void **state)
{
    (void)state;
    struct world *world = world_new(hook_throttle);
    world_start(world, 2);
    struct sent sent;
    world_send(world, &sent, "a@x.test", body);
    assert_verdict(&sent, 0, VERDICT_THROTTLED);
    assert_int_equal(sent.answers[0].scope, SCOPE_ACCOUNT);
    assert_int_equal(sent.answers[0].wait_ms, 10000);
    assert_int_equal(world_room(world), 0);
    assert_string_equal(world->health, "");
    world_end(world);
}

static const char *hook_blocked(struct server *server, struct server_peer *peer, struct span line)
{
    (void)server;
    (void)peer;
    return span_istarts(line, SPAN_LIT("MAIL"))
               ? "550 5.2.251 Sender throttled due to continuous mailbox full errors."
               : NULL;
}

static void a_blocked_sender_is_told_once(void **state)
{
    (void)state;
    struct world *world = world_new(hook_blocked);
    world_start(world, 4);
    struct sent sent[4];
    for (size_t i = 0; i < 4; i++) {
        sent_init(world, &sent[i], "a@x.test", span_of(body));
        assert_int_equal(world_deliver(world, &sent[i]), 0);
    }
    RUN_UNTIL(world, world->done_count == 4);
    for (size_t i = 0; i < 4; i++) {
        assert_verdict(&sent[i], 0, VERDICT_ACCOUNT_BLOCKED);
    }
    assert_int_equal(world_room(world), 0);
    assert_string_equal(world->health, "127.0.0.1 blocked|");
    assert_true(strlen(world->remedy) > 0);
    world_end(world);
}

static const char *hook_unknown_gateway(struct server *server, struct server_peer *peer,
                                        struct span line)
{
    (void)server;
    (void)peer;
    return span_istarts(line, SPAN_LIT("MAIL"))
               ? "550 5.7.64 TenantAttribution; Relay Access Denied"
               : NULL;
}

static void a_wrong_connector_stops_the_backend(void **state)
{
    (void)state;
    struct world *world = world_new(hook_unknown_gateway);
    world_start(world, 1);
    struct sent sent;
    world_send(world, &sent, "a@x.test", body);
    assert_verdict(&sent, 0, VERDICT_CONFIG);
    assert_int_equal(world_room(world), 0);
    assert_string_equal(world->health, "127.0.0.1 config|");
    assert_non_null(strstr(world->remedy, "connector"));
    world_end(world);
}

/* ---- Closing ---- */

static void closing_says_quit_on_idle_connections(void **state)
{
    (void)state;
    struct world *world = world_new(hook_note_quit);
    world_start(world, 1);
    struct sent sent;
    world_send(world, &sent, "a@x.test", body);
    world_close_backend(world, 20000);
    assert_string_equal(world->remedy, "quit");
    world_end(world);
}

static void closing_lets_running_deliveries_end(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world_start(world, 1);
    struct sent sent;
    sent_init(world, &sent, "a@x.test", span_of(body));
    assert_int_equal(world_deliver(world, &sent), 0);
    RUN_UNTIL(world, sent.starts > 0);
    world_close_backend(world, 20000);
    assert_verdict(&sent, 0, VERDICT_DELIVERED);
    world_end(world);
}

static void closing_ends_what_waits(void **state)
{
    (void)state;
    struct world *world = world_new(hook_silent_greeting);
    world_start(world, 1);
    struct sent sent;
    sent_init(world, &sent, "a@x.test", span_of(body));
    assert_int_equal(world_deliver(world, &sent), 0);
    world_close_backend(world, 20000);
    assert_verdict(&sent, 0, VERDICT_TRANSIENT);
    assert_string_equal(sent.answers[0].text, "The gateway is stopping.");
    world_end(world);
}

static void closing_ends_when_the_grace_does(void **state)
{
    (void)state;
    struct world *world = world_new(hook_silent_dot);
    world_start(world, 1);
    struct sent sent;
    sent_init(world, &sent, "a@x.test", span_of(body));
    assert_int_equal(world_deliver(world, &sent), 0);
    RUN_UNTIL(world, sent.starts > 0);
    world_close_backend(world, 10);
    assert_verdict(&sent, 0, VERDICT_UNKNOWN);
    world_end(world);
}

static void closing_a_backend_never_used(void **state)
{
    (void)state;
    struct world *world = world_new(NULL);
    world_start(world, 1);
    world_close_backend(world, 20000);
    world_end(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mail_arrives_as_it_was_given),
        cmocka_unit_test(a_connection_is_used_again),
        cmocka_unit_test(many_mails_share_few_connections),
        cmocka_unit_test(without_pipelining_a_connection_has_one_at_a_time),
        cmocka_unit_test(a_connection_is_replaced_after_a_thousand_mails),
        cmocka_unit_test(no_room_is_an_error_at_once),
        cmocka_unit_test(a_large_mail_arrives_whole),
        cmocka_unit_test(a_refused_recipient_does_not_hinder_the_others),
        cmocka_unit_test(too_many_recipients_go_in_rounds),
        cmocka_unit_test(a_start_that_fails_sends_nothing),
        cmocka_unit_test(a_connection_lost_after_the_dot_is_unknown),
        cmocka_unit_test(a_fresh_connection_lost_before_content_is_transient),
        cmocka_unit_test(a_dead_idle_connection_is_not_noticed),
        cmocka_unit_test(a_delivery_is_not_passed_on_for_ever),
        cmocka_unit_test(a_silent_server_is_left),
        cmocka_unit_test(a_missing_answer_never_becomes_a_delivery),
        cmocka_unit_test(a_refused_connection_backs_off),
        cmocka_unit_test(refused_connections_leave_the_others_at_work),
        cmocka_unit_test(idle_connections_end_with_quit),
        cmocka_unit_test(a_busy_greeting_is_transient_with_its_words),
        cmocka_unit_test(a_throttle_parks_the_account_and_what_waits),
        cmocka_unit_test(a_blocked_sender_is_told_once),
        cmocka_unit_test(a_wrong_connector_stops_the_backend),
        cmocka_unit_test(closing_says_quit_on_idle_connections),
        cmocka_unit_test(closing_lets_running_deliveries_end),
        cmocka_unit_test(closing_ends_what_waits),
        cmocka_unit_test(closing_ends_when_the_grace_does),
        cmocka_unit_test(closing_a_backend_never_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
